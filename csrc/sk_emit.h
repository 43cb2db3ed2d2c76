/*
 * What a listing of page tables puts into its caller's buffer: leaves or runs, as records or as lines of text.
 *
 * Addresses come in as struct sk_space counts them, and go out as guest-virtual ones.
 */
#ifndef SK_EMIT_H
#define SK_EMIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "sk_list.h"
#include "sk_space.h"

struct sk_emit {
	uint32_t kind;       /* enum sk_list_kind */
	uint32_t tell_apart; /* flags by which runs are kept apart */
	const struct sk_space *space;
	size_t record_nbytes;
	char *out;
	char *out_end;
	bool run_open;       /* a run has begun and may go on */
	uint64_t run_start;
	uint64_t run_end;
	uint32_t run_flags;
};

/* space lives as long as emit does. */
void sk_emit_init(struct sk_emit *emit, uint32_t kind, uint32_t tell_apart, const struct sk_space *space);

/* The buffer that is filled from now on. */
void sk_emit_into(struct sk_emit *emit, void *buffer, size_t nbytes);

static inline bool sk_emit_makes_runs(const struct sk_emit *emit)
{
	return emit->kind == SK_LIST_RUNS || emit->kind == SK_LIST_RUNS_TEXT;
}

/* Is there room for one record? Each of the calls below takes that of one at most, and may be made only then. */
static inline bool sk_emit_has_room(const struct sk_emit *emit)
{
	return (size_t)(emit->out_end - emit->out) >= emit->record_nbytes;
}

/* leaf->gva is counted as in the space. */
void sk_emit_leaf(struct sk_emit *emit, const struct sk_list_leaf *leaf);

/* [start, end) is mapped with these flags; neighbours come in order, and become one run as far as they agree. */
void sk_emit_run(struct sk_emit *emit, uint64_t start, uint64_t end, uint32_t flags);

/* The run that is open, if there is one, is over. */
void sk_emit_end_run(struct sk_emit *emit);

#endif
