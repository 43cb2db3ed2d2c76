/* Holding threads of the target in ptrace-stop, so that vCPUs do not run. */
#ifndef SK_HOLD_H
#define SK_HOLD_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "sk_status.h"

struct sk_hold {
	pid_t *tids; /* malloc'ed */
	size_t count;
};

struct sk_hold_request {
	pid_t pid;
	const int32_t *tids;  /* these threads; with ntids 0, every thread */
	size_t ntids;
	pid_t deputy_tid;     /* never held */
	const pid_t *peers;   /* deputies of others: never held */
	size_t npeers;
	uint64_t deadline_ns;
};

/* Add threads to the hold. On failure, those that this call added are released again. */
enum sk_status sk_hold_take(struct sk_hold *hold, const struct sk_hold_request *wanted, struct sk_error *err);

/* Let all go. */
void sk_hold_release(struct sk_hold *hold);

#endif
