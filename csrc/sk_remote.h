/* Running system calls on a thread of another process that we hold in ptrace-stop. */
#ifndef SK_REMOTE_H
#define SK_REMOTE_H

#include <stdint.h>
#include <sys/types.h>

#include "sk_status.h"

enum sk_remote_state {
	SK_REMOTE_PARKED,  /* at the exit stop of its last call */
	SK_REMOTE_ENTERED, /* at the entry stop of a call that has not begun */
	SK_REMOTE_RUNNING, /* in the call, with nobody's help */
};

struct sk_remote {
	pid_t pid;
	pid_t tid;            /* 0 once the thread is gone */
	uint64_t syscall_ret; /* borrowed code: syscall; ret */
	enum sk_remote_state state;
	uint64_t calls; /* completed so far */
};

/* Say that the target has ended, and reap the thread: its process cannot be reaped before. */
enum sk_status sk_remote_lost(struct sk_remote *remote, struct sk_error *err);

/*
 * Bring a parked thread to the entry of a system call; when that returns, its stack pointer is sp and it
 * executes ret there. SK_ERR_BUSY unless it is parked.
 */
enum sk_status sk_remote_enter(struct sk_remote *remote, uint64_t sp, long number, const uint64_t args[6],
                               uint64_t deadline_ns, struct sk_error *err);

/* Let it make the call that it has entered: it runs on while we do other things. */
enum sk_status sk_remote_run(struct sk_remote *remote, struct sk_error *err);

/* Wait until it is parked again. SK_ERR_TIMEOUT: not yet. */
enum sk_status sk_remote_settle(struct sk_remote *remote, uint64_t deadline_ns, struct sk_error *err);

/* The same; *result is the kernel's raw answer to the call. */
enum sk_status sk_remote_wait(struct sk_remote *remote, uint64_t deadline_ns, int64_t *result,
                              struct sk_error *err);

/* All of it: enter, run, wait. */
enum sk_status sk_remote_call(struct sk_remote *remote, uint64_t sp, long number, const uint64_t args[6],
                              uint64_t deadline_ns, int64_t *result, struct sk_error *err);

#endif
