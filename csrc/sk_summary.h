/*
 * What is known of the tables that a listing has met, by guest-physical address and level: a bounded hash map.
 *
 * When it is full, or its memory cannot be had, something older is forgotten: that costs time, never truth.
 */
#ifndef SK_SUMMARY_H
#define SK_SUMMARY_H

#include <stddef.h>
#include <stdint.h>

#include "sk_status.h"

#define SK_SUMMARY_FLAG_BITS 10 /* SK_PRESENT ... SK_LEVEL3 */

/* One page as a table of one level. The last four count once `complete` is set. */
struct sk_summary {
	uint64_t page : 40;    /* gpa >> 12 */
	uint64_t level : 3;    /* 0: this place is free */
	uint64_t fetched : 1;  /* its bytes were handed in, for this level */
	uint64_t visited : 1;  /* it has been walked, or found to be unreadable */
	uint64_t complete : 1; /* all of what follows is known */
	uint64_t full : 1;     /* there is no hole in what it maps */
	uint64_t any : SK_SUMMARY_FLAG_BITS; /* flags of its leaves, as seen from this table down: or-ed, */
	uint64_t : 0;
	uint64_t all : SK_SUMMARY_FLAG_BITS; /* and-ed */
	uint64_t leaves : 54;  /* pages it maps in all: at most 512**5 */
};

struct sk_summaries;

/* max: how many are kept, about; never fewer than 1024 have room. seed: where a page hashes to; a guest must not know it. */
enum sk_status sk_summaries_create(size_t max, uint64_t seed, struct sk_summaries **out, struct sk_error *err);
void sk_summaries_destroy(struct sk_summaries *map);

/* What is known of this page as a table of this level, or NULL; valid until the next put. */
struct sk_summary *sk_summaries_find(const struct sk_summaries *map, uint64_t gpa, uint32_t level);

/* The same, made if need be, with nothing known. */
struct sk_summary *sk_summaries_put(struct sk_summaries *map, uint64_t gpa, uint32_t level);

/* Were the bytes of this page handed in, as a table of any level? */
int sk_summaries_fetched(const struct sk_summaries *map, uint64_t gpa);

/* Has something been forgotten? */
int sk_summaries_forgot(const struct sk_summaries *map);

#endif
