#define _GNU_SOURCE
#include "sk_remote.h"

#include <sys/user.h>

#include "sk_borrow.h"
#include "sk_trace.h"

enum sk_status sk_remote_lost(struct sk_remote *remote, struct sk_error *err)
{
	if (remote->tid)
		sk_trace_detach(remote->tid);
	remote->tid = 0;
	remote->state = SK_REMOTE_PARKED;
	return sk_fail(err, SK_ERR_LOST, 0, 0, "process %d ended while attached", (int)remote->pid);
}

static enum sk_status resume(struct sk_remote *remote, int signal, struct sk_error *err)
{
	enum sk_status status = sk_trace_resume_to_syscall(remote->tid, signal, err);

	return status == SK_ERR_NO_PROCESS ? sk_remote_lost(remote, err) : status;
}

/* Wait for the next entry or exit of a system call, passing on what else happens. */
static enum sk_status await_syscall_stop(struct sk_remote *remote, uint64_t deadline_ns, struct sk_error *err)
{
	for (;;) {
		enum sk_stop stop;
		int signal;
		enum sk_status status = sk_trace_wait(remote->tid, deadline_ns, &stop, &signal, err);

		if (status || stop == SK_STOP_SYSCALL)
			return status;
		if (stop == SK_STOP_GONE)
			return sk_remote_lost(remote, err);
		status = resume(remote, signal, err);
		if (status)
			return status;
	}
}

enum sk_status sk_remote_enter(struct sk_remote *remote, uint64_t sp, long number, const uint64_t args[6],
                               uint64_t deadline_ns, struct sk_error *err)
{
	struct user_regs_struct regs;
	enum sk_status status;

	if (!remote->tid)
		return sk_remote_lost(remote, err);
	if (remote->state != SK_REMOTE_PARKED)
		return sk_fail(err, SK_ERR_BUSY, 0, 0, "the deputy is still in a system call");
	status = sk_trace_get_regs(remote->tid, &regs, err);
	if (!status) {
		sk_prepare_call(&regs, remote->syscall_ret, sp, number, args);
		status = sk_trace_set_regs(remote->tid, &regs, err);
	}
	if (status == SK_ERR_NO_PROCESS)
		return sk_remote_lost(remote, err);
	if (!status)
		status = resume(remote, 0, err);
	if (!status)
		status = await_syscall_stop(remote, deadline_ns, err);
	if (!status)
		remote->state = SK_REMOTE_ENTERED;
	if (status == SK_ERR_TIMEOUT)
		remote->tid = 0; /* between two stops nothing more can be asked of it; its chain cleans up behind us */
	return status;
}

enum sk_status sk_remote_run(struct sk_remote *remote, struct sk_error *err)
{
	enum sk_status status = resume(remote, 0, err);

	if (!status)
		remote->state = SK_REMOTE_RUNNING;
	return status;
}

enum sk_status sk_remote_settle(struct sk_remote *remote, uint64_t deadline_ns, struct sk_error *err)
{
	enum sk_status status = SK_OK;

	if (!remote->tid)
		return sk_remote_lost(remote, err);
	if (remote->state == SK_REMOTE_ENTERED)
		status = sk_remote_run(remote, err);
	if (!status && remote->state == SK_REMOTE_RUNNING)
		status = await_syscall_stop(remote, deadline_ns, err);
	if (!status)
		remote->state = SK_REMOTE_PARKED;
	return status;
}

enum sk_status sk_remote_wait(struct sk_remote *remote, uint64_t deadline_ns, int64_t *result,
                              struct sk_error *err)
{
	struct user_regs_struct regs;
	enum sk_status status = sk_remote_settle(remote, deadline_ns, err);

	if (!status)
		status = sk_trace_get_regs(remote->tid, &regs, err);
	if (status == SK_ERR_NO_PROCESS)
		return sk_remote_lost(remote, err);
	if (status)
		return status;
	*result = (int64_t)regs.rax;
	remote->calls++;
	return SK_OK;
}

enum sk_status sk_remote_call(struct sk_remote *remote, uint64_t sp, long number, const uint64_t args[6],
                              uint64_t deadline_ns, int64_t *result, struct sk_error *err)
{
	enum sk_status status = sk_remote_enter(remote, sp, number, args, deadline_ns, err);

	if (!status)
		status = sk_remote_run(remote, err);
	return status ? status : sk_remote_wait(remote, deadline_ns, result, err);
}
