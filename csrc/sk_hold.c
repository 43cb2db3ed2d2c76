#define _GNU_SOURCE
#include "sk_hold.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#include "sk_tasks.h"
#include "sk_trace.h"

#define PASSES_MAX 100

static bool among(pid_t tid, const int32_t *tids, size_t count)
{
	size_t i;

	for (i = 0; i < count; i++)
		if (tids[i] == tid)
			return true;
	return false;
}

static bool wants(const struct sk_hold *hold, const struct sk_hold_request *wanted, const struct sk_task *task)
{
	if (task->tid == wanted->deputy_tid || among(task->tid, wanted->peers, wanted->npeers))
		return false;
	/* a kernel-driven task can be seized but never stops, and runs no guest */
	if (sk_task_is_worker(task) || sk_task_is_dead(task))
		return false;
	if (wanted->ntids && !among(task->tid, wanted->tids, wanted->ntids))
		return false;
	return !among(task->tid, hold->tids, hold->count);
}

static enum sk_status remember(struct sk_hold *hold, pid_t tid, struct sk_error *err)
{
	pid_t *grown = realloc(hold->tids, (hold->count + 1) * sizeof *grown);

	if (!grown)
		return sk_fail_errno(err, ENOMEM, "room for %zu threads", hold->count + 1);
	hold->tids = grown;
	hold->tids[hold->count++] = tid;
	return SK_OK;
}

/* Seize and stop one pass of threads; *found counts those that were new. */
static enum sk_status take_pass(struct sk_hold *hold, const struct sk_hold_request *wanted, size_t *found,
                                struct sk_error *err)
{
	struct sk_task *tasks;
	size_t count, i;
	enum sk_status status = sk_tasks_list(wanted->pid, &tasks, &count, err);

	*found = 0;
	for (i = 0; !status && i < count; i++) {
		pid_t tid = tasks[i].tid;

		if (!wants(hold, wanted, &tasks[i]))
			continue;
		status = sk_trace_seize(tid, err);
		if (status == SK_ERR_PERMISSION && sk_task_tracer(wanted->pid, tid))
			status = sk_fail(err, SK_ERR_TRACED, 0, 0, "thread %d is traced by process %d already",
			                 (int)tid, (int)sk_task_tracer(wanted->pid, tid));
		if (!status)
			status = sk_trace_park(tid, wanted->deadline_ns, err);
		if (status == SK_ERR_NO_PROCESS) { /* it ended while we looked */
			status = SK_OK;
			continue;
		}
		if (!status)
			status = remember(hold, tid, err);
		++*found;
	}
	free(tasks);
	return status;
}

static void release_from(struct sk_hold *hold, size_t first)
{
	while (hold->count > first)
		sk_trace_detach(hold->tids[--hold->count]);
}

enum sk_status sk_hold_take(struct sk_hold *hold, const struct sk_hold_request *wanted, struct sk_error *err)
{
	size_t before = hold->count, found = 1;
	enum sk_status status = SK_OK;
	int pass;

	for (pass = 0; !status && found; pass++) {
		if (pass == PASSES_MAX)
			status = sk_fail(err, SK_ERR_TIMEOUT, 0, 0, "process %d keeps adding threads",
			                 (int)wanted->pid);
		else
			status = take_pass(hold, wanted, &found, err);
	}
	if (status)
		release_from(hold, before);
	return status;
}

void sk_hold_release(struct sk_hold *hold)
{
	release_from(hold, 0);
}
