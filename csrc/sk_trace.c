#define _GNU_SOURCE
#include "sk_trace.h"

#include <elf.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "sk_tasks.h"

#define SPIN_NS 60000      /* most stops arrive within microseconds: do not sleep for these */
#define SLEEP_MIN_NS 20000
#define SLEEP_MAX_NS 100000
#define DYING_NS 20000000  /* from SIGKILL to the end of a thread that was stopped */

/* PTRACE_GET_SYSCALL_INFO and PTRACE_SYSCALL_INFO_ENTRY of linux/ptrace.h */
#define GET_SYSCALL_INFO 0x420e
#define SYSCALL_INFO_ENTRY 1

/* The kernel's size of a signal set; glibc's sigset_t is larger. */
#define KERNEL_SIGSET_NBYTES 8

/*
 * Every ptrace request goes through here, so that a test can end our process at each of them in turn
 * (tests/csrc) and see that the tracee survives.
 */
#ifndef SK_TRACE_CHECKPOINT
#define SK_TRACE_CHECKPOINT() ((void)0)
#endif

static long request(enum __ptrace_request what, pid_t tid, void *address, void *data)
{
	long result;

	SK_TRACE_CHECKPOINT();
	result = ptrace(what, tid, address, data);
	SK_TRACE_CHECKPOINT();
	return result;
}

static void *word(uintptr_t value)
{
	return (void *)value;
}

uint64_t sk_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

enum sk_status sk_trace_seize(pid_t tid, struct sk_error *err)
{
	if (request(PTRACE_SEIZE, tid, NULL, word(PTRACE_O_TRACESYSGOOD)) == 0)
		return SK_OK;
	return sk_fail_errno(err, errno, "ptrace thread %d", (int)tid);
}

enum sk_status sk_trace_follow_clone(pid_t tid, struct sk_error *err)
{
	if (request(PTRACE_SETOPTIONS, tid, NULL, word(PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE)) == 0)
		return SK_OK;
	return sk_fail_errno(err, errno, "follow thread %d", (int)tid);
}

/* Has it ended as a child of ours? Then its exit status belongs to whoever started it, in another thread perhaps. */
static bool ended_as_our_child(pid_t tid)
{
	siginfo_t info = { 0 };
	char parent[16], process[16];

	/* stops of a tracee are reported too, whatever is asked for */
	if (waitid(P_PID, (id_t)tid, &info, WEXITED | WNOHANG | WNOWAIT | __WALL) < 0 || info.si_pid != tid)
		return false;
	if (info.si_code != CLD_EXITED && info.si_code != CLD_KILLED && info.si_code != CLD_DUMPED)
		return false;
	return sk_task_status_field(tid, tid, "PPid", parent, sizeof parent) && atoi(parent) == getpid() &&
	       sk_task_status_field(tid, tid, "Tgid", process, sizeof process) && atoi(process) == tid;
}

static enum sk_stop classify(int status, int *signal)
{
	int event = status >> 16;

	*signal = 0;
	if (!WIFSTOPPED(status))
		return SK_STOP_GONE;
	if (event == PTRACE_EVENT_STOP)
		return SK_STOP_EVENT;
	if (event == PTRACE_EVENT_CLONE)
		return SK_STOP_CLONE;
	if (WSTOPSIG(status) == (SIGTRAP | 0x80))
		return SK_STOP_SYSCALL;
	*signal = WSTOPSIG(status);
	return SK_STOP_SIGNAL;
}

enum sk_status sk_trace_wait(pid_t tid, uint64_t deadline_ns, enum sk_stop *stop, int *signal,
                             struct sk_error *err)
{
	uint64_t start = sk_now_ns();
	long sleep_ns = SLEEP_MIN_NS;

	for (;;) {
		int status;
		pid_t got;
		uint64_t now;

		if (ended_as_our_child(tid)) {
			*stop = SK_STOP_GONE;
			*signal = 0;
			return SK_OK;
		}
		got = waitpid(tid, &status, __WALL | WNOHANG);
		if (got == tid) {
			*stop = classify(status, signal);
			return SK_OK;
		}
		if (got < 0 && errno == ECHILD) {
			/* somebody else reaped it: it is gone all the same */
			*stop = SK_STOP_GONE;
			*signal = 0;
			return SK_OK;
		}
		if (got < 0 && errno != EINTR)
			return sk_fail_errno(err, errno, "wait for thread %d", (int)tid);
		now = sk_now_ns();
		if (now >= deadline_ns)
			return sk_fail(err, SK_ERR_TIMEOUT, 0, 0, "thread %d did not stop in time", (int)tid);
		if (now - start < SPIN_NS) {
			sched_yield();
		} else {
			struct timespec pause = { 0, sleep_ns };

			nanosleep(&pause, NULL);
			if (sleep_ns < SLEEP_MAX_NS)
				sleep_ns += sleep_ns / 2;
		}
	}
}

static enum sk_status gone(pid_t tid, struct sk_error *err)
{
	return sk_fail(err, SK_ERR_NO_PROCESS, ESRCH, 0, "thread %d ended", (int)tid);
}

static enum sk_status wait_for_event(pid_t tid, uint64_t deadline_ns, struct sk_error *err)
{
	for (;;) {
		enum sk_stop stop;
		int signal;
		enum sk_status status = sk_trace_wait(tid, deadline_ns, &stop, &signal, err);

		if (status)
			return status;
		if (stop == SK_STOP_EVENT)
			return SK_OK;
		if (stop == SK_STOP_GONE)
			return gone(tid, err);
		status = sk_trace_resume(tid, signal, err);
		if (status)
			return status;
	}
}

enum sk_status sk_trace_park(pid_t tid, uint64_t deadline_ns, struct sk_error *err)
{
	if (request(PTRACE_INTERRUPT, tid, NULL, NULL) < 0)
		return sk_fail_errno(err, errno, "interrupt thread %d", (int)tid);
	return wait_for_event(tid, deadline_ns, err);
}

enum sk_status sk_trace_park_again(pid_t tid, uint64_t deadline_ns, struct sk_error *err)
{
	struct sk_error ignored;

	if (request(PTRACE_INTERRUPT, tid, NULL, NULL) < 0)
		return sk_fail_errno(err, errno, "interrupt thread %d", (int)tid);
	sk_trace_resume(tid, 0, &ignored); /* fails if it is running, which is as good */
	return wait_for_event(tid, deadline_ns, err);
}

enum sk_status sk_trace_resume_to_syscall(pid_t tid, int signal, struct sk_error *err)
{
	if (request(PTRACE_SYSCALL, tid, NULL, word((uintptr_t)signal)) < 0)
		return sk_fail_errno(err, errno, "resume thread %d", (int)tid);
	return SK_OK;
}

enum sk_status sk_trace_to_syscall_stop(pid_t tid, uint64_t deadline_ns, pid_t *cloned, struct sk_error *err)
{
	int signal = 0;

	for (;;) {
		enum sk_stop stop;
		unsigned long message;
		enum sk_status status = sk_trace_resume_to_syscall(tid, signal, err);

		if (!status)
			status = sk_trace_wait(tid, deadline_ns, &stop, &signal, err);
		if (status)
			return status;
		if (stop == SK_STOP_SYSCALL)
			return SK_OK;
		if (stop == SK_STOP_GONE)
			return gone(tid, err);
		if (stop == SK_STOP_CLONE && cloned && request(PTRACE_GETEVENTMSG, tid, NULL, &message) == 0)
			*cloned = (pid_t)message;
	}
}

enum sk_status sk_trace_is_entering(pid_t tid, bool *entering, struct sk_error *err)
{
	/* struct ptrace_syscall_info begins with op, one byte; linux/ptrace.h cannot stand beside sys/ptrace.h */
	struct {
		uint8_t op;
		uint8_t rest[127];
	} info;

	if (request((enum __ptrace_request)GET_SYSCALL_INFO, tid, word(sizeof info), &info) < 0)
		return sk_fail_errno(err, errno, "ask where thread %d stopped", (int)tid);
	*entering = info.op == SYSCALL_INFO_ENTRY;
	return SK_OK;
}

enum sk_status sk_trace_get_regs(pid_t tid, struct user_regs_struct *regs, struct sk_error *err)
{
	if (request(PTRACE_GETREGS, tid, NULL, regs) < 0)
		return sk_fail_errno(err, errno, "read the registers of thread %d", (int)tid);
	return SK_OK;
}

enum sk_status sk_trace_set_regs(pid_t tid, const struct user_regs_struct *regs, struct sk_error *err)
{
	if (request(PTRACE_SETREGS, tid, NULL, word((uintptr_t)regs)) < 0)
		return sk_fail_errno(err, errno, "set the registers of thread %d", (int)tid);
	return SK_OK;
}

enum sk_status sk_trace_get_sigmask(pid_t tid, uint64_t *mask, struct sk_error *err)
{
	if (request(PTRACE_GETSIGMASK, tid, word(KERNEL_SIGSET_NBYTES), mask) < 0)
		return sk_fail_errno(err, errno, "read the signal mask of thread %d", (int)tid);
	return SK_OK;
}

enum sk_status sk_trace_set_sigmask(pid_t tid, uint64_t mask, struct sk_error *err)
{
	if (request(PTRACE_SETSIGMASK, tid, word(KERNEL_SIGSET_NBYTES), &mask) < 0)
		return sk_fail_errno(err, errno, "set the signal mask of thread %d", (int)tid);
	return SK_OK;
}

enum sk_status sk_trace_get_xstate(pid_t tid, void *buffer, size_t room, size_t *nbytes, struct sk_error *err)
{
	struct iovec area = { buffer, room };

	if (request(PTRACE_GETREGSET, tid, word(NT_X86_XSTATE), &area) < 0)
		return sk_fail_errno(err, errno, "read the extended state of thread %d", (int)tid);
	*nbytes = area.iov_len;
	return SK_OK;
}

enum sk_status sk_trace_resume(pid_t tid, int signal, struct sk_error *err)
{
	if (request(PTRACE_CONT, tid, NULL, word((uintptr_t)signal)) < 0)
		return sk_fail_errno(err, errno, "resume thread %d", (int)tid);
	return SK_OK;
}

void sk_trace_detach(pid_t tid)
{
	enum sk_stop stop;
	int signal;

	/* a dead tracee waits for its tracer, and its process cannot be reaped before */
	if (request(PTRACE_DETACH, tid, NULL, NULL) < 0)
		sk_trace_wait(tid, sk_now_ns() + DYING_NS, &stop, &signal, NULL);
}
