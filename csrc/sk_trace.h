/* ptrace, with bounded waits and nothing that could hurt the tracee if we die in between. */
#ifndef SK_TRACE_H
#define SK_TRACE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/user.h>

#include "sk_status.h"

/* What a stopped tracee stopped for. */
enum sk_stop {
	SK_STOP_EVENT,   /* PTRACE_EVENT_STOP: our PTRACE_INTERRUPT, a new thread, or a group stop */
	SK_STOP_SYSCALL, /* entry or exit of a system call */
	SK_STOP_CLONE,   /* PTRACE_EVENT_CLONE */
	SK_STOP_SIGNAL,  /* a signal is about to be delivered: pass it on */
	SK_STOP_GONE,    /* exited or killed */
};

/* CLOCK_MONOTONIC in nanoseconds. */
uint64_t sk_now_ns(void);

/* PTRACE_SEIZE with TRACESYSGOOD. Seizing does not stop the task. */
enum sk_status sk_trace_seize(pid_t tid, struct sk_error *err);

/*
 * From now on a thread that this stopped task adds is seized by the kernel and stops before its first
 * instruction. Not from the start: a thread that the task happens to be adding itself is not ours.
 */
enum sk_status sk_trace_follow_clone(pid_t tid, struct sk_error *err);

/*
 * Wait for the next stop of tid until deadline_ns; a signal's number goes to *signal for SK_STOP_SIGNAL. A child
 * of ours that has ended is left to whoever waits for it, and to its exit status.
 */
enum sk_status sk_trace_wait(pid_t tid, uint64_t deadline_ns, enum sk_stop *stop, int *signal,
                             struct sk_error *err);

/*
 * Bring a seized task to a PTRACE_EVENT_STOP, passing on signals that come first. From there the kernel
 * restarts an interrupted system call by itself when the task is let go.
 */
enum sk_status sk_trace_park(pid_t tid, uint64_t deadline_ns, struct sk_error *err);

/*
 * The same for a task that is in a ptrace-stop already, or running towards one: no instruction of the target
 * runs before the event stop unless it was running.
 */
enum sk_status sk_trace_park_again(pid_t tid, uint64_t deadline_ns, struct sk_error *err);

/* Resume a stopped task (with a signal, or 0) until it enters or leaves a system call. */
enum sk_status sk_trace_resume_to_syscall(pid_t tid, int signal, struct sk_error *err);

/*
 * The same, and wait for it, passing on what else happens. The id of a thread that was followed, in our pid
 * namespace, goes to *cloned (which may be NULL).
 */
enum sk_status sk_trace_to_syscall_stop(pid_t tid, uint64_t deadline_ns, pid_t *cloned, struct sk_error *err);

/* At a SK_STOP_SYSCALL: is it the call's entry? (Linux 5.3) */
enum sk_status sk_trace_is_entering(pid_t tid, bool *entering, struct sk_error *err);

enum sk_status sk_trace_get_regs(pid_t tid, struct user_regs_struct *regs, struct sk_error *err);
enum sk_status sk_trace_set_regs(pid_t tid, const struct user_regs_struct *regs, struct sk_error *err);
enum sk_status sk_trace_get_sigmask(pid_t tid, uint64_t *mask, struct sk_error *err);
enum sk_status sk_trace_set_sigmask(pid_t tid, uint64_t mask, struct sk_error *err);

/* The extended state (x87, SSE, AVX, ...) in the processor's standard XSAVE form. */
enum sk_status sk_trace_get_xstate(pid_t tid, void *buffer, size_t room, size_t *nbytes, struct sk_error *err);

/* Resume without stopping at system calls (signal 0: none). */
enum sk_status sk_trace_resume(pid_t tid, int signal, struct sk_error *err);

/* Let go of a stopped task. A task that vanished meanwhile is fine. */
void sk_trace_detach(pid_t tid);

#endif
