#define _GNU_SOURCE
#include "sk_remote.h"

#include <sys/user.h>

#include "sk_borrow.h"
#include "sk_trace.h"

#define STOPS_PER_CALL 2 /* entry, exit */

enum sk_status sk_remote_lost(struct sk_remote *remote, struct sk_error *err)
{
	if (remote->tid)
		sk_trace_detach(remote->tid);
	remote->tid = 0;
	remote->stops_left = 0;
	return sk_fail(err, SK_ERR_LOST, 0, 0, "process %d ended while attached", (int)remote->pid);
}

enum sk_status sk_remote_start(struct sk_remote *remote, uint64_t sp, long number, const uint64_t args[6],
                               struct sk_error *err)
{
	struct user_regs_struct regs;
	enum sk_status status;

	if (!remote->tid)
		return sk_remote_lost(remote, err);
	if (remote->stops_left)
		return sk_fail(err, SK_ERR_BUSY, 0, 0, "the deputy is still in a system call");
	status = sk_trace_get_regs(remote->tid, &regs, err);
	if (!status) {
		sk_prepare_call(&regs, remote->syscall_ret, sp, number, args);
		status = sk_trace_set_regs(remote->tid, &regs, err);
	}
	if (!status)
		status = sk_trace_resume_to_syscall(remote->tid, 0, err);
	if (status == SK_ERR_NO_PROCESS)
		return sk_remote_lost(remote, err);
	if (!status)
		remote->stops_left = STOPS_PER_CALL;
	return status;
}

enum sk_status sk_remote_advance(struct sk_remote *remote, uint64_t deadline_ns, int stops_to_leave,
                                 struct sk_error *err)
{
	while (remote->stops_left > stops_to_leave) {
		enum sk_stop stop;
		int signal;
		enum sk_status status = sk_trace_wait(remote->tid, deadline_ns, &stop, &signal, err);

		if (status)
			return status;
		if (stop == SK_STOP_GONE)
			return sk_remote_lost(remote, err);
		if (stop == SK_STOP_SYSCALL && --remote->stops_left == stops_to_leave)
			break;
		status = sk_trace_resume_to_syscall(remote->tid, signal, err);
		if (status)
			return status == SK_ERR_NO_PROCESS ? sk_remote_lost(remote, err) : status;
	}
	return SK_OK;
}

enum sk_status sk_remote_wait(struct sk_remote *remote, uint64_t deadline_ns, int64_t *result,
                              struct sk_error *err)
{
	struct user_regs_struct regs;
	enum sk_status status;

	if (!remote->tid)
		return sk_remote_lost(remote, err);
	status = sk_remote_advance(remote, deadline_ns, 0, err);
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
	enum sk_status status = sk_remote_start(remote, sp, number, args, err);

	return status ? status : sk_remote_wait(remote, deadline_ns, result, err);
}
