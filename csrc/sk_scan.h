/*
 * Many tables of one level at a time: the leaves they map, as few distinct ranges, and the tables they lead to.
 *
 * The caller fetches each table of a level once, hands the batch in, and takes the next level's tables out.
 * Nothing here recurses; what is kept is sorted and merged whenever its room is full, so memory grows with
 * what is distinct, not with how often it is mapped.
 */
#ifndef SK_SCAN_H
#define SK_SCAN_H

#include <stddef.h>
#include <stdint.h>

#include "sk_status.h"
#include "sk_walk.h"

/* A range of guest-physical memory that leaves of these flags map. */
struct sk_span {
	uint64_t gpa;
	uint64_t nbytes;
	uint64_t flags; /* SK_WRITABLE ..., less what the scan does not tell apart */
};

struct sk_scan_totals {
	uint64_t tables;      /* decoded */
	uint64_t pages[6];    /* leaf entries by the level they stand at; index 0 is unused */
	uint64_t reserved;    /* present entries with a reserved bit: they map nothing */
	uint32_t spans_full;  /* leaves were dropped: more than max_spans / 2 distinct ranges */
	uint32_t tables_full; /* tables were dropped: one level has more than max_tables / 2 distinct ones */
};

struct sk_scan;

/* flags_mask: the flags that tell spans apart. Room grows as needed up to the two maxima (at least 512). */
enum sk_status sk_scan_create(uint32_t flags_mask, size_t max_spans, size_t max_tables, struct sk_scan **out,
                              struct sk_error *err);
void sk_scan_destroy(struct sk_scan *scan);

/* Decode ntables tables of this level that lie one behind the other, sk_walk_table_nbytes each. */
enum sk_status sk_scan_tables(struct sk_scan *scan, const struct sk_paging *paging, uint32_t level,
                              const void *tables, size_t ntables, struct sk_error *err);

/*
 * The distinct tables that were led to since the last call, ascending; *out is ours and valid until the next
 * call of sk_scan_tables.
 */
size_t sk_scan_take_tables(struct sk_scan *scan, const uint64_t **out);

/* All spans so far, by flags and then gpa, none touching another of equal flags; valid as above. */
size_t sk_scan_spans(struct sk_scan *scan, const struct sk_span **out);

void sk_scan_totals(const struct sk_scan *scan, struct sk_scan_totals *out);

#endif
