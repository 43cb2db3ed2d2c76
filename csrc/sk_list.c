#include "sk_list.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "sk_cache.h"
#include "sk_emit.h"
#include "sk_rights.h"
#include "sk_summary.h"

#define MAX_LEVELS 5
#define PAGE_OFFSET 0xfffULL

#define STEP_BUDGET (1U << 18)  /* runs of entries and records of one step: a few milliseconds */
#define AHEAD_BUDGET (1U << 18) /* entries looked at for one batch of tables */
#define TABLE_COST 64           /* what decoding a table counts in both */
#define WANTED_HASH 1024

_Static_assert((SK_LEVEL1 | SK_LEVEL2 | SK_LEVEL3) > SK_RESERVED * 2 - 1, "flags of their own");
_Static_assert(SK_LEVEL3 < 1 << SK_SUMMARY_FLAG_BITS, "summaries hold all flags");
_Static_assert(sizeof(struct sk_list_leaf) == 48 && sizeof(struct sk_list_run) == 24 &&
               sizeof(struct sk_list_unreadable) == 24, "Python unpacks arrays of these");

/* A table on a path, decoded, and where the path goes on from it. */
struct place {
	const struct sk_run *runs;
	uint32_t nruns;
	uint32_t run;       /* the path leads on through this one; of leaves, the one that is being listed */
	uint32_t level;
	uint32_t inherited; /* SK_WRITABLE, SK_USER and SK_NX as the entries above leave them */
	uint64_t base;      /* the first address it translates */
	bool whole;         /* all that it translates lies in one range */
};

struct frame {
	struct place place;
	struct sk_run runs[SK_MAX_ENTRIES];
	const void *table;
	uint64_t gpa;
	uint32_t slot;
	uint32_t done;      /* entries of the current run that have been listed */
	bool fresh;         /* visited for the first time */
	/* what becomes its summary */
	uint64_t leaves;
	uint32_t all;
	uint32_t any;
	uint32_t covered;   /* entries without a hole in what they map */
};

struct sk_list {
	struct sk_paging paging;
	struct sk_list_options options;
	uint32_t levels;
	uint32_t shifts[MAX_LEVELS + 1]; /* sk_walk_shift by level */
	struct sk_space space; /* addresses are counted as there */
	size_t range;          /* the first of the space's that does not end before the cursor */
	uint64_t rights_bits;  /* for sk_rights_runs; 0: page tables are to be decoded as they are */

	struct sk_cache *cache;
	struct sk_summaries *summaries;
	struct frame frames[MAX_LEVELS];
	uint32_t depth;
	bool entered;      /* the root was */

	uint64_t wanted[SK_LIST_MAX_WANTED];
	size_t window;     /* how many may be wanted at once */
	size_t nwanted;
	size_t nsupplied;
	uint32_t wanted_level;
	uint16_t wanted_hash[WANTED_HASH]; /* 1 + index in wanted */
	struct sk_run ahead_runs[MAX_LEVELS + 1][SK_MAX_ENTRIES];

	struct sk_emit emit;
	struct sk_list_unreadable *unreadable;
	struct sk_list_totals totals;
};

/* Flags as seen through an entry, or a path of entries, with these flags. */
static uint32_t seen_through(uint32_t entry, uint32_t flags)
{
	return (flags & (entry | ~(uint32_t)(SK_WRITABLE | SK_USER))) | (entry & SK_NX);
}

static uint64_t entry_start(const struct sk_list *list, const struct place *place, uint32_t index)
{
	return place->base + ((uint64_t)index << list->shifts[place->level]);
}

static bool lies_in(const struct sk_list_range *range, uint64_t first, uint64_t last)
{
	return range->first <= first && last <= range->last;
}

/* What is known of tables */

enum verdict { WALK, NOTHING_THERE, ONE_RUN };

/* Must this table be walked? whole: all that it translates is asked for. */
static enum verdict judge(const struct sk_list *list, const struct sk_summary *known, uint32_t inherited, bool whole)
{
	if (!known || !known->complete)
		return WALK;
	if (!known->leaves)
		return NOTHING_THERE;
	if (!sk_emit_makes_runs(&list->emit) || !whole || !known->full)
		return WALK;
	if ((seen_through(inherited, known->all) ^ seen_through(inherited, known->any)) & list->emit.tell_apart)
		return WALK;
	return ONE_RUN;
}

static void fold(struct frame *frame, uint64_t leaves, uint32_t all, uint32_t any, uint32_t covered)
{
	frame->leaves += leaves; /* no overflow: at most 512**5 */
	if (leaves) {
		frame->all &= all;
		frame->any |= any;
	}
	frame->covered += covered;
}

/* The current entry of this frame leads to a table of which all is known: take it into account, go on behind it. */
static void pass(struct frame *frame, uint64_t leaves, uint32_t all, uint32_t any, bool full)
{
	uint32_t entry = frame->runs[frame->place.run++].flags;

	fold(frame, leaves, seen_through(entry, all), seen_through(entry, any), full);
}

static void note_unreadable(struct sk_list *list, uint64_t gpa, uint32_t level, uint64_t base)
{
	struct sk_summary *known = sk_summaries_put(list->summaries, gpa, level);

	if (known->visited)
		return;
	known->visited = known->complete = 1;
	list->totals.unreadable++;
	if (list->totals.unreadable_listed < list->options.unreadable)
		list->unreadable[list->totals.unreadable_listed++] =
			(struct sk_list_unreadable){ level, gpa, sk_space_gva(&list->space, base) };
}

static const void *table_in(const struct sk_list *list, uint32_t slot, uint64_t gpa, uint32_t level)
{
	const char *page = sk_cache_page(list->cache, slot);

	/* PAE's top table is a small part of a page */
	if (page && sk_walk_table_nbytes(&list->paging, level) < SK_TABLE_NBYTES)
		page += gpa & PAGE_OFFSET & -sk_walk_table_nbytes(&list->paging, level);
	return page;
}

/* The path */

/* Go into the table that a slot holds. False: it cannot be read. */
static bool enter(struct sk_list *list, uint32_t slot, uint64_t gpa, struct place place)
{
	struct frame *frame = &list->frames[list->depth];
	const void *table = table_in(list, slot, gpa, place.level);
	struct sk_summary *known;

	sk_cache_pin(list->cache, slot, place.level);
	if (!table) {
		sk_cache_unpin(list->cache, slot);
		note_unreadable(list, gpa, place.level, place.base);
		return false;
	}
	known = sk_summaries_put(list->summaries, gpa, place.level);
	frame->fresh = !known->visited;
	known->visited = 1;
	list->totals.tables[place.level] += frame->fresh;
	frame->place = place;
	frame->place.runs = frame->runs;
	if (place.level == 1 && list->rights_bits)
		frame->place.nruns = sk_rights_runs(&list->paging, list->rights_bits, table, frame->runs);
	else
		frame->place.nruns = (uint32_t)sk_walk_table(&list->paging, place.level, table, frame->runs);
	frame->place.run = 0;
	frame->table = table;
	frame->gpa = gpa;
	frame->slot = slot;
	frame->done = 0;
	frame->leaves = 0;
	frame->all = (1U << SK_SUMMARY_FLAG_BITS) - 1;
	frame->any = 0;
	frame->covered = 0;
	list->depth++;
	return true;
}

/* The table at the end of the path is finished. */
static void leave(struct sk_list *list)
{
	struct frame *frame = &list->frames[--list->depth];
	bool full = frame->covered == sk_walk_nentries(&list->paging, frame->place.level);

	sk_cache_unpin(list->cache, frame->slot);
	if (frame->place.whole) {
		struct sk_summary *known = sk_summaries_put(list->summaries, frame->gpa, frame->place.level);

		known->visited = known->complete = 1;
		known->full = full;
		known->leaves = frame->leaves;
		known->all = frame->all & ((1U << SK_SUMMARY_FLAG_BITS) - 1);
		known->any = frame->any & ((1U << SK_SUMMARY_FLAG_BITS) - 1);
	}
	if (list->depth)
		pass(frame - 1, frame->leaves, frame->all, frame->any, full);
}

/*
 * The child that a table's current entry leads to. False: it lies outside of every range from *range on (then
 * *ended says whether all that follows does so too).
 */
static bool child_of(const struct sk_list *list, const struct place *place, size_t *range, struct place *child,
                     bool *ended)
{
	const struct sk_run *run = &place->runs[place->run];
	uint64_t last;

	child->base = entry_start(list, place, run->first);
	child->level = place->level - 1;
	child->inherited = seen_through(run->flags, place->inherited);
	child->whole = place->whole;
	*ended = false;
	if (place->whole)
		return true;
	last = entry_start(list, place, run->first + 1U) - 1;
	*ended = !sk_space_range_at(&list->space, range, child->base);
	if (*ended || list->space.ranges[*range].first > last)
		return false;
	child->whole = lies_in(&list->space.ranges[*range], child->base, last);
	return true;
}

/* Fetching ahead */

static void want_none(struct sk_list *list)
{
	list->nwanted = list->nsupplied = 0;
	memset(list->wanted_hash, 0, sizeof list->wanted_hash);
}

/* Add a page unless it is there; there is room. */
static void want(struct sk_list *list, uint64_t gpa)
{
	size_t at = (gpa >> 12) % WANTED_HASH;

	while (list->wanted_hash[at]) {
		if (list->wanted[list->wanted_hash[at] - 1] == gpa)
			return;
		at = (at + 1) % WANTED_HASH;
	}
	list->wanted[list->nwanted++] = gpa;
	list->wanted_hash[at] = (uint16_t)list->nwanted;
}

/*
 * The current entry at the end of the path leads to a table that is not cached: want it, and what the cursor will
 * want of that level after it. It ends at the first table above that level which is not there itself: so at most a
 * window of each level is fetched and not yet used.
 */
static void look_ahead(struct sk_list *list)
{
	struct place places[MAX_LEVELS];
	uint32_t depth = list->depth, budget = AHEAD_BUDGET;
	size_t range = list->range;

	want_none(list);
	list->wanted_level = list->frames[depth - 1].place.level - 1;
	for (uint32_t i = 0; i < depth; i++) {
		places[i] = list->frames[i].place;
		places[i].run += i < depth - 1;
	}
	while (depth && budget && list->nwanted < list->window) {
		struct place *place = &places[depth - 1], child;
		const struct sk_run *run = &place->runs[place->run];
		const struct sk_summary *known;
		const void *table;
		uint32_t slot;
		bool ended;

		if (place->run == place->nruns) {
			depth--;
			continue;
		}
		budget--;
		if (run->flags & (SK_LEAF | SK_RESERVED) || !child_of(list, place, &range, &child, &ended)) {
			place->run++;
			continue;
		}
		place->run++;
		known = sk_summaries_find(list->summaries, run->gpa, child.level);
		if (judge(list, known, child.inherited, child.whole) != WALK)
			continue;
		slot = sk_cache_find(list->cache, run->gpa);
		if (child.level == list->wanted_level) {
			if (slot == SK_CACHE_NONE)
				want(list, run->gpa);
			continue;
		}
		if (slot == SK_CACHE_NONE)
			break;
		table = table_in(list, slot, run->gpa, child.level);
		if (!table)
			continue;
		child.runs = list->ahead_runs[child.level];
		child.nruns = (uint32_t)sk_walk_table(&list->paging, child.level, table,
		                                      list->ahead_runs[child.level]);
		child.run = 0;
		places[depth++] = child;
		budget -= budget < TABLE_COST ? budget : TABLE_COST;
	}
}

/* The cursor */

/* The root. False: it must be fetched first. */
static bool begin(struct sk_list *list)
{
	struct place place = { .level = list->levels, .inherited = SK_WRITABLE | SK_USER };
	uint64_t page = list->options.root_gpa & ~PAGE_OFFSET;
	uint32_t slot = sk_cache_find(list->cache, page);

	if (slot == SK_CACHE_NONE) {
		want_none(list);
		want(list, page);
		list->wanted_level = list->levels;
		return false;
	}
	place.whole = lies_in(&list->space.ranges[0], 0, list->space.last);
	enter(list, slot, list->options.root_gpa, place);
	list->entered = true;
	return true;
}

/* The current entry leads to a table. False: it must be fetched first, or (nothing is wanted) there is no room. */
static bool take_table(struct sk_list *list, struct frame *frame)
{
	const struct sk_run *run = &frame->runs[frame->place.run];
	const struct sk_summary *known;
	struct place child;
	uint32_t slot;
	bool ended;

	if (!child_of(list, &frame->place, &list->range, &child, &ended)) {
		frame->place.run = ended ? frame->place.nruns : frame->place.run + 1;
		return true;
	}
	known = sk_summaries_find(list->summaries, run->gpa, child.level);
	switch (judge(list, known, child.inherited, child.whole)) {
	case NOTHING_THERE:
		pass(frame, 0, 0, 0, false);
		return true;
	case ONE_RUN:
		if (!sk_emit_has_room(&list->emit))
			return false;
		sk_emit_run(&list->emit, child.base, entry_start(list, &frame->place, run->first + 1U),
		        seen_through(child.inherited, known->all));
		list->totals.leaves += known->leaves;
		pass(frame, known->leaves, known->all, known->any, true);
		return true;
	case WALK:
		break;
	}
	slot = sk_cache_find(list->cache, run->gpa);
	if (slot == SK_CACHE_NONE) {
		look_ahead(list);
		return false;
	}
	if (!enter(list, slot, run->gpa, child))
		pass(frame, 0, 0, 0, false);
	return true;
}

static void add_leaf(struct sk_list *list, const struct frame *frame, const struct sk_run *run, uint32_t nth,
                     uint32_t flags)
{
	uint32_t index = run->first + nth;
	struct sk_list_leaf leaf = {
		.gva = entry_start(list, &frame->place, index),
		.gpa = run->gpa + nth * run->page_nbytes,
		.nbytes = run->page_nbytes,
		.level = frame->place.level,
		.entry = sk_walk_raw(&list->paging, frame->place.level, frame->table, index),
		.flags = flags,
	};

	sk_emit_leaf(&list->emit, &leaf);
}

/* A leaf that may stick out of its range: its pieces as runs, or (once) as a leaf. False: no room. */
static bool take_cut_leaf(struct sk_list *list, struct frame *frame, const struct sk_run *run, uint32_t flags)
{
	uint64_t first = entry_start(list, &frame->place, run->first + frame->done);
	uint64_t last = first + run->page_nbytes - 1;

	if (!sk_space_range_at(&list->space, &list->range, first) || list->space.ranges[list->range].first > last)
		return true;
	if (!sk_emit_has_room(&list->emit))
		return false;
	if (!sk_emit_makes_runs(&list->emit)) {
		add_leaf(list, frame, run, frame->done, flags);
		list->totals.leaves++;
		return true;
	}
	for (;;) {
		const struct sk_list_range *range = &list->space.ranges[list->range];

		sk_emit_run(&list->emit, range->first > first ? range->first : first, (range->last < last ? range->last : last) + 1,
		        flags);
		if (range->last >= last || list->range + 1 == list->space.nranges || range[1].first > last)
			break;
		list->range++;
		if (!sk_emit_has_room(&list->emit))
			return false;
	}
	list->totals.leaves++;
	return true;
}

/* The current run of leaves. False: no room. */
static bool take_leaves(struct sk_list *list, struct frame *frame, uint32_t *budget)
{
	const struct sk_run *run = &frame->runs[frame->place.run];
	uint32_t own = (run->flags & ~(uint32_t)SK_RESERVED) | SK_LEVEL1 << (frame->place.level - 1);
	uint32_t flags = seen_through(frame->place.inherited, own);

	if (frame->place.whole && sk_emit_makes_runs(&list->emit)) {
		if (!sk_emit_has_room(&list->emit))
			return false;
		sk_emit_run(&list->emit, entry_start(list, &frame->place, run->first),
		        entry_start(list, &frame->place, (uint32_t)run->first + run->count), flags);
		list->totals.leaves += run->count;
	} else {
		for (; frame->done < run->count; frame->done++) {
			*budget -= *budget > 0;
			if (!frame->place.whole) {
				if (!take_cut_leaf(list, frame, run, flags))
					return false;
				continue;
			}
			if (!sk_emit_has_room(&list->emit))
				return false;
			add_leaf(list, frame, run, frame->done, flags);
			list->totals.leaves++;
		}
	}
	fold(frame, run->count, own, own, run->count);
	frame->done = 0;
	frame->place.run++;
	return true;
}

/* The current run of entries with reserved bits: nothing but a count. */
static void take_reserved(struct sk_list *list, struct frame *frame)
{
	const struct sk_run *run = &frame->runs[frame->place.run++];

	for (uint32_t nth = 0; nth < run->count && frame->fresh; nth++) {
		uint64_t first = entry_start(list, &frame->place, run->first + nth);
		uint64_t last = entry_start(list, &frame->place, run->first + nth + 1) - 1;

		if (frame->place.whole ||
		    (sk_space_range_at(&list->space, &list->range, first) && list->space.ranges[list->range].first <= last))
			list->totals.reserved++;
	}
}

enum sk_list_state sk_list_step(struct sk_list *list, void *buffer, size_t nbytes, size_t *used)
{
	enum sk_list_state state = SK_LIST_AGAIN;
	uint32_t budget = STEP_BUDGET;

	sk_emit_into(&list->emit, buffer, nbytes);
	while (budget--) {
		struct frame *frame;
		bool went_on = true;

		if (list->nwanted) {
			state = SK_LIST_TABLES;
			break;
		}
		if (!list->entered && list->space.nranges) {
			begin(list);
			continue;
		}
		if (!list->depth) {
			if (list->emit.run_open && !sk_emit_has_room(&list->emit))
				break;
			sk_emit_end_run(&list->emit);
			state = SK_LIST_DONE;
			break;
		}
		frame = &list->frames[list->depth - 1];
		if (frame->place.run == frame->place.nruns) {
			leave(list);
			budget -= budget < TABLE_COST ? budget : TABLE_COST;
		} else if (frame->runs[frame->place.run].flags & SK_RESERVED) {
			take_reserved(list, frame);
		} else if (frame->runs[frame->place.run].flags & SK_LEAF) {
			went_on = take_leaves(list, frame, &budget);
		} else {
			went_on = take_table(list, frame);
		}
		if (!went_on && !list->nwanted)
			break; /* no room */
	}
	*used = (size_t)(list->emit.out - (char *)buffer);
	return state;
}

size_t sk_list_wanted(const struct sk_list *list, const uint64_t **gpas)
{
	*gpas = list->wanted;
	return list->nwanted;
}

void sk_list_supply(struct sk_list *list, const void *page)
{
	uint64_t gpa;

	if (!list->nwanted)
		return;
	gpa = list->wanted[list->nsupplied];
	sk_cache_put(list->cache, gpa, page, list->wanted_level);
	if (page) {
		if (sk_summaries_fetched(list->summaries, gpa))
			list->totals.refetched++;
		else
			list->totals.fetched++;
		sk_summaries_put(list->summaries, gpa, list->wanted_level)->fetched = 1;
	}
	if (++list->nsupplied == list->nwanted)
		list->nwanted = 0;
}

void sk_list_totals(const struct sk_list *list, struct sk_list_totals *out)
{
	*out = list->totals;
	out->summaries_forgotten = sk_summaries_forgot(list->summaries) != 0;
}

const struct sk_list_unreadable *sk_list_unreadable(const struct sk_list *list)
{
	return list->unreadable;
}

/* Making one */

enum sk_status sk_list_create(const struct sk_paging *paging, const struct sk_list_options *options,
                              const struct sk_list_range *ranges, size_t nranges, struct sk_list **out,
                              struct sk_error *err)
{
	uint32_t levels = sk_walk_levels(paging);
	enum sk_status status;
	struct sk_list *list;
	uint64_t seed;

	*out = NULL;
	if (!levels || options->kind > SK_LIST_RUNS_TEXT)
		return sk_fail(err, SK_ERR_INVALID, 0, 0, "no list of kind %u in paging mode %u", options->kind,
		               paging->mode);
	if (getrandom(&seed, sizeof seed, 0) != sizeof seed)
		return sk_fail_errno(err, errno, "random bytes for a listing of page tables");
	list = calloc(1, sizeof *list);
	if (!list)
		return sk_fail_errno(err, ENOMEM, "a listing of page tables");
	list->paging = *paging;
	list->options = *options;
	list->levels = levels;
	for (uint32_t level = 1; level <= levels; level++)
		list->shifts[level] = sk_walk_shift(paging, level);
	sk_emit_init(&list->emit, options->kind, options->tell_apart, &list->space);
	list->unreadable = calloc(options->unreadable + 1, sizeof list->unreadable[0]);
	status = list->unreadable ? SK_OK : sk_fail_errno(err, ENOMEM, "a list of unreadable page tables");
	if (!status)
		status = sk_space_init(&list->space, paging, ranges, nranges, err);
	if (!status)
		status = sk_cache_create(options->cache_pages, seed, &list->cache, err);
	if (!status)
		status = sk_summaries_create(options->summaries, seed, &list->summaries, err);
	if (status) {
		sk_list_destroy(list);
		return status;
	}
	list->window = sk_cache_npages(list->cache) / 8;
	if (list->window > SK_LIST_MAX_WANTED)
		list->window = SK_LIST_MAX_WANTED;
	if (sk_emit_makes_runs(&list->emit))
		list->rights_bits = sk_rights_bits(paging);
	*out = list;
	return SK_OK;
}

void sk_list_destroy(struct sk_list *list)
{
	if (!list)
		return;
	sk_cache_destroy(list->cache);
	sk_summaries_destroy(list->summaries);
	sk_space_deinit(&list->space);
	free(list->unreadable);
	free(list);
}
