/* Running system calls on a thread of another process that we hold in ptrace-stop. */
#ifndef SK_REMOTE_H
#define SK_REMOTE_H

#include <stdint.h>
#include <sys/types.h>

#include "sk_status.h"

struct sk_remote {
	pid_t pid;
	pid_t tid;            /* 0 once the thread is gone */
	uint64_t syscall_ret; /* borrowed code: syscall; ret */
	int stops_left;       /* of the call in flight; 0 when parked */
	uint64_t calls;       /* completed so far */
};

/* Say that the target has ended, and reap the thread: its process cannot be reaped before. */
enum sk_status sk_remote_lost(struct sk_remote *remote, struct sk_error *err);

/* Start a system call; when it returns, the thread's stack pointer is sp and it executes ret there. */
enum sk_status sk_remote_start(struct sk_remote *remote, uint64_t sp, long number, const uint64_t args[6],
                               struct sk_error *err);

/* Bring the call in flight to its exit stop, or (stops_to_leave 1) to its entry stop. SK_ERR_TIMEOUT: not yet. */
enum sk_status sk_remote_advance(struct sk_remote *remote, uint64_t deadline_ns, int stops_to_leave,
                                 struct sk_error *err);

/* Bring it to its exit stop; *result is the kernel's raw answer. */
enum sk_status sk_remote_wait(struct sk_remote *remote, uint64_t deadline_ns, int64_t *result,
                              struct sk_error *err);

/* Start and wait. */
enum sk_status sk_remote_call(struct sk_remote *remote, uint64_t sp, long number, const uint64_t args[6],
                              uint64_t deadline_ns, int64_t *result, struct sk_error *err);

#endif
