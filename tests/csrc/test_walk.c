/* Decoding page-table entries, tables, and scans of many tables. Expected values are written out, not computed. */
#include "../../csrc/sk_scan.h"
#include "../../csrc/sk_walk.h"

#include <string.h>

#include "expect.h"

#define BITS_12_TO_51 0x000ffffffffff000ULL
#define C47 (1ULL << 47)
#define C51 (1ULL << 51)

static const struct sk_paging plain4 = { 4, 1, 0, BITS_12_TO_51 };
static const struct sk_paging plain5 = { 5, 1, 0, BITS_12_TO_51 };
static const struct sk_paging no_nx = { 4, 0, 0, BITS_12_TO_51 };
static const struct sk_paging sev47 = { 4, 1, C47, BITS_12_TO_51 & ~C47 };
static const struct sk_paging narrow = { 4, 1, C47, 0x0000007ffffff000ULL }; /* 39 physical bits */

static void expect_entry(const struct sk_paging *paging, uint32_t level, uint64_t raw, uint64_t gpa,
                         uint64_t page_nbytes, uint32_t flags)
{
	struct sk_entry entry;

	memset(&entry, 0xa5, sizeof entry);
	sk_walk_entry(paging, level, raw, &entry);
	if (entry.gpa != gpa || entry.page_nbytes != page_nbytes || entry.flags != flags) {
		fprintf(stderr, "level %u, 0x%016llx: gpa 0x%llx, page 0x%llx, flags 0x%x\n", level,
		        (unsigned long long)raw, (unsigned long long)entry.gpa,
		        (unsigned long long)entry.page_nbytes, entry.flags);
		exit(1);
	}
}

static void test_index_and_canonical(void)
{
	uint64_t gva = 0xffff923456789abcULL;

	EXPECT(sk_walk_index(gva, 1) == 0x189);
	EXPECT(sk_walk_index(gva, 2) == 0x0b3);
	EXPECT(sk_walk_index(gva, 3) == 0x0d1);
	EXPECT(sk_walk_index(gva, 4) == 0x124);
	EXPECT(sk_walk_index(gva, 5) == 0x1ff);
	EXPECT(sk_walk_index(gva, 0) == 0 && sk_walk_index(gva, 6) == 0);

	EXPECT(sk_walk_canonical(&plain4, 0x00007fffffffffffULL));
	EXPECT(!sk_walk_canonical(&plain4, 0x0000800000000000ULL));
	EXPECT(!sk_walk_canonical(&plain4, 0xffff7fffffffffffULL));
	EXPECT(sk_walk_canonical(&plain4, 0xffff800000000000ULL));
	EXPECT(sk_walk_canonical(&plain5, 0x00ffffffffffffffULL));
	EXPECT(!sk_walk_canonical(&plain5, 0x0100000000000000ULL));
	EXPECT(!sk_walk_canonical(&plain5, 0xfeffffffffffffffULL));
	EXPECT(sk_walk_canonical(&plain5, 0xff00000000000000ULL));
}

static void test_entries(void)
{
	const uint32_t present = SK_PRESENT, leaf = SK_PRESENT | SK_LEAF;

	expect_entry(&plain4, 1, 0, 0, 0, 0);
	expect_entry(&plain4, 1, ~1ULL, 0, 0, 0);
	/* a leaf at level 1, whatever bit 7 (PAT there) says */
	expect_entry(&plain4, 1, 0x000ffffffffff001ULL, BITS_12_TO_51, 0x1000, leaf);
	expect_entry(&plain4, 1, 0x0000000000005083ULL, 0x5000, 0x1000, leaf | SK_WRITABLE);
	expect_entry(&plain4, 1, 0x8000000000005007ULL, 0x5000, 0x1000, leaf | SK_WRITABLE | SK_USER | SK_NX);
	/* bits 62:52 are ignored or protection keys */
	expect_entry(&plain4, 1, 0x7ff0000000005001ULL, 0x5000, 0x1000, leaf);
	/* 2 MiB and 1 GiB: bit 12 is PAT, the bits above it up to the address are reserved */
	expect_entry(&plain4, 2, 0x0000000000401081ULL, 0x400000, 0x200000, leaf);
	expect_entry(&plain4, 2, 0x0000000000402081ULL, 0x400000, 0x200000, leaf | SK_RESERVED);
	expect_entry(&plain4, 2, 0x0000000000500081ULL, 0x400000, 0x200000, leaf | SK_RESERVED);
	expect_entry(&plain4, 3, 0x00000000c0001081ULL, 0xc0000000, 0x40000000, leaf);
	expect_entry(&plain4, 3, 0x00000000e0000081ULL, 0xc0000000, 0x40000000, leaf | SK_RESERVED);
	/* tables; no page at level 4 or 5 */
	expect_entry(&plain4, 2, 0x0000000000402003ULL, 0x402000, 0, present | SK_WRITABLE);
	expect_entry(&plain4, 4, 0x0000000000402003ULL, 0x402000, 0, present | SK_WRITABLE);
	expect_entry(&plain4, 4, 0x0000000000402083ULL, 0x402000, 0, present | SK_WRITABLE | SK_RESERVED);
	expect_entry(&plain5, 5, 0x0000000000402081ULL, 0x402000, 0, present | SK_RESERVED);
	/* without EFER.NXE bit 63 is reserved */
	expect_entry(&no_nx, 1, 0x8000000000005001ULL, 0x5000, 0x1000, leaf | SK_RESERVED);
	/* the C-bit is no address */
	expect_entry(&sev47, 1, C47 | 0x5001, 0x5000, 0x1000, leaf | SK_PRIVATE);
	expect_entry(&sev47, 2, C47 | 0x400081, 0x400000, 0x200000, leaf | SK_PRIVATE);
	expect_entry(&sev47, 4, C47 | 0x402001, 0x402000, 0, present | SK_PRIVATE);
	expect_entry(&plain4, 1, C47 | 0x5001, C47 | 0x5000, 0x1000, leaf);
	expect_entry(&sev47, 1, C51 | 0x5001, C51 | 0x5000, 0x1000, leaf);
	/* address bits that the form does not have are reserved, but not the C-bit above them */
	expect_entry(&narrow, 1, C47 | 0x7000005001ULL, 0x7000005000ULL, 0x1000, leaf | SK_PRIVATE);
	expect_entry(&narrow, 1, 0x8000005001ULL, 0x5000, 0x1000, leaf | SK_RESERVED);
	/* no such level */
	expect_entry(&plain4, 0, 1, 0, 0, 0);
	expect_entry(&plain4, 6, 1, 0, 0, 0);
}

static void expect_run(const struct sk_run *run, uint64_t gpa, uint64_t page_nbytes, uint32_t flags,
                       uint16_t first, uint16_t count)
{
	EXPECT(run->gpa == gpa && run->page_nbytes == page_nbytes);
	EXPECT(run->flags == flags && run->first == first && run->count == count);
}

static void test_table(void)
{
	static uint64_t table[SK_TABLE_ENTRIES];
	struct sk_run runs[SK_TABLE_ENTRIES];
	const uint32_t leaf = SK_PRESENT | SK_LEAF;

	EXPECT(sk_walk_table(&sev47, 1, table, runs) == 0);
	table[0] = 0x5001;
	table[1] = 0x6001;
	table[2] = 0x7001 | C47;  /* other flags */
	table[3] = 0x8001 | C47;
	table[4] = 0xa001 | C47;  /* does not touch */
	table[6] = 0xb001 | C47;  /* touches, but is no neighbour */
	table[511] = 0xffffffff001ULL;
	EXPECT(sk_walk_table(&sev47, 1, table, runs) == 5);
	expect_run(&runs[0], 0x5000, 0x1000, leaf, 0, 2);
	expect_run(&runs[1], 0x7000, 0x1000, leaf | SK_PRIVATE, 2, 2);
	expect_run(&runs[2], 0xa000, 0x1000, leaf | SK_PRIVATE, 4, 1);
	expect_run(&runs[3], 0xb000, 0x1000, leaf | SK_PRIVATE, 6, 1);
	expect_run(&runs[4], 0xffffffff000ULL, 0x1000, leaf, 511, 1);
	/* the same bytes one level up lead to tables, and never merge */
	EXPECT(sk_walk_table(&sev47, 2, table, runs) == 7);
	expect_run(&runs[1], 0x6000, 0, SK_PRESENT, 1, 1);
	EXPECT(sk_walk_table(&sev47, 6, table, runs) == 0);

	for (uint64_t i = 0; i < SK_TABLE_ENTRIES; i++)
		table[i] = 0x40000083 + i * 0x200000;
	EXPECT(sk_walk_table(&plain4, 2, table, runs) == 1);
	expect_run(&runs[0], 0x40000000, 0x200000, leaf | SK_WRITABLE, 0, 512);
}

static struct sk_scan *new_scan(uint32_t flags_mask, size_t max_spans, size_t max_tables)
{
	struct sk_error err;
	struct sk_scan *scan;

	EXPECT(sk_scan_create(flags_mask, max_spans, max_tables, &scan, &err) == SK_OK);
	return scan;
}

static void test_scan_merges(void)
{
	static uint64_t tables[3][SK_TABLE_ENTRIES];
	struct sk_scan *scan = new_scan(SK_PRIVATE, 1 << 16, 1 << 16);
	const struct sk_span *spans;
	const uint64_t *found;
	struct sk_scan_totals totals;
	struct sk_error err;

	for (uint64_t i = 0; i < SK_TABLE_ENTRIES; i++) {
		tables[0][i] = (i << 12) | 1 | C47;                  /* 0 to 2 MiB, ascending */
		tables[1][i] = ((1023 - i) << 12) | 3 | C47;         /* 2 to 4 MiB, descending, writable */
		tables[2][i] = i % 2 ? 0x3000 | 1 : 0x9000 | 1;      /* two pages again and again, shared */
	}
	tables[2][7] = 0x8000000000005081ULL | C51;
	EXPECT(sk_scan_tables(scan, &sev47, 1, tables, 3, &err) == SK_OK);
	EXPECT(sk_scan_spans(scan, &spans) == 4);
	EXPECT(spans[0].gpa == 0x3000 && spans[0].nbytes == 0x1000 && spans[0].flags == 0);
	EXPECT(spans[1].gpa == 0x9000 && spans[1].nbytes == 0x1000 && spans[1].flags == 0);
	EXPECT(spans[2].gpa == (C51 | 0x5000) && spans[2].nbytes == 0x1000 && spans[2].flags == 0);
	EXPECT(spans[3].gpa == 0 && spans[3].nbytes == 0x400000 && spans[3].flags == SK_PRIVATE);
	EXPECT(sk_scan_take_tables(scan, &found) == 0);

	EXPECT(sk_scan_tables(scan, &sev47, 4, tables[2], 1, &err) == SK_OK);
	EXPECT(sk_scan_take_tables(scan, &found) == 2 && found[0] == 0x3000 && found[1] == 0x9000);
	EXPECT(sk_scan_take_tables(scan, &found) == 0);
	sk_scan_totals(scan, &totals);
	EXPECT(totals.tables == 4 && totals.pages[1] == 1536 && totals.reserved == 1);
	EXPECT(!totals.spans_full && !totals.tables_full);
	EXPECT(sk_scan_tables(scan, &sev47, 6, tables, 1, &err) == SK_ERR_INVALID);
	sk_scan_destroy(scan);
	sk_scan_destroy(NULL);
}

/* A guest that wants to fill our memory: everything stays within its limits, and what was kept is right. */
static void test_scan_limits(void)
{
	static uint64_t table[SK_TABLE_ENTRIES];
	struct sk_scan *scan = new_scan(0, 2048, 2048);
	const struct sk_span *spans;
	const uint64_t *found;
	struct sk_scan_totals totals;
	struct sk_error err;
	size_t count;

	for (uint64_t t = 0; t < 64; t++) {
		for (uint64_t i = 0; i < SK_TABLE_ENTRIES; i++)
			table[i] = (((t * SK_TABLE_ENTRIES + i) * 2 + 1) << 12) | 1;
		EXPECT(sk_scan_tables(scan, &plain4, 1, table, 1, &err) == SK_OK);
		EXPECT(sk_scan_tables(scan, &plain4, 2, table, 1, &err) == SK_OK);
	}
	count = sk_scan_spans(scan, &spans);
	EXPECT(count >= 1024 && count <= 2048);
	for (size_t i = 0; i < count; i++)
		EXPECT(spans[i].gpa == (2 * i + 1) << 12 && spans[i].nbytes == 0x1000);
	count = sk_scan_take_tables(scan, &found);
	EXPECT(count >= 1024 && count <= 2048 && found[count - 1] == (2 * count - 1) << 12);
	sk_scan_totals(scan, &totals);
	EXPECT(totals.spans_full && totals.tables_full && totals.pages[1] == 64 * 512);
	/* the next level starts with an empty list again */
	EXPECT(sk_scan_tables(scan, &plain4, 2, table, 1, &err) == SK_OK);
	EXPECT(sk_scan_take_tables(scan, &found) == 512);
	sk_scan_destroy(scan);
}

/* Any bytes: no read or write out of bounds (the sanitizers watch), runs in order and inside the table. */
static void test_noise(void)
{
	static uint64_t table[SK_TABLE_ENTRIES];
	static struct sk_run runs[SK_TABLE_ENTRIES];
	struct sk_scan *scan = new_scan(~0U, 4096, 4096);
	uint64_t state = 88172645463325252ULL;
	struct sk_error err;

	for (int round = 0; round < 2000; round++) {
		uint32_t level = 1 + (uint32_t)round % 5;
		size_t nruns, entries = 0;
		unsigned next = 0;

		for (size_t i = 0; i < SK_TABLE_ENTRIES; i++) {
			state ^= state << 13, state ^= state >> 7, state ^= state << 17;
			table[i] = round % 3 ? state : state & 0x1f083;
			entries += table[i] & 1;
		}
		nruns = sk_walk_table(round % 2 ? &sev47 : &no_nx, level, table, runs);
		for (size_t i = 0; i < nruns; i++) {
			EXPECT(runs[i].first >= next && runs[i].count >= 1);
			next = runs[i].first + runs[i].count;
			entries -= runs[i].count;
		}
		EXPECT(next <= SK_TABLE_ENTRIES && entries == 0);
		EXPECT(sk_scan_tables(scan, &sev47, level, table, 1, &err) == SK_OK);
	}
	sk_scan_destroy(scan);
}

int main(void)
{
	test_index_and_canonical();
	test_entries();
	test_table();
	test_scan_merges();
	test_scan_limits();
	test_noise();
	return 0;
}
