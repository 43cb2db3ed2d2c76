/* A thread of our own process with a descriptor table of its own, on which one system call at a time is made. */
#ifndef SK_WORKER_H
#define SK_WORKER_H

#include <stddef.h>
#include <stdint.h>

#include "sk_status.h"

struct sk_worker;

/*
 * Start one. Of the descriptors that are open now its table has copies of keep[0..nkeep), under the same numbers, and
 * no other; from then on the two tables have nothing to do with each other. All its signals are blocked.
 */
enum sk_status sk_worker_open(const int32_t *keep, size_t nkeep, struct sk_worker **out, struct sk_error *err);

/* Begin a system call with three arguments on it; SK_ERR_BUSY while another is in flight. */
enum sk_status sk_worker_start(struct sk_worker *worker, int64_t number, uint64_t arg0, uint64_t arg1,
                               uint64_t arg2, struct sk_error *err);

/* Its result, or -errno; SK_ERR_TIMEOUT if it has not returned, SK_ERR_INVALID if nothing was begun. */
enum sk_status sk_worker_wait(struct sk_worker *worker, uint32_t timeout_ms, int64_t *result,
                              struct sk_error *err);

/*
 * End the thread; its descriptors are closed and worker is freed. SK_ERR_TIMEOUT if a call does not come to its end
 * in time: the thread then does all this by itself when it does, and the memory that the call works on must stay.
 */
enum sk_status sk_worker_close(struct sk_worker *worker, uint32_t timeout_ms, struct sk_error *err);

#endif
