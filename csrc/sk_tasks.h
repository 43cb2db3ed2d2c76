/* The threads of a process, and which of them ptrace must leave alone. */
#ifndef SK_TASKS_H
#define SK_TASKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "sk_status.h"

struct sk_task {
	pid_t tid;
	char state;      /* R S D T t Z X ... */
	uint32_t flags;  /* PF_*, field 9 of /proc/PID/stat */
	uint64_t start;  /* start time, field 22, in clock ticks since boot */
};

/*
 * Kernel-driven (PF_USER_WORKER: KVM's huge-page recovery, vhost, io_uring), or dead: it can be seized but
 * never stops.
 */
bool sk_task_is_worker(const struct sk_task *task);
bool sk_task_is_dead(const struct sk_task *task);

/* One task; SK_ERR_NO_PROCESS when it is gone. */
enum sk_status sk_task_read(pid_t pid, pid_t tid, struct sk_task *out, struct sk_error *err);

/* All tasks, the main thread first; *tasks is malloc'ed. */
enum sk_status sk_tasks_list(pid_t pid, struct sk_task **tasks, size_t *count, struct sk_error *err);

/* A "Name:\tvalue" line of /proc/PID/status: its value goes to out; false if there is none. */
bool sk_task_status_field(pid_t pid, pid_t tid, const char *name, char *out, size_t room);

/* Who traces this task; 0 for nobody. */
pid_t sk_task_tracer(pid_t pid, pid_t tid);

#endif
