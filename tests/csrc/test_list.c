/* Listing an address space from C alone: what comes out, what is asked for, and that any tables end in bounds. */
#include "../../csrc/sk_cache.h"
#include "../../csrc/sk_list.h"
#include "../../csrc/sk_summary.h"

#include <string.h>

#include "expect.h"

#define BITS_12_TO_51 0x000ffffffffff000ULL
#define C47 (1ULL << 47)
#define NPAGES 16
#define EVERYTHING { 0, UINT64_MAX }

static const struct sk_paging sev47 = { SK_PAGING_4LEVEL, 1, C47, BITS_12_TO_51 & ~C47 };
static const struct sk_paging plain5 = { SK_PAGING_5LEVEL, 1, 0, BITS_12_TO_51 };
static const struct sk_paging pae = { SK_PAGING_PAE, 1, 0, BITS_12_TO_51 };
static const struct sk_paging pse = { SK_PAGING_PSE, 0, 0, BITS_12_TO_51 };

/* Guest memory: pages 0 to NPAGES - 1; nothing can be read behind them. */
static union {
	uint64_t entries[512];
	uint32_t narrow[1024];
} pages[NPAGES];

static unsigned fetched[NPAGES];

static void supply(struct sk_list *list)
{
	const uint64_t *wanted;
	size_t nwanted = sk_list_wanted(list, &wanted);

	EXPECT(nwanted >= 1 && nwanted <= SK_LIST_MAX_WANTED);
	for (size_t i = 0; i < nwanted; i++) {
		uint64_t page = wanted[i] >> 12;

		EXPECT(!(wanted[i] & 0xfff));
		for (size_t j = 0; j < i; j++)
			EXPECT(wanted[j] != wanted[i]);
		if (page < NPAGES)
			fetched[page]++;
		sk_list_supply(list, page < NPAGES ? pages[page].entries : NULL);
	}
	EXPECT(sk_list_wanted(list, &wanted) == 0);
	sk_list_supply(list, pages[0].entries); /* one too many does nothing */
}

static struct sk_list *new_list(const struct sk_paging *paging, uint32_t kind, uint64_t root_gpa,
                                const struct sk_list_range *ranges, size_t nranges)
{
	struct sk_list_options options = { kind, SK_WRITABLE | SK_USER, root_gpa, 256, 4096, 2 };
	struct sk_error err;
	struct sk_list *list;

	memset(fetched, 0, sizeof fetched);
	EXPECT(sk_list_create(paging, &options, ranges, nranges, &list, &err) == SK_OK);
	return list;
}

/* Up to nbytes of what is listed, piece by piece; ends by itself unless that is reached. */
static size_t collect(struct sk_list *list, void *out, size_t nbytes, size_t piece_nbytes)
{
	size_t done = 0;

	for (;;) {
		size_t used, room = nbytes - done < piece_nbytes ? nbytes - done : piece_nbytes;
		enum sk_list_state state = sk_list_step(list, (char *)out + done, room, &used);

		EXPECT(used <= room);
		done += used;
		if (state == SK_LIST_TABLES)
			supply(list);
		if (state == SK_LIST_DONE || nbytes - done < 64)
			return done;
	}
}

static void expect_text(const struct sk_paging *paging, uint32_t kind, uint64_t root_gpa, const char *expected)
{
	struct sk_list_range everything[] = { EVERYTHING };
	static char text[4096];

	/* whole, and with room for hardly more than a line */
	for (size_t piece_nbytes = 64; piece_nbytes <= sizeof text; piece_nbytes *= 64) {
		struct sk_list *list = new_list(paging, kind, root_gpa, everything, 1);
		size_t nbytes = collect(list, text, sizeof text, piece_nbytes);

		if (nbytes != strlen(expected) || memcmp(text, expected, nbytes)) {
			fprintf(stderr, "%.*s", (int)nbytes, text);
			EXPECT(!"the lines above are as expected");
		}
		sk_list_destroy(list);
	}
}

static void test_long_mode(void)
{
	struct sk_list_range everything[] = { EVERYTHING };
	struct sk_list_leaf leaves[8];
	struct sk_list_totals totals;
	struct sk_list *list;

	memset(pages, 0, sizeof pages);
	pages[0].entries[0] = C47 | 0x1007;
	pages[0].entries[256] = C47 | 0x1005; /* the same, read-only */
	pages[1].entries[0] = C47 | 0x2007;
	pages[1].entries[2] = C47 | 0x80000087 | 1ULL << 63;
	pages[2].entries[1] = C47 | 0x3007;
	pages[2].entries[2] = 0x400087;
	pages[2].entries[3] = 0xfee00007; /* a table where no memory is */
	pages[2].entries[4] = 0x402087;   /* a reserved bit */
	pages[3].entries[511] = C47 | 0x9163;
	expect_text(&sev47, SK_LIST_LEAVES_TEXT, 0,
	            "00000000003ff000: 0000000000009000 -G-DA---W\n"
	            "0000000000400000: 0000000000400000 --P----UW\n"
	            "0000000080000000: 0000000080000000 X-P----UW\n"
	            "ffff8000003ff000: 0000000000009000 -G-DA---W\n"
	            "ffff800000400000: 0000000000400000 --P----UW\n"
	            "ffff800080000000: 0000000080000000 X-P----UW\n");
	expect_text(&sev47, SK_LIST_RUNS_TEXT, 0,
	            "00000000003ff000-0000000000400000 0000000000001000 -rw\n"
	            "0000000000400000-0000000000600000 0000000000200000 urw\n"
	            "0000000080000000-00000000c0000000 0000000040000000 urw\n"
	            "ffff8000003ff000-ffff800000400000 0000000000001000 -r-\n"
	            "ffff800000400000-ffff800000600000 0000000000200000 ur-\n"
	            "ffff800080000000-ffff8000c0000000 0000000040000000 ur-\n");
	list = new_list(&sev47, SK_LIST_LEAVES, 0, everything, 1);
	EXPECT(collect(list, leaves, sizeof leaves, sizeof leaves) == 6 * sizeof leaves[0]);
	EXPECT(leaves[3].gva == 0xffff8000003ff000ULL && leaves[3].gpa == 0x9000 && leaves[3].nbytes == 0x1000);
	EXPECT(leaves[3].level == 1 && leaves[3].entry == (C47 | 0x9163));
	EXPECT(leaves[3].flags == (SK_PRESENT | SK_LEAF | SK_PRIVATE | SK_LEVEL1));
	EXPECT(leaves[2].flags == (SK_PRESENT | SK_LEAF | SK_PRIVATE | SK_LEVEL3 | SK_NX | SK_WRITABLE | SK_USER));
	sk_list_totals(list, &totals);
	EXPECT(totals.fetched == 4 && totals.refetched == 0 && totals.leaves == 6 && totals.reserved == 1);
	EXPECT(totals.tables[1] == 1 && totals.tables[2] == 1 && totals.tables[3] == 1 && totals.tables[4] == 1);
	EXPECT(totals.unreadable == 1 && totals.unreadable_listed == 1 && !totals.summaries_forgotten);
	EXPECT(sk_list_unreadable(list)->level == 1 && sk_list_unreadable(list)->gpa == 0xfee00000);
	EXPECT(sk_list_unreadable(list)->gva == 0x600000);
	for (size_t i = 0; i < NPAGES; i++)
		EXPECT(fetched[i] == (i < 4));
	sk_list_destroy(list);
	sk_list_destroy(NULL);
}

static void test_legacy_modes(void)
{
	memset(pages, 0, sizeof pages);
	/* PAE: the top table of four entries stands at 0x1020; its bits 1 and 2 would be reserved */
	pages[1].entries[4] = 0x2001;
	pages[1].entries[7] = 0x2001;
	pages[1].entries[8] = 0x2001; /* a fifth */
	pages[2].entries[0] = 0x200087;
	pages[2].entries[511] = 0x3007;
	pages[3].entries[511] = 0x5005;
	expect_text(&pae, SK_LIST_LEAVES_TEXT, 0x1020,
	            "0000000000000000: 0000000000200000 --P----UW\n"
	            "000000003ffff000: 0000000000005000 -------U-\n"
	            "00000000c0000000: 0000000000200000 --P----UW\n"
	            "00000000fffff000: 0000000000005000 -------U-\n");
	expect_text(&pae, SK_LIST_RUNS_TEXT, 0x1020,
	            "0000000000000000-0000000000200000 0000000000200000 urw\n"
	            "000000003ffff000-0000000040000000 0000000000001000 ur-\n"
	            "00000000c0000000-00000000c0200000 0000000000200000 urw\n"
	            "00000000fffff000-0000000100000000 0000000000001000 ur-\n");
	/* 32-bit: the table that is its own page table, as its last entry */
	memset(pages, 0, sizeof pages);
	pages[0].narrow[1] = 0x00400083 | 0xab << 13; /* PSE-36 */
	pages[0].narrow[1023] = 0x00000003;
	expect_text(&pse, SK_LIST_LEAVES_TEXT, 0,
	            "0000000000400000: 000000ab00400000 --P-----W\n"
	            "00000000ffc01000: 0000000000556000 --------W\n"
	            "00000000fffff000: 0000000000000000 --------W\n");
	expect_text(&pse, SK_LIST_RUNS_TEXT, 0,
	            "0000000000400000-0000000000800000 0000000000400000 -rw\n"
	            "00000000ffc01000-00000000ffc02000 0000000000001000 -rw\n"
	            "00000000fffff000-0000000100000000 0000000000001000 -rw\n");
}

/* One page that leads to itself 512 times at every level. */
static void test_bomb(void)
{
	struct sk_list_range ranges[] = { { 0x5000, 0x5fff }, { 0x1800, 0x2fff }, { 0x3000, 0x3000 }, { 0x2000, 0x2010 } };
	struct sk_list_range everything[] = { EVERYTHING };
	struct sk_list_run runs[8];
	struct sk_list *list;
	size_t used;

	for (size_t i = 0; i < 512; i++)
		pages[0].entries[i] = 0x7;
	list = new_list(&plain5, SK_LIST_RUNS, 0, everything, 1);
	EXPECT(sk_list_step(list, runs, sizeof runs, &used) == SK_LIST_TABLES && !used);
	supply(list);
	/* a buffer for one record: the second comes with the next step */
	EXPECT(sk_list_step(list, runs, sizeof runs[0], &used) == SK_LIST_AGAIN && used == sizeof runs[0]);
	EXPECT(sk_list_step(list, runs + 1, sizeof runs[0], &used) == SK_LIST_DONE && used == sizeof runs[0]);
	EXPECT(sk_list_step(list, runs + 2, sizeof runs[0], &used) == SK_LIST_DONE && !used);
	EXPECT(runs[0].gva == 0 && runs[0].nbytes == 1ULL << 56 && runs[0].flags == (SK_WRITABLE | SK_USER));
	EXPECT(runs[1].gva == 0xff00000000000000ULL && runs[1].nbytes == 1ULL << 56);
	EXPECT(fetched[0] == 1);
	sk_list_destroy(list);

	expect_text(&plain5, SK_LIST_RUNS_TEXT, 0, "0000000000000000-0200000000000000 0200000000000000 urw\n");

	/* ranges in any order; those that touch or overlap are one */
	list = new_list(&plain5, SK_LIST_RUNS, 0, ranges, 4);
	EXPECT(collect(list, runs, sizeof runs, sizeof runs) == 2 * sizeof runs[0]);
	EXPECT(runs[0].gva == 0x1800 && runs[0].nbytes == 0x1801);
	EXPECT(runs[1].gva == 0x5000 && runs[1].nbytes == 0x1000);
	sk_list_destroy(list);

	list = new_list(&plain5, SK_LIST_RUNS, 0, NULL, 0);
	EXPECT(collect(list, runs, sizeof runs, sizeof runs) == 0 && !fetched[0]);
	sk_list_destroy(list);
}

static void test_refused(void)
{
	const struct sk_paging off = { SK_PAGING_OFF, 0, 0, BITS_12_TO_51 }, none = { 6, 0, 0, BITS_12_TO_51 };
	struct sk_list_options options = { SK_LIST_RUNS, 0, 0, 0, 0, 0 };
	struct sk_list *list = NULL;
	struct sk_error err;

	EXPECT(sk_list_create(&off, &options, NULL, 0, &list, &err) == SK_ERR_INVALID && !list);
	EXPECT(sk_list_create(&none, &options, NULL, 0, &list, &err) == SK_ERR_INVALID && !list);
	options.kind = SK_LIST_RUNS_TEXT + 1;
	EXPECT(sk_list_create(&plain5, &options, NULL, 0, &list, &err) == SK_ERR_INVALID && !list);
}

/* Fewer pages than there is room for, pins and pages fetched ahead kept, the lower class out first. */
static void test_cache(void)
{
	struct sk_cache *cache;
	struct sk_error err;
	uint32_t upper, pinned, at;

	EXPECT(sk_cache_create(0, 12345, &cache, &err) == SK_OK && sk_cache_npages(cache) == SK_CACHE_MIN_PAGES);
	sk_cache_put(cache, 0x1000, pages[1].entries, 2);
	sk_cache_put(cache, 0x2000, pages[2].entries, 1);
	sk_cache_put(cache, 0x3000, NULL, 4);
	upper = sk_cache_find(cache, 0x1000);
	pinned = sk_cache_find(cache, 0x2000);
	EXPECT(!memcmp(sk_cache_page(cache, upper), pages[1].entries, 4096));
	EXPECT(!sk_cache_page(cache, sk_cache_find(cache, 0x3000)));
	sk_cache_pin(cache, upper, 2);
	sk_cache_unpin(cache, upper);
	sk_cache_pin(cache, pinned, 1);
	for (uint64_t gpa = 0x10000; gpa < 0x10000 + 1000 * 0x1000; gpa += 0x1000) {
		sk_cache_put(cache, gpa, pages[0].entries, 1);
		at = sk_cache_find(cache, gpa);
		EXPECT(at < SK_CACHE_MIN_PAGES);
		sk_cache_pin(cache, at, 1);
		sk_cache_unpin(cache, at);
	}
	EXPECT(sk_cache_find(cache, 0x10000) == SK_CACHE_NONE);
	EXPECT(sk_cache_find(cache, 0x1000) == upper && sk_cache_find(cache, 0x2000) == pinned);
	EXPECT(sk_cache_find(cache, 0x3000) != SK_CACHE_NONE); /* not visited yet */
	sk_cache_unpin(cache, pinned);
	/* all fetched ahead and nothing visited: something makes room nevertheless */
	for (uint64_t gpa = 0; gpa < 300; gpa++)
		sk_cache_put(cache, (gpa + 5000) << 12, pages[0].entries, 1);
	EXPECT(sk_cache_find(cache, 5299 << 12) != SK_CACHE_NONE);
	sk_cache_destroy(cache);
}

static void test_summaries(void)
{
	struct sk_summaries *map;
	struct sk_error err;
	uint64_t known = 0;

	EXPECT(sk_summaries_create(3000, 987654321, &map, &err) == SK_OK);
	for (uint64_t page = 0; page < 2500; page++)
		sk_summaries_put(map, page * 0x12345000, 1 + page % 5)->leaves = page;
	EXPECT(!sk_summaries_forgot(map));
	for (uint64_t page = 0; page < 2500; page++) {
		EXPECT(sk_summaries_find(map, page * 0x12345000, 1 + page % 5)->leaves == page);
		EXPECT(!sk_summaries_find(map, page * 0x12345000, 1 + (page + 1) % 5));
	}
	EXPECT(!sk_summaries_fetched(map, 0x12345000));
	sk_summaries_put(map, 0x12345000, 4)->fetched = 1;
	EXPECT(sk_summaries_fetched(map, 0x12345000) && !sk_summaries_fetched(map, 0x12346000));
	for (uint64_t page = 0; page < 100000; page++)
		EXPECT(sk_summaries_put(map, page << 12, 2)->level == 2 && sk_summaries_find(map, page << 12, 2));
	for (uint64_t page = 0; page < 100000; page++)
		known += sk_summaries_find(map, page << 12, 2) != NULL;
	EXPECT(sk_summaries_forgot(map) && known > 100 && known < 9000);
	sk_summaries_destroy(map);
}

static uint64_t noise_state = 88172645463325252ULL;

static uint64_t noise(void)
{
	noise_state ^= noise_state << 13, noise_state ^= noise_state >> 7, noise_state ^= noise_state << 17;
	return noise_state;
}

/* Any tables in every mode, any ranges, any buffers: records in order, nothing out of bounds, bounded steps. */
static void test_noise(void)
{
	static char out[1 << 14];

	for (int round = 0; round < 150; round++) {
		const struct sk_paging paging = { 1 + (uint32_t)round % 5, round % 3 != 0, round % 2 ? C47 : 0,
		                                  BITS_12_TO_51 & ~(round % 2 ? C47 : 0) };
		struct sk_list_range ranges[3];
		uint32_t kind = (uint32_t)noise() % 4;
		size_t nranges = 1 + noise() % 3, budget = 300;
		struct sk_list_options options = { kind, (uint32_t)noise() & 0x3ff, noise() % NPAGES << 12, noise() % 100,
		                                   noise() % 3000, noise() % 5 };
		uint64_t last_end = 0;
		struct sk_list *list;
		struct sk_error err;

		for (size_t page = 0; page < NPAGES; page++) {
			uint64_t same = noise(), density = noise() % 4;

			for (size_t i = 0; i < 512; i++) {
				uint64_t raw = density == 3 ? same : noise() % (1 + density * 64) ? 0 : noise();

				/* mostly links to these pages, some with noise in them */
				if (noise() % 8)
					raw = (raw & 0x1f006) | (raw ? 1 : 0);
				pages[page].entries[i] = raw;
			}
		}
		for (size_t i = 0; i < nranges; i++) {
			ranges[i].first = round % 2 ? 0 : noise() >> noise() % 64;
			ranges[i].last = round % 2 ? UINT64_MAX : ranges[i].first | noise() >> noise() % 64;
		}
		if (paging.mode == SK_PAGING_PAE)
			options.root_gpa |= noise() & 0xfe0;
		EXPECT(sk_list_create(&paging, &options, ranges, nranges, &list, &err) == SK_OK);
		while (budget--) {
			size_t used, nbytes = 64 + noise() % (sizeof out - 64);
			enum sk_list_state state = sk_list_step(list, out, nbytes, &used);

			EXPECT(used <= nbytes);
			for (size_t at = 0; kind == SK_LIST_LEAVES && at < used; at += sizeof(struct sk_list_leaf)) {
				struct sk_list_leaf leaf;

				memcpy(&leaf, out + at, sizeof leaf);
				EXPECT(leaf.gva >= last_end && leaf.nbytes >= 0x1000 && !(leaf.gpa & (leaf.nbytes - 1)));
				EXPECT(leaf.gva == 0 || sk_walk_canonical(&paging, leaf.gva));
				last_end = leaf.gva + leaf.nbytes - 1;
			}
			for (size_t at = 0; kind == SK_LIST_RUNS && at < used; at += sizeof(struct sk_list_run)) {
				struct sk_list_run run;

				memcpy(&run, out + at, sizeof run);
				EXPECT(run.gva >= last_end && run.nbytes && !(run.flags & ~(uint64_t)options.tell_apart));
				last_end = run.gva + run.nbytes - 1;
			}
			if (state == SK_LIST_DONE)
				break;
			if (state == SK_LIST_TABLES)
				supply(list);
		}
		sk_list_destroy(list);
	}
}

int main(void)
{
	test_long_mode();
	test_legacy_modes();
	test_bomb();
	test_refused();
	test_cache();
	test_summaries();
	test_noise();
	return 0;
}
