/*
 * What an address space maps, in the order of its addresses: every leaf, or runs of equal rights.
 *
 * Pull-style, no callbacks: the caller steps; when tables are missing it is told which, hands them in one after
 * the other, and steps on; records come out in a buffer of its own. One cursor walks depth first. When it needs a
 * table, the tables that it will need next on that level are asked for with it, as far as the tables above them are
 * there: upper levels arrive in few batches, page tables in windows, and records flow before the last is read.
 *
 * Tables are hostile input. Depth is bounded by the levels, work by the budget of a step, memory by the options.
 * What a table maps is remembered per level once it has been walked as a whole: a subtree that maps nothing is never
 * walked again, and one that is a single run is one step wherever it is mapped again.
 */
#ifndef SK_LIST_H
#define SK_LIST_H

#include <stddef.h>
#include <stdint.h>

#include "sk_space.h"
#include "sk_status.h"
#include "sk_walk.h"

#define SK_LIST_MAX_WANTED 256

/* Of a leaf's flags, beside those of sk_walk.h: the level it stands at. */
enum {
	SK_LEVEL1 = 1 << 7,
	SK_LEVEL2 = 1 << 8,
	SK_LEVEL3 = 1 << 9,
};

enum sk_list_kind {
	SK_LIST_LEAVES = 0,    /* struct sk_list_leaf */
	SK_LIST_RUNS,          /* struct sk_list_run; none crosses the middle of the address space */
	SK_LIST_LEAVES_TEXT,   /* lines of sk_line.h */
	SK_LIST_RUNS_TEXT,     /* likewise; rights are SK_WRITABLE and SK_USER */
};

enum sk_list_state {
	SK_LIST_AGAIN = 0, /* the buffer is full, or the step has done its share */
	SK_LIST_TABLES,    /* hand in what sk_list_wanted() names */
	SK_LIST_DONE,
};

struct sk_list_options {
	uint32_t kind;           /* enum sk_list_kind */
	uint32_t tell_apart;     /* SK_LIST_RUNS: flags by which runs are kept apart; the others are not told */
	uint64_t root_gpa;       /* of the top table */
	uint64_t cache_pages;    /* table pages kept */
	uint64_t summaries;      /* tables remembered, 16 to 40 bytes each */
	uint64_t unreadable;     /* unreadable tables that are listed; all are counted */
};

/* flags: SK_WRITABLE and SK_USER and-ed down the walk, SK_NX or-ed; the others are the leaf's own. */
struct sk_list_leaf {
	uint64_t gva;
	uint64_t gpa;
	uint64_t nbytes;
	uint64_t level;
	uint64_t entry; /* as stored */
	uint64_t flags;
};

struct sk_list_run {
	uint64_t gva;
	uint64_t nbytes;
	uint64_t flags;
};

/* An entry (or the root) leads to a table where nothing can be read; gva: the first address it would translate. */
struct sk_list_unreadable {
	uint64_t level;
	uint64_t gpa;
	uint64_t gva;
};

struct sk_list_totals {
	uint64_t fetched;             /* distinct table pages handed in */
	uint64_t refetched;           /* handed in again: the cache was too small */
	uint64_t tables[6];           /* distinct tables walked, by level; index 0 is unused */
	uint64_t leaves;              /* listed, or part of a run */
	uint64_t reserved;            /* present entries with a reserved bit: they map nothing; each table's count once */
	uint64_t unreadable;          /* distinct tables that cannot be read */
	uint64_t unreadable_listed;
	uint32_t summaries_forgotten; /* what is said to be distinct may not be */
};

struct sk_list;

/*
 * ranges: any order; what they have of the address space is listed, cut to it in runs (a leaf is listed whole).
 * SK_ERR_INVALID for a paging mode that has no tables or is none.
 */
enum sk_status sk_list_create(const struct sk_paging *paging, const struct sk_list_options *options,
                              const struct sk_list_range *ranges, size_t nranges, struct sk_list **out,
                              struct sk_error *err);
void sk_list_destroy(struct sk_list *list);

/* Walk on, for a bounded time. *used bytes of the buffer were filled; it has room for a record at least. */
enum sk_list_state sk_list_step(struct sk_list *list, void *buffer, size_t nbytes, size_t *used);

/* The gpas (page-aligned, distinct) of the tables that are missing; valid until the last of them was supplied. */
size_t sk_list_wanted(const struct sk_list *list, const uint64_t **gpas);

/* Hand in the next wanted table: its 4096 bytes, decrypted, or NULL if it cannot be read. Not wanted: ignored. */
void sk_list_supply(struct sk_list *list, const void *page);

void sk_list_totals(const struct sk_list *list, struct sk_list_totals *out);

/* Those that are listed: totals.unreadable_listed of them. */
const struct sk_list_unreadable *sk_list_unreadable(const struct sk_list *list);

#endif
