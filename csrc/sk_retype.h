/*
 * Change one argument of an ioctl that waits for our answer (sk_notify.h) on its way into the kernel.
 *
 * Seccomp notification can answer a call or let it pass, but not change it. So its thread is borrowed for a moment:
 * seized and interrupted, which withdraws the call, given another argument, and let go so that the call begins
 * again. Then comes a second notification, with the new argument; it is continued, the result is read where the
 * call returns, and the argument register is put back. No single-stepping, no signal stop is left behind: if we
 * are killed in between, the thread goes on by itself (with ENOSYS, since nobody answers any more).
 */
#ifndef SK_RETYPE_H
#define SK_RETYPE_H

#include <stdint.h>

#include "sk_status.h"

/* A borrowed thread. All calls on one must come from the thread that began it. */
struct sk_retype {
	int32_t tid;
	uint64_t argument; /* what the thread itself passed */
	uint64_t sigmask;  /* its own; every signal is blocked meanwhile */
};

/*
 * Borrow a thread whose ioctl with this request waits for an answer (interruptibly: the filter must not be one with
 * WAIT_KILLABLE_RECV), and start the call again with new_argument. Nothing is changed when this fails:
 * SK_ERR_NO_PROCESS if the call was given up meanwhile (it comes again by itself, or not), SK_ERR_PERMISSION if the
 * thread cannot be traced, for one because somebody else does.
 */
enum sk_status sk_retype_begin(int32_t tid, uint64_t request, uint64_t new_argument, uint32_t timeout_ms,
                               struct sk_retype *out, struct sk_error *err);

/*
 * Wait until the call has returned; the thread stands still then, with *result in its register. SK_ERR_TIMEOUT:
 * not yet (ask again). SK_ERR_NO_PROCESS: the thread has died, and is no longer borrowed.
 */
enum sk_status sk_retype_wait(const struct sk_retype *retype, uint32_t timeout_ms, int64_t *result,
                              struct sk_error *err);

/* Put the argument and the signal mask back and let the thread go; only after sk_retype_wait said SK_OK. */
void sk_retype_end(const struct sk_retype *retype);

#endif
