#include "sk_scan.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#define FIRST_ROOM 512

_Static_assert(sizeof(struct sk_span) == 24, "Python unpacks arrays of struct sk_span");

struct sk_scan {
	struct sk_span *spans;
	size_t nspans;
	size_t spans_room;
	size_t spans_max;
	uint64_t *tables;
	size_t ntables;
	size_t tables_room;
	size_t tables_max;
	uint32_t flags_mask;
	uint32_t level_full; /* like totals.tables_full, but of this level only */
	struct sk_scan_totals totals;
};

static int compare_spans(const void *left, const void *right)
{
	const struct sk_span *a = left, *b = right;

	if (a->flags != b->flags)
		return a->flags < b->flags ? -1 : 1;
	return (a->gpa > b->gpa) - (a->gpa < b->gpa);
}

static int compare_tables(const void *left, const void *right)
{
	uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

	return (a > b) - (a < b);
}

/* Make span cover [gpa, gpa + nbytes) too if it starts no later and leaves no gap. */
static bool extend(struct sk_span *span, uint64_t gpa, uint64_t nbytes, uint64_t flags)
{
	if (span->flags != flags || gpa < span->gpa || gpa > span->gpa + span->nbytes)
		return false;
	if (gpa + nbytes > span->gpa + span->nbytes)
		span->nbytes = gpa + nbytes - span->gpa;
	return true;
}

static void merge_spans(struct sk_scan *scan)
{
	size_t kept = 0;

	if (!scan->nspans)
		return;
	qsort(scan->spans, scan->nspans, sizeof scan->spans[0], compare_spans);
	for (size_t i = 1; i < scan->nspans; i++) {
		const struct sk_span *span = &scan->spans[i];

		if (!extend(&scan->spans[kept], span->gpa, span->nbytes, span->flags))
			scan->spans[++kept] = *span;
	}
	scan->nspans = kept + 1;
}

static void merge_tables(struct sk_scan *scan)
{
	size_t kept = 0;

	if (!scan->ntables)
		return;
	qsort(scan->tables, scan->ntables, sizeof scan->tables[0], compare_tables);
	for (size_t i = 1; i < scan->ntables; i++)
		if (scan->tables[i] != scan->tables[kept])
			scan->tables[++kept] = scan->tables[i];
	scan->ntables = kept + 1;
}

/*
 * After merging, used of room elements are left. Half the room must be free, or the guest could make us merge
 * for every few elements. *full: there is no room to be had.
 */
static enum sk_status grow(void **array, size_t element_nbytes, size_t used, size_t *room, size_t max,
                           uint32_t *full, struct sk_error *err)
{
	size_t larger = *room > max / 2 ? max : *room * 2;
	void *grown;

	if (used <= *room / 2)
		return SK_OK;
	if (*room == max) {
		*full = 1;
		return SK_OK;
	}
	grown = realloc(*array, larger * element_nbytes);
	if (!grown)
		return sk_fail_errno(err, ENOMEM, "room for %zu results of a page-table scan", larger);
	*array = grown;
	*room = larger;
	return SK_OK;
}

static enum sk_status add_span(struct sk_scan *scan, uint64_t gpa, uint64_t nbytes, uint64_t flags,
                               struct sk_error *err)
{
	enum sk_status status;

	if (scan->nspans && extend(&scan->spans[scan->nspans - 1], gpa, nbytes, flags))
		return SK_OK;
	if (scan->totals.spans_full)
		return SK_OK;
	if (scan->nspans == scan->spans_room) {
		void *array = scan->spans;

		merge_spans(scan);
		status = grow(&array, sizeof scan->spans[0], scan->nspans, &scan->spans_room, scan->spans_max,
		              &scan->totals.spans_full, err);
		scan->spans = array;
		if (status || scan->totals.spans_full)
			return status;
	}
	scan->spans[scan->nspans++] = (struct sk_span){ gpa, nbytes, flags };
	return SK_OK;
}

static enum sk_status add_table(struct sk_scan *scan, uint64_t gpa, struct sk_error *err)
{
	enum sk_status status;

	if (scan->ntables && scan->tables[scan->ntables - 1] == gpa)
		return SK_OK;
	if (scan->level_full)
		return SK_OK;
	if (scan->ntables == scan->tables_room) {
		void *array = scan->tables;

		merge_tables(scan);
		status = grow(&array, sizeof scan->tables[0], scan->ntables, &scan->tables_room, scan->tables_max,
		              &scan->level_full, err);
		scan->tables = array;
		scan->totals.tables_full |= scan->level_full;
		if (status || scan->level_full)
			return status;
	}
	scan->tables[scan->ntables++] = gpa;
	return SK_OK;
}

enum sk_status sk_scan_create(uint32_t flags_mask, size_t max_spans, size_t max_tables, struct sk_scan **out,
                              struct sk_error *err)
{
	struct sk_scan *scan = calloc(1, sizeof *scan);

	*out = NULL;
	if (!scan)
		return sk_fail_errno(err, ENOMEM, "a page-table scan");
	scan->flags_mask = flags_mask;
	scan->spans_max = max_spans > FIRST_ROOM ? max_spans : FIRST_ROOM;
	scan->tables_max = max_tables > FIRST_ROOM ? max_tables : FIRST_ROOM;
	scan->spans_room = scan->tables_room = FIRST_ROOM;
	scan->spans = malloc(FIRST_ROOM * sizeof scan->spans[0]);
	scan->tables = malloc(FIRST_ROOM * sizeof scan->tables[0]);
	if (!scan->spans || !scan->tables) {
		sk_scan_destroy(scan);
		return sk_fail_errno(err, ENOMEM, "a page-table scan");
	}
	*out = scan;
	return SK_OK;
}

void sk_scan_destroy(struct sk_scan *scan)
{
	if (!scan)
		return;
	free(scan->spans);
	free(scan->tables);
	free(scan);
}

static enum sk_status scan_table(struct sk_scan *scan, const struct sk_paging *paging, uint32_t level,
                                 const void *table, struct sk_error *err)
{
	struct sk_run runs[SK_MAX_ENTRIES];
	size_t nruns = sk_walk_table(paging, level, table, runs);
	enum sk_status status = SK_OK;

	scan->totals.tables++;
	for (size_t i = 0; i < nruns && !status; i++) {
		const struct sk_run *run = &runs[i];

		if (run->flags & SK_RESERVED) {
			scan->totals.reserved += run->count;
		} else if (run->flags & SK_LEAF) {
			scan->totals.pages[level] += run->count;
			status = add_span(scan, run->gpa, run->page_nbytes * run->count, run->flags & scan->flags_mask,
			                  err);
		} else {
			status = add_table(scan, run->gpa, err);
		}
	}
	return status;
}

enum sk_status sk_scan_tables(struct sk_scan *scan, const struct sk_paging *paging, uint32_t level,
                              const void *tables, size_t ntables, struct sk_error *err)
{
	uint32_t table_nbytes = sk_walk_table_nbytes(paging, level);
	enum sk_status status = SK_OK;

	if (!table_nbytes)
		return sk_fail(err, SK_ERR_INVALID, 0, 0, "no page table has level %u", level);
	for (size_t i = 0; i < ntables && !status; i++)
		status = scan_table(scan, paging, level, (const char *)tables + i * table_nbytes, err);
	return status;
}

size_t sk_scan_take_tables(struct sk_scan *scan, const uint64_t **out)
{
	size_t ntables;

	merge_tables(scan);
	ntables = scan->ntables;
	scan->ntables = 0;
	scan->level_full = 0;
	*out = scan->tables;
	return ntables;
}

size_t sk_scan_spans(struct sk_scan *scan, const struct sk_span **out)
{
	merge_spans(scan);
	*out = scan->spans;
	return scan->nspans;
}

void sk_scan_totals(const struct sk_scan *scan, struct sk_scan_totals *out)
{
	*out = scan->totals;
}
