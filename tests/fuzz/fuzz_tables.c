/*
 * Page tables of any bytes: a listing must end or yield, and agree with a walk address by address.
 *
 * The input is a small program that fills pages with entries (see build()), so that short inputs make deep, shared
 * and cyclic tables. What is checked shares sk_walk_entry() with the listing, and nothing else.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "../../csrc/sk_list.h"
#include "../../csrc/sk_line.h"
#include "../../csrc/sk_scan.h"
#include "../../csrc/sk_walk.h"
#include "../csrc/expect.h"

#define NPAGES 160 /* more than the smallest cache holds */
#define PAGE_NBYTES 4096
#define NRANGES 3
#define BITS_12_TO_51 0x000ffffffffff000ULL

#define MAX_RECORDS 1000      /* then a listing is cut, as a user may */
#define MAX_WALKS 2500        /* then the judge gives up: what was compared until then agreed */
#define MAX_STEPS 300         /* likewise: where little is remembered, the same tables may be walked again and again */
#define MAX_IDLE_STEPS 64     /* steps that neither yield, nor ask, nor end */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
	const uint8_t *data;
	size_t left;
};

struct world {
	struct sk_paging paging;
	uint64_t root_gpa;
	struct sk_list_range ranges[NRANGES]; /* before sign extension, ascending, apart */
	size_t nranges;
	bool present[NPAGES];
	uint8_t pages[NPAGES][PAGE_NBYTES];
};

static struct world world;

static uint64_t take(struct input *input, size_t nbytes)
{
	uint64_t value = 0;

	for (size_t i = 0; i < nbytes && input->left; i++, input->left--)
		value |= (uint64_t)*input->data++ << 8 * i;
	return value;
}

static uint8_t *page_at(uint64_t gpa)
{
	uint64_t number = gpa / PAGE_NBYTES;

	return number < NPAGES && world.present[number] ? world.pages[number] : NULL;
}

static uint8_t *new_page(uint64_t number)
{
	number %= NPAGES;
	if (!world.present[number])
		memset(world.pages[number], 0, PAGE_NBYTES);
	world.present[number] = true;
	return world.pages[number];
}

/* One instruction: fill `count` entries of a page, or copy a page. */
static void fill(struct input *input)
{
	uint64_t what = take(input, 1), target = take(input, 1), first = take(input, 2), count = take(input, 2);
	uint64_t nbytes = world.paging.mode <= SK_PAGING_PSE ? 4 : 8, entry, step;
	uint8_t *page = new_page(target);

	if (what % 4 == 3) {
		/* neighbours that are copies of one page */
		for (uint64_t i = 1; i <= count % 64 && target + i < NPAGES; i++)
			memcpy(new_page(target + i), page, PAGE_NBYTES);
		return;
	}
	if (what % 4 == 0) {
		entry = take(input, 8);
		step = 1ULL << take(input, 1) % 64;
	} else {
		/* a table, or as many as there are entries */
		entry = take(input, 1) % NPAGES * PAGE_NBYTES | take(input, 2) | 1;
		step = what % 4 == 1 ? 0 : PAGE_NBYTES;
		if (take(input, 1) & 1)
			entry |= world.paging.cbit_mask;
	}
	first %= PAGE_NBYTES / nbytes;
	for (uint64_t i = 0; i <= count % 1024 && first + i < PAGE_NBYTES / nbytes; i++, entry += step)
		memcpy(page + (first + i) * nbytes, &entry, nbytes);
}

static uint64_t last_address(void)
{
	uint32_t levels = sk_walk_levels(&world.paging);

	return levels < 4 ? UINT32_MAX : (1ULL << (levels == 4 ? 48 : 57)) - 1;
}

static uint64_t canonical(uint64_t address)
{
	uint64_t half = last_address() / 2 + 1;

	return last_address() > UINT32_MAX && address >= half ? address | -half : address;
}

static void build(struct input *input)
{
	uint64_t mode = take(input, 1), cbit = take(input, 1);

	memset(world.present, 0, sizeof world.present);
	world.paging.mode = SK_PAGING_32 + mode % 5;
	world.paging.nx = mode >> 4 & 1;
	world.paging.cbit_mask = cbit & 0x80 ? 1ULL << (32 + cbit % 20) : 0;
	world.paging.address_mask = BITS_12_TO_51 & ~world.paging.cbit_mask;
	world.root_gpa = take(input, 1) % NPAGES * PAGE_NBYTES;
	if (world.paging.mode == SK_PAGING_PAE)
		world.root_gpa |= take(input, 1) % 128 * 32;
	world.nranges = take(input, 1) % (NRANGES + 1);
	for (size_t i = 0; i < world.nranges; i++) {
		uint64_t from = i ? world.ranges[i - 1].last + 2 : 0;
		uint64_t first = from + (take(input, 7) & last_address()), last = first + (take(input, 6) << take(input, 1) % 16);

		world.nranges = first > last_address() ? i : world.nranges;
		world.ranges[i] = (struct sk_list_range){ first, last > last_address() ? last_address() : last };
	}
	while (input->left)
		fill(input);
}

/* The judge: one walk an address */

struct answer {
	bool mapped;
	uint64_t start;  /* of the page, or of all that the last entry spans */
	uint64_t nbytes;
	struct sk_list_leaf leaf;
};

static struct answer walk(uint64_t address)
{
	struct answer answer = { 0 };
	uint32_t inherited = SK_WRITABLE | SK_USER;
	uint64_t table = world.root_gpa;

	for (uint32_t level = sk_walk_levels(&world.paging); level; level--) {
		const uint8_t *page = page_at(table);
		uint32_t nbytes = sk_walk_table_nbytes(&world.paging, level);
		struct sk_entry entry;
		uint64_t raw;

		answer.nbytes = 1ULL << sk_walk_shift(&world.paging, level);
		answer.start = address & -answer.nbytes;
		if (!page) {
			/* all that this table would translate */
			answer.nbytes *= sk_walk_nentries(&world.paging, level);
			answer.start = address & -answer.nbytes;
			return answer;
		}
		if (nbytes < PAGE_NBYTES)
			page += table & (PAGE_NBYTES - 1) & -nbytes;
		raw = sk_walk_raw(&world.paging, level, page, sk_walk_index(&world.paging, address, level));
		sk_walk_entry(&world.paging, level, raw, &entry);
		if (!(entry.flags & SK_PRESENT) || entry.flags & SK_RESERVED)
			return answer;
		inherited = (inherited & entry.flags & (SK_WRITABLE | SK_USER)) | ((inherited | entry.flags) & SK_NX);
		if (entry.flags & SK_LEAF) {
			answer.mapped = true;
			answer.leaf = (struct sk_list_leaf){
				canonical(answer.start), entry.gpa, entry.page_nbytes, level, raw,
				inherited | (entry.flags & SK_PRIVATE),
			};
			return answer;
		}
		table = entry.gpa;
	}
	return answer; /* not reached: at level 1 every entry is a leaf or none */
}

struct judge {
	uint64_t address;
	size_t range;
	size_t walks;
	bool gave_up;
	/* of runs */
	bool open;
	struct sk_list_run run;
	uint64_t run_end;
};

/* The next page that is mapped in a range. False: there is none, or the judge gave up. */
static bool next_leaf(struct judge *judge, struct answer *answer, uint64_t *first, uint64_t *last)
{
	const struct sk_list_range everything = { 0, last_address() };
	const struct sk_list_range *ranges = world.nranges ? world.ranges : &everything;
	size_t nranges = world.nranges ? world.nranges : 1;

	for (; judge->range < nranges; judge->range++) {
		const struct sk_list_range *range = &ranges[judge->range];

		if (judge->address < range->first)
			judge->address = range->first;
		while (judge->address <= range->last) {
			if (judge->walks++ == MAX_WALKS) {
				judge->gave_up = true;
				return false;
			}
			*answer = walk(judge->address);
			*first = judge->address;
			*last = answer->start + answer->nbytes - 1;
			if (*last > range->last)
				*last = range->last;
			judge->address = *last + 1;
			if (answer->mapped)
				return true;
		}
	}
	return false;
}

static bool next_run(struct judge *judge, uint32_t tell_apart, struct sk_list_run *out)
{
	uint64_t first, last, middle = last_address() > UINT32_MAX ? last_address() / 2 + 1 : 0;
	struct answer answer;

	while (next_leaf(judge, &answer, &first, &last)) {
		uint64_t flags = (answer.leaf.flags | SK_PRESENT | SK_LEAF | SK_LEVEL1 << (answer.leaf.level - 1)) & tell_apart;
		bool goes_on = judge->open && judge->run_end == first && judge->run.flags == flags &&
		               !(middle && first == middle);
		bool ended = judge->open && !goes_on;

		if (ended)
			*out = judge->run;
		if (!goes_on)
			judge->run = (struct sk_list_run){ canonical(first), 0, flags };
		judge->open = true;
		judge->run.nbytes += last + 1 - first;
		judge->run_end = last + 1;
		if (ended)
			return true;
	}
	if (judge->gave_up || !judge->open)
		return false;
	judge->open = false;
	*out = judge->run;
	return true;
}

/* A leaf that sticks out of two ranges is listed once. */
static bool next_whole_leaf(struct judge *judge, uint64_t *before, struct sk_list_leaf *out)
{
	uint64_t first, last;
	struct answer answer;

	do {
		if (!next_leaf(judge, &answer, &first, &last))
			return false;
	} while (answer.leaf.gva == *before);
	*before = answer.leaf.gva;
	*out = answer.leaf;
	return true;
}

/* The listing */

static const size_t record_nbytes[] = { sizeof(struct sk_list_leaf), sizeof(struct sk_list_run), SK_LINE_LEAF_NBYTES,
	                                SK_LINE_RUN_NBYTES };

static void supply(struct sk_list *list)
{
	const uint64_t *wanted;
	size_t nwanted = sk_list_wanted(list, &wanted);
	uint64_t gpas[SK_LIST_MAX_WANTED];

	EXPECT(nwanted && nwanted <= SK_LIST_MAX_WANTED);
	memcpy(gpas, wanted, nwanted * sizeof gpas[0]);
	for (size_t i = 0; i < nwanted; i++) {
		EXPECT(gpas[i] % PAGE_NBYTES == 0);
		for (size_t k = 0; k < i; k++)
			EXPECT(gpas[i] != gpas[k]);
		sk_list_supply(list, page_at(gpas[i]));
	}
}

static void compare(struct judge *judge, uint32_t kind, uint32_t tell_apart, const char *record, uint64_t *before)
{
	struct sk_list_leaf leaf;
	struct sk_list_run run;

	if (judge->gave_up || kind > SK_LIST_RUNS)
		return;
	if (kind == SK_LIST_LEAVES) {
		bool found = next_whole_leaf(judge, before, &leaf);
		struct sk_list_leaf listed;

		memcpy(&listed, record, sizeof listed);
		listed.flags &= SK_WRITABLE | SK_USER | SK_NX | SK_PRIVATE;
		EXPECT(found || judge->gave_up);
		EXPECT(!found || !memcmp(&leaf, &listed, sizeof leaf));
	} else {
		bool found = next_run(judge, tell_apart, &run);

		EXPECT(found || judge->gave_up);
		EXPECT(!found || !memcmp(&run, record, sizeof run));
	}
}

static void list_all(uint32_t kind, uint32_t tell_apart, size_t cache_pages, size_t summaries)
{
	struct sk_list_options options = { kind, tell_apart, world.root_gpa, cache_pages, summaries, 4 };
	struct sk_list_range everything = { 0, UINT64_MAX }, ranges[NRANGES];
	uint64_t before = UINT64_MAX;
	size_t nrecords = 0, nsteps = 0, idle = 0;
	struct judge judge = { 0 };
	struct sk_error error;
	struct sk_list *list;
	enum sk_list_state state = SK_LIST_AGAIN;
	struct sk_list_totals totals;
	static char buffer[64 * sizeof(struct sk_list_leaf)];

	for (size_t i = 0; i < world.nranges; i++) {
		ranges[i] = (struct sk_list_range){ canonical(world.ranges[i].first), canonical(world.ranges[i].last) };
		/* over the hole in the middle: the engine takes what there is */
		EXPECT(ranges[i].first <= ranges[i].last);
	}
	EXPECT(!sk_list_create(&world.paging, &options, world.nranges ? ranges : &everything,
	                       world.nranges ? world.nranges : 1, &list, &error));
	while (state != SK_LIST_DONE && nrecords < MAX_RECORDS && nsteps++ < MAX_STEPS) {
		size_t used = 0;

		if (state == SK_LIST_TABLES)
			supply(list);
		state = sk_list_step(list, buffer, sizeof buffer, &used);
		EXPECT(used <= sizeof buffer && used % record_nbytes[kind] == 0);
		idle = used || state != SK_LIST_AGAIN ? 0 : idle + 1;
		EXPECT(idle < MAX_IDLE_STEPS);
		for (size_t at = 0; at < used; at += record_nbytes[kind], nrecords++)
			compare(&judge, kind, tell_apart, buffer + at, &before);
	}
	if (state == SK_LIST_DONE && !judge.gave_up && kind <= SK_LIST_RUNS) {
		struct sk_list_leaf leaf;
		struct sk_list_run run;

		EXPECT(!(kind == SK_LIST_LEAVES ? next_whole_leaf(&judge, &before, &leaf) : next_run(&judge, tell_apart, &run)));
	}
	sk_list_totals(list, &totals);
	EXPECT(totals.unreadable_listed <= 4 && totals.unreadable_listed <= totals.unreadable);
	/* what cannot be read takes room in the cache, too, and there may be any number of such addresses */
	EXPECT(totals.refetched == 0 || totals.unreadable || cache_pages < NPAGES);
	sk_list_destroy(list);
}

/* sk_walk_table() against sk_walk_entry(). */
static void check_table(uint32_t level, const uint8_t *page)
{
	static struct sk_run runs[SK_MAX_ENTRIES];
	uint32_t nentries = sk_walk_nentries(&world.paging, level), index = 0;
	size_t nruns = sk_walk_table(&world.paging, level, page, runs);
	struct sk_entry entry;

	EXPECT(nruns <= nentries);
	for (size_t i = 0; i < nruns; i++) {
		for (; index < runs[i].first; index++) {
			sk_walk_entry(&world.paging, level, sk_walk_raw(&world.paging, level, page, index), &entry);
			EXPECT(!(entry.flags & SK_PRESENT));
		}
		EXPECT(runs[i].count && runs[i].first + runs[i].count <= nentries);
		for (; index < (uint32_t)runs[i].first + runs[i].count; index++) {
			sk_walk_entry(&world.paging, level, sk_walk_raw(&world.paging, level, page, index), &entry);
			EXPECT(entry.flags == runs[i].flags && entry.page_nbytes == runs[i].page_nbytes);
			EXPECT(entry.gpa == runs[i].gpa + (index - runs[i].first) * runs[i].page_nbytes);
		}
	}
	for (; index < nentries; index++) {
		sk_walk_entry(&world.paging, level, sk_walk_raw(&world.paging, level, page, index), &entry);
		EXPECT(!(entry.flags & SK_PRESENT));
	}
}

static void scan_all(void)
{
	struct sk_scan_totals totals;
	const struct sk_span *spans;
	struct sk_error error;
	struct sk_scan *scan;
	size_t nspans;

	EXPECT(!sk_scan_create(SK_PRIVATE | SK_WRITABLE, 512, 512, &scan, &error));
	for (uint32_t level = sk_walk_levels(&world.paging); level; level--)
		for (size_t number = 0; number < NPAGES; number++)
			if (world.present[number]) {
				check_table(level, world.pages[number]);
				if (sk_walk_table_nbytes(&world.paging, level) == PAGE_NBYTES)
					EXPECT(!sk_scan_tables(scan, &world.paging, level, world.pages[number], 1, &error));
			}
	nspans = sk_scan_spans(scan, &spans);
	for (size_t i = 1; i < nspans; i++)
		EXPECT(spans[i - 1].flags < spans[i].flags || spans[i - 1].gpa + spans[i - 1].nbytes < spans[i].gpa);
	sk_scan_totals(scan, &totals);
	sk_scan_destroy(scan);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = { data, size };
	uint32_t how, tell_apart;

	if (size < 6)
		return 0;
	how = (uint32_t)take(&input, 1);
	tell_apart = (uint32_t)take(&input, 2) & ((SK_LEVEL3 << 1) - 1) & ~(uint32_t)SK_RESERVED;
	build(&input);
	list_all(how % 4, tell_apart, how & 0x10 ? 64 : 2 * NPAGES, how & 0x20 ? 16 : 1 << 12);
	if (how & 0x40)
		scan_all();
	return 0;
}
