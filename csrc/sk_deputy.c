/*
 * How our own death stays harmless, at every instruction:
 *
 *  - No single step, no breakpoint: a tracee in a signal-delivery stop of theirs would be killed by the
 *    pending SIGTRAP once we are gone. System-call stops and event stops vanish without a trace.
 *  - The borrowed thread stands on a chain that ends in rt_sigreturn(2) to its own state (sk_borrow.c).
 *  - The deputy stands on a chain that unmaps the arena, with what was decrypted into it, and exits. It is
 *    parked at the exit stop of its last system call: let go, it returns into that chain.
 *  - Threads that are held are in event stops: let go, they run on.
 *  - What may remain is one control page; its mark lets the next attach remove it.
 *
 * System calls that the target is made to run: mmap, munmap, clone with exactly the flags of a new pthread,
 * ioctl, exit; and rt_sigreturn, should we die while a thread is borrowed. Any other might end a VMM that runs
 * under a seccomp filter; and even these are made only after the filters themselves have been asked (sk_seccomp.c).
 */
#define _GNU_SOURCE
#include "sk_deputy.h"

#include <errno.h>
#include <sched.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sk_area.h"
#include "sk_borrow.h"
#include "sk_gadget.h"
#include "sk_hold.h"
#include "sk_remote.h"
#include "sk_seccomp.h"
#include "sk_tasks.h"
#include "sk_trace.h"

/* glibc's set for a new thread; QEMU's sandbox kills for any other. */
#define THREAD_FLAGS                                                                                       \
	(CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_SETTLS |     \
	 CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID)
_Static_assert(THREAD_FLAGS == 0x3d0f00, "the flags that libvirt's sandbox lets pass");

#define BORROW_CANDIDATES 4

struct sk_deputy {
	struct sk_remote remote;
	pid_t owner; /* our thread that ptrace belongs to */
	uint64_t timeout_ns;
	struct sk_gadgets gadgets;
	struct sk_seccomp sandbox; /* of the borrowed thread, which the deputy inherits */
	bool trust_sandbox;
	struct sk_found_areas found;
	uint64_t control_hva;
	struct sk_area arena;
	uint64_t chain_sp; /* where calls return to: the exit chain, then the cleaning one */
	struct sk_hold hold;
	struct sk_deputy_info info;
};

static uint64_t deadline_in(uint64_t timeout_ns)
{
	return sk_now_ns() + timeout_ns;
}

static enum sk_status check_owner(const struct sk_deputy *deputy, struct sk_error *err)
{
	if (deputy->owner == gettid())
		return SK_OK;
	return sk_fail(err, SK_ERR_WRONG_THREAD, 0, 0, "the deputy in process %d belongs to thread %d of ours",
	               (int)deputy->remote.pid, (int)deputy->owner);
}

static enum sk_status call(struct sk_deputy *deputy, long number, const uint64_t args[6], int64_t *result,
                           struct sk_error *err)
{
	return sk_remote_call(&deputy->remote, deputy->chain_sp, number, args, deadline_in(deputy->timeout_ns),
	                      result, err);
}

static enum sk_status unmap(struct sk_deputy *deputy, struct sk_area area, struct sk_error *err)
{
	const uint64_t args[6] = { area.hva, area.nbytes };
	int64_t result;

	return call(deputy, SYS_munmap, args, &result, err);
}

/* ---- adding the deputy ---- */

static enum sk_status check_target(pid_t pid, struct sk_error *err)
{
	char value[128];
	struct sk_task task;
	enum sk_status status = sk_task_read(pid, pid, &task, err);

	if (status)
		return status;
	if (pid == getpid())
		return sk_fail(err, SK_ERR_INVALID, 0, 0, "process %d is this process itself", (int)pid);
	if (sk_task_is_dead(&task))
		return sk_fail(err, SK_ERR_NO_PROCESS, ESRCH, 0, "process %d is ending", (int)pid);
	/* our chains return to addresses that a shadow stack does not hold: the target would be killed */
	if (sk_task_status_field(pid, pid, "x86_Thread_features", value, sizeof value) && strstr(value, "shstk"))
		return sk_fail(err, SK_ERR_UNSUPPORTED, 0, 0, "process %d runs with a shadow stack", (int)pid);
	return SK_OK;
}

static enum sk_status refused(const struct sk_deputy *deputy, int64_t result, const char *what,
                              struct sk_error *err)
{
	return sk_fail(err, SK_ERR_UNSUPPORTED, (int)-result, 0, "%s in process %d", what, (int)deputy->remote.pid);
}

/*
 * Would the target's sandbox let pass all that we are going to do, and what our chains do if we die? Asked while
 * the thread is held and before anything is called.
 */
static enum sk_status check_sandbox(struct sk_deputy *deputy, pid_t tid, struct sk_error *err)
{
	const uint64_t prot = PROT_READ | PROT_WRITE, shared = MAP_SHARED | MAP_ANONYMOUS, no_fd = (uint64_t)-1;
	const struct sk_area arena = sk_arena_place(deputy->info.scratch_nbytes);
	const struct {
		long number;
		uint64_t args[6];
	} calls[] = {
		{ SYS_mmap, { sk_control_place(), SK_CONTROL_NBYTES, prot, shared, no_fd, 0 } },
		{ SYS_mmap, { arena.hva, arena.nbytes, prot, shared, no_fd, 0 } },
		{ SYS_clone, { THREAD_FLAGS, sk_control_place(), sk_control_place(), 0, sk_control_place() } },
		{ SYS_munmap, { arena.hva, arena.nbytes } },
		{ SYS_munmap, { sk_control_place(), SK_CONTROL_NBYTES } },
		{ SYS_exit, { 0 } },
		{ SYS_rt_sigreturn, { 0 } },
	};
	enum sk_status status;

	sk_seccomp_forget(&deputy->sandbox);
	status = sk_seccomp_read(deputy->remote.pid, tid, &deputy->sandbox, err);
	if (!status && deputy->sandbox.unreadable && !deputy->trust_sandbox)
		return sk_fail(err, SK_ERR_SANDBOX, 0, 0,
		               "process %d has a seccomp filter that the kernel does not show us", (int)deputy->remote.pid);
	for (size_t i = 0; !status && i < sizeof calls / sizeof *calls; i++)
		status = sk_seccomp_check(&deputy->sandbox, deputy->gadgets.syscall_ret, calls[i].number, calls[i].args,
		                          true, err);
	return status;
}

/* On the borrowed thread: map the control page and start the deputy on it. */
static enum sk_status add_thread(struct sk_deputy *deputy, struct sk_borrowed *borrowed, struct sk_error *err)
{
	const uint64_t map_args[6] = {
		sk_control_place(), SK_CONTROL_NBYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, (uint64_t)-1, 0,
	};
	int64_t result;
	enum sk_status status = sk_borrowed_call(borrowed, SYS_mmap, map_args, &result, NULL, err);
	uint64_t control;

	if (status)
		return status;
	if (result < 0)
		return refused(deputy, result, "mmap", err);
	control = (uint64_t)result;
	status = sk_control_write(deputy->remote.pid, control, sk_arena_place(deputy->info.scratch_nbytes),
	                          &deputy->gadgets, err);
	if (!status) {
		/* no CLEARTID address: by the time the deputy exits, its page is gone and may be another's */
		const uint64_t clone_args[6] = {
			THREAD_FLAGS, sk_control_exit_sp(control), sk_control_tid_slot(control), 0,
			sk_control_tls(control),
		};

		status = sk_trace_follow_clone(borrowed->tid, err);
		if (!status)
			status = sk_borrowed_call(borrowed, SYS_clone, clone_args, &result, &deputy->remote.tid, err);
		if (!status && result < 0)
			status = refused(deputy, result, "clone", err);
	}
	if (status && !deputy->remote.tid) {
		const uint64_t unmap_args[6] = { control, SK_CONTROL_NBYTES };

		sk_borrowed_call(borrowed, SYS_munmap, unmap_args, &result, NULL, NULL);
		return status;
	}
	deputy->control_hva = control;
	deputy->chain_sp = sk_control_exit_sp(control);
	return status;
}

static enum sk_status traced_already(pid_t tid, pid_t tracer, struct sk_error *err)
{
	return sk_fail(err, SK_ERR_TRACED, 0, 0, "thread %d is traced by process %d already", (int)tid, (int)tracer);
}

static enum sk_status no_thread(pid_t pid, struct sk_error *err)
{
	return sk_fail(err, SK_ERR_UNSUPPORTED, 0, 0, "process %d has no thread to borrow", (int)pid);
}

static bool may_be_borrowed(const struct sk_task *task)
{
	return !sk_task_is_worker(task) && !sk_task_is_dead(task);
}

static enum sk_status try_borrow(struct sk_deputy *deputy, pid_t tid, struct sk_error *err)
{
	struct sk_borrowed borrowed;
	uint64_t start = sk_now_ns();
	enum sk_status status = sk_trace_seize(tid, err), returned;

	if (status == SK_ERR_PERMISSION && sk_task_tracer(deputy->remote.pid, tid))
		return traced_already(tid, sk_task_tracer(deputy->remote.pid, tid), err);
	if (status)
		return status;
	status = sk_borrow(deputy->remote.pid, tid, &deputy->gadgets, deadline_in(deputy->timeout_ns), &borrowed, err);
	if (status)
		return status;
	status = check_sandbox(deputy, tid, err);
	if (!status)
		status = add_thread(deputy, &borrowed, err);
	returned = sk_borrow_return(&borrowed, status ? NULL : err);
	deputy->info.borrowed_tid = tid;
	deputy->info.borrowed_ns = sk_now_ns() - start;
	return status ? status : returned;
}

static enum sk_status borrow_and_add(struct sk_deputy *deputy, struct sk_error *err)
{
	struct sk_task *tasks;
	size_t count, i;
	int tries = 0;
	enum sk_status status = sk_tasks_list(deputy->remote.pid, &tasks, &count, err);

	if (status)
		return status;
	status = no_thread(deputy->remote.pid, err);
	for (i = 0; i < count && status && !deputy->remote.tid && tries < BORROW_CANDIDATES; i++) {
		if (!may_be_borrowed(&tasks[i]))
			continue;
		tries++;
		status = try_borrow(deputy, tasks[i].tid, err);
		if (status == SK_ERR_NO_PROCESS && tasks[i].tid != deputy->remote.pid)
			continue;
		/* another thread may have stack to spare, or another filter; what else refuses one refuses all */
		if (status != SK_ERR_FAULT && status != SK_ERR_SANDBOX)
			break;
	}
	free(tasks);
	return status;
}

/* On the deputy itself: remove leftovers, map the arena. */
static enum sk_status furnish(struct sk_deputy *deputy, struct sk_error *err)
{
	const struct sk_area place = sk_arena_place(deputy->info.scratch_nbytes);
	const uint64_t args[6] = {
		place.hva, place.nbytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, (uint64_t)-1, 0,
	};
	enum sk_status status = sk_control_set_tid(deputy->remote.pid, deputy->control_hva, deputy->remote.tid, err);
	int64_t result;
	size_t i;

	for (i = 0; !status && i < deputy->found.nleftovers; i++) {
		status = unmap(deputy, deputy->found.leftovers[i], err);
		deputy->info.leftovers++;
	}
	if (!status)
		status = call(deputy, SYS_mmap, args, &result, err);
	if (status)
		return status;
	if (result < 0)
		return refused(deputy, result, "mmap", err);
	deputy->arena = (struct sk_area){ (uint64_t)result, place.nbytes };
	status = sk_arena_write(deputy->remote.pid, deputy->arena, deputy->control_hva, &deputy->gadgets, err);
	if (status)
		return status;
	deputy->chain_sp = sk_control_clean_sp(deputy->control_hva);
	deputy->info.args_hva = deputy->arena.hva + SK_ARENA_HEAD_NBYTES;
	deputy->info.args_nbytes = SK_ARGS_NBYTES;
	deputy->info.scratch_hva = deputy->info.args_hva + SK_ARGS_NBYTES;
	/* park on the new chain: any call does, and this one changes nothing */
	return unmap(deputy, (struct sk_area){ 0, 0 }, err);
}

/* The new thread stops by itself before its first instruction: PTRACE_O_TRACECLONE seized it. */
static enum sk_status await_new_thread(struct sk_deputy *deputy, struct sk_error *err)
{
	enum sk_stop stop = SK_STOP_SIGNAL;
	int signal;
	enum sk_status status =
	    sk_trace_wait(deputy->remote.tid, deadline_in(deputy->timeout_ns), &stop, &signal, err);

	if (!status && stop != SK_STOP_EVENT)
		status = sk_remote_lost(&deputy->remote, err);
	return status;
}

enum sk_status sk_deputy_open(pid_t pid, size_t scratch_nbytes, uint32_t timeout_ms, bool trust_sandbox,
                              struct sk_deputy **out, struct sk_error *err)
{
	const size_t page = 4096;
	uint64_t start = sk_now_ns();
	struct sk_deputy *deputy;
	enum sk_status status;

	*out = NULL;
	scratch_nbytes = (scratch_nbytes + page - 1) / page * page;
	if (pid <= 0 || scratch_nbytes == 0 || scratch_nbytes > SK_SCRATCH_MAX_NBYTES)
		return sk_fail(err, SK_ERR_INVALID, EINVAL, 0, "deputy for process %d with %zu bytes", (int)pid,
		               scratch_nbytes);
	status = check_target(pid, err);
	if (status)
		return status;
	deputy = calloc(1, sizeof *deputy);
	if (!deputy)
		return sk_fail_errno(err, ENOMEM, "room for a deputy");
	deputy->remote.pid = pid;
	deputy->owner = gettid();
	deputy->trust_sandbox = trust_sandbox;
	deputy->info.scratch_nbytes = scratch_nbytes;
	deputy->timeout_ns = (uint64_t)timeout_ms * 1000000u;
	status = sk_gadgets_find(pid, &deputy->gadgets, err);
	deputy->remote.syscall_ret = deputy->gadgets.syscall_ret;
	if (!status)
		status = sk_areas_find(pid, &deputy->found, err);
	if (!status)
		status = borrow_and_add(deputy, err);
	if (!status)
		status = await_new_thread(deputy, err);
	if (!status)
		status = furnish(deputy, err);
	if (status) {
		sk_deputy_close(deputy, timeout_ms);
		return status;
	}
	deputy->info.pid = pid;
	deputy->info.tid = deputy->remote.tid;
	deputy->remote.calls = 0;
	deputy->info.filters = (uint32_t)deputy->sandbox.nfilters;
	deputy->info.trusted = deputy->sandbox.unreadable;
	deputy->info.attach_ns = sk_now_ns() - start;
	*out = deputy;
	return SK_OK;
}

/* The thread that would be borrowed first: nobody traces it. */
static enum sk_status check_threads(pid_t pid, struct sk_error *err)
{
	struct sk_task *tasks;
	size_t count, i;
	enum sk_status status = sk_tasks_list(pid, &tasks, &count, err);

	if (status)
		return status;
	status = no_thread(pid, err);
	for (i = 0; i < count; i++) {
		pid_t tracer;

		if (!may_be_borrowed(&tasks[i]))
			continue;
		tracer = sk_task_tracer(pid, tasks[i].tid);
		status = tracer ? traced_already(tasks[i].tid, tracer, err) : SK_OK;
		break;
	}
	free(tasks);
	return status;
}

enum sk_status sk_deputy_check(pid_t pid, struct sk_error *err)
{
	struct sk_gadgets ignored;
	enum sk_status status = check_target(pid, err);

	if (!status)
		status = check_threads(pid, err);
	/* reading its code takes the same rights as ptrace(2) */
	return status ? status : sk_gadgets_find(pid, &ignored, err);
}

/* ---- in use ---- */

void sk_deputy_info(const struct sk_deputy *deputy, struct sk_deputy_info *out)
{
	*out = deputy->info;
	out->calls = deputy->remote.calls;
}

enum sk_status sk_deputy_start(struct sk_deputy *deputy, int fd, uint64_t request, uint64_t argument,
                               struct sk_error *err)
{
	const uint64_t args[6] = { (uint64_t)fd, request, argument };
	enum sk_status status = check_owner(deputy, err);

	/* some VMMs list the requests that they make; an errno is an answer like any other */
	if (!status)
		status = sk_seccomp_check(&deputy->sandbox, deputy->gadgets.syscall_ret, SYS_ioctl, args, false, err);
	if (!status)
		status = sk_remote_enter(&deputy->remote, deputy->chain_sp, SYS_ioctl, args,
		                         deadline_in(deputy->timeout_ns), err);
	return status ? status : sk_remote_run(&deputy->remote, err);
}

enum sk_status sk_deputy_wait(struct sk_deputy *deputy, uint32_t timeout_ms, int64_t *result,
                              struct sk_error *err)
{
	enum sk_status status = check_owner(deputy, err);

	return status ? status
	              : sk_remote_wait(&deputy->remote, deadline_in((uint64_t)timeout_ms * 1000000u), result, err);
}

enum sk_status sk_deputy_hold(struct sk_deputy *deputy, const int32_t *tids, size_t ntids,
                              uint32_t timeout_ms, size_t *held, struct sk_error *err)
{
	struct sk_hold_request wanted = {
		.pid = deputy->remote.pid,
		.tids = tids,
		.ntids = ntids,
		.deputy_tid = deputy->remote.tid,
		.peers = deputy->found.peers,
		.npeers = deputy->found.npeers,
		.deadline_ns = deadline_in((uint64_t)timeout_ms * 1000000u),
	};
	enum sk_status status = check_owner(deputy, err);

	*held = 0;
	if (!status)
		status = sk_hold_take(&deputy->hold, &wanted, err);
	*held = deputy->hold.count;
	return status;
}

void sk_deputy_release(struct sk_deputy *deputy)
{
	sk_hold_release(&deputy->hold);
}

/* ---- leaving ---- */

/*
 * Unmap the control page, on which the deputy stands, and end the deputy. The registers change in the middle
 * of a harmless munmap(0, 0), in one step: before it the deputy still has its chain, after it it needs no
 * stack, because the call returns straight to "mov $60, %eax; syscall".
 */
static void leave(struct sk_deputy *deputy)
{
	static const uint64_t nothing[6];
	const uint64_t exit_sp = sk_control_exit_sp(deputy->control_hva);
	uint64_t deadline = deadline_in(deputy->timeout_ns);
	struct user_regs_struct regs;
	enum sk_stop stop = SK_STOP_SIGNAL;
	struct sk_error ignored;
	int signal = 0;

	if (sk_remote_enter(&deputy->remote, exit_sp, SYS_munmap, nothing, deadline, &ignored))
		return;
	if (deputy->gadgets.exit && !sk_trace_get_regs(deputy->remote.tid, &regs, &ignored)) {
		regs.rdi = deputy->control_hva;
		regs.rsi = SK_CONTROL_NBYTES;
		regs.rip = deputy->gadgets.exit;
		sk_trace_set_regs(deputy->remote.tid, &regs, &ignored);
	}
	while (stop != SK_STOP_GONE) {
		if (sk_trace_resume(deputy->remote.tid, signal, &ignored) ||
		    sk_trace_wait(deputy->remote.tid, deadline, &stop, &signal, &ignored))
			return;
	}
	deputy->remote.tid = 0;
}

void sk_deputy_close(struct sk_deputy *deputy, uint32_t timeout_ms)
{
	struct sk_error ignored;

	if (!deputy)
		return;
	sk_deputy_release(deputy);
	if (deputy->remote.tid && deputy->control_hva && deputy->owner == gettid() &&
	    !sk_remote_settle(&deputy->remote, deadline_in((uint64_t)timeout_ms * 1000000u), &ignored)) {
		/* from here on calls return to the plain exit chain: the arena is unmapped once only */
		deputy->chain_sp = sk_control_exit_sp(deputy->control_hva);
		if (!deputy->arena.nbytes || !unmap(deputy, deputy->arena, &ignored))
			leave(deputy);
	}
	/* a deputy that is still in a call finishes it when we end, and then cleans up by its chain */
	free(deputy->hold.tids);
	sk_seccomp_forget(&deputy->sandbox);
	free(deputy);
}
