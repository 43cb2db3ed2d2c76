#define _GNU_SOURCE
#include "sk_retype.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include "sk_trace.h"

/* The kernel's own errors that restart a call (include/linux/errno.h): programs never see them, tracers do. */
#define ERESTARTSYS 512
#define ERESTARTNOINTR 513
#define ERESTARTNOHAND 514
#define ERESTART_RESTARTBLOCK 516

static uint64_t deadline_in(uint32_t timeout_ms)
{
	return sk_now_ns() + (uint64_t)timeout_ms * 1000000u;
}

static bool will_restart(const struct user_regs_struct *regs)
{
	switch (-(int64_t)regs->rax) {
	case ERESTARTSYS:
	case ERESTARTNOINTR:
	case ERESTARTNOHAND:
	case ERESTART_RESTARTBLOCK:
		return true;
	default:
		return false;
	}
}

/* Is the thread, stopped, about to begin its ioctl again? It could have got anywhere since the notification. */
static bool is_withdrawn_ioctl(const struct user_regs_struct *regs, uint64_t request)
{
	return regs->orig_rax == SYS_ioctl && (uint32_t)regs->rsi == (uint32_t)request && will_restart(regs);
}

static enum sk_status rewrite(struct sk_retype *retype, uint64_t request, uint64_t new_argument,
                              struct sk_error *err)
{
	struct user_regs_struct regs;
	enum sk_status status = sk_trace_get_regs(retype->tid, &regs, err);

	if (!status && !is_withdrawn_ioctl(&regs, request))
		status = sk_fail(err, SK_ERR_NO_PROCESS, 0, 0, "the call has been given up");
	if (!status)
		status = sk_trace_get_sigmask(retype->tid, &retype->sigmask, err);
	if (status)
		return status;
	retype->argument = regs.rdx;
	regs.rdx = new_argument;
	/* a handler would return into the call with its changed argument, and nobody would put that back */
	status = sk_trace_set_sigmask(retype->tid, ~UINT64_C(0), err);
	if (!status)
		status = sk_trace_set_regs(retype->tid, &regs, err);
	if (!status)
		status = sk_trace_resume_to_syscall(retype->tid, 0, err);
	if (status)
		sk_trace_set_sigmask(retype->tid, retype->sigmask, NULL);
	return status;
}

/* Every stop but the call's return lets the thread go on towards it. */
static enum sk_status pass_stop(const struct sk_retype *retype, enum sk_stop stop, int signal, bool *returned,
                                int64_t *result, struct sk_error *err)
{
	struct user_regs_struct regs;
	bool entering = false;
	enum sk_status status = SK_OK;

	*returned = false;
	if (stop == SK_STOP_GONE)
		return sk_fail(err, SK_ERR_NO_PROCESS, ESRCH, 0, "thread %d ended", (int)retype->tid);
	if (stop == SK_STOP_SYSCALL) {
		status = sk_trace_is_entering(retype->tid, &entering, err);
		if (!status)
			status = sk_trace_get_regs(retype->tid, &regs, err);
		if (status)
			return status;
		*returned = !entering && !will_restart(&regs);
		*result = (int64_t)regs.rax;
	}
	return *returned ? SK_OK : sk_trace_resume_to_syscall(retype->tid, signal, err);
}

enum sk_status sk_retype_begin(int32_t tid, uint64_t request, uint64_t new_argument, uint32_t timeout_ms,
                               struct sk_retype *out, struct sk_error *err)
{
	uint64_t deadline_ns = deadline_in(timeout_ms);
	enum sk_stop stop;
	bool returned;
	int64_t result;
	int signal;
	enum sk_status status;

	*out = (struct sk_retype){ .tid = tid };
	status = sk_trace_seize(tid, err);
	if (status)
		return status;
	status = sk_trace_park(tid, deadline_ns, err);
	if (!status)
		status = rewrite(out, request, new_argument, err);
	if (status) {
		sk_trace_detach(tid);
		return status;
	}
	/* to the call's entry, and past it into the filter; whoever is late for that is met by sk_retype_wait */
	if (sk_trace_wait(tid, deadline_ns, &stop, &signal, NULL) == SK_OK)
		return pass_stop(out, stop, signal, &returned, &result, err);
	return SK_OK;
}

enum sk_status sk_retype_wait(const struct sk_retype *retype, uint32_t timeout_ms, int64_t *result,
                              struct sk_error *err)
{
	uint64_t deadline_ns = deadline_in(timeout_ms);
	bool returned = false;

	while (!returned) {
		enum sk_stop stop;
		int signal;
		enum sk_status status = sk_trace_wait(retype->tid, deadline_ns, &stop, &signal, err);

		if (status)
			return status;
		status = pass_stop(retype, stop, signal, &returned, result, err);
		/* killed where it stood: its end is still to come, and to be waited for */
		if (status && (status != SK_ERR_NO_PROCESS || stop == SK_STOP_GONE))
			return status;
	}
	return SK_OK;
}

void sk_retype_end(const struct sk_retype *retype)
{
	struct user_regs_struct regs;

	if (sk_trace_get_regs(retype->tid, &regs, NULL) == SK_OK) {
		regs.rdx = retype->argument;
		sk_trace_set_regs(retype->tid, &regs, NULL);
		sk_trace_set_sigmask(retype->tid, retype->sigmask, NULL);
	}
	sk_trace_detach(retype->tid);
}
