/* Decoding page-table entries, tables, and scans of many tables. Expected values are written out, not computed. */
#include "../../csrc/sk_scan.h"
#include "../../csrc/sk_walk.h"

#include <string.h>

#include "expect.h"

#define BITS_12_TO_51 0x000ffffffffff000ULL
#define NENTRIES 512
#define C47 (1ULL << 47)
#define C51 (1ULL << 51)

static const struct sk_paging plain4 = { SK_PAGING_4LEVEL, 1, 0, BITS_12_TO_51 };
static const struct sk_paging plain5 = { SK_PAGING_5LEVEL, 1, 0, BITS_12_TO_51 };
static const struct sk_paging no_nx = { SK_PAGING_4LEVEL, 0, 0, BITS_12_TO_51 };
static const struct sk_paging sev47 = { SK_PAGING_4LEVEL, 1, C47, BITS_12_TO_51 & ~C47 };
static const struct sk_paging off = { SK_PAGING_OFF, 0, 0, BITS_12_TO_51 };
static const struct sk_paging legacy = { SK_PAGING_32, 0, 0, BITS_12_TO_51 };
static const struct sk_paging pse = { SK_PAGING_PSE, 0, 0, BITS_12_TO_51 };
static const struct sk_paging pse_narrow = { SK_PAGING_PSE, 0, 0, 0x0000000ffffff000ULL }; /* PSE-36 */
static const struct sk_paging pse_sev = { SK_PAGING_PSE, 0, C47, BITS_12_TO_51 & ~C47 };
static const struct sk_paging pae = { SK_PAGING_PAE, 1, 0, BITS_12_TO_51 };
static const struct sk_paging pae_no_nx = { SK_PAGING_PAE, 0, 0, BITS_12_TO_51 };
static const struct sk_paging pae47 = { SK_PAGING_PAE, 1, C47, BITS_12_TO_51 & ~C47 };
static const struct sk_paging no_mode = { 6, 1, 0, BITS_12_TO_51 };
static const struct sk_paging narrow = { SK_PAGING_4LEVEL, 1, C47, 0x0000007ffffff000ULL }; /* 39 physical bits */

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

	EXPECT(sk_walk_index(&plain5, gva, 1) == 0x189);
	EXPECT(sk_walk_index(&plain5, gva, 2) == 0x0b3);
	EXPECT(sk_walk_index(&plain5, gva, 3) == 0x0d1);
	EXPECT(sk_walk_index(&plain5, gva, 4) == 0x124);
	EXPECT(sk_walk_index(&plain5, gva, 5) == 0x1ff);
	EXPECT(sk_walk_index(&plain5, gva, 0) == 0 && sk_walk_index(&plain5, gva, 6) == 0);
	EXPECT(sk_walk_index(&plain4, gva, 5) == 0);
	EXPECT(sk_walk_index(&pae, 0xfedcba98, 3) == 3 && sk_walk_index(&pae, 0xfedcba98, 2) == 0x1f6);
	EXPECT(sk_walk_index(&legacy, 0xfedcba98, 2) == 0x3fb && sk_walk_index(&pse, 0xfedcba98, 1) == 0x1cb);
	EXPECT(sk_walk_index(&off, gva, 1) == 0 && sk_walk_index(&no_mode, gva, 1) == 0);

	EXPECT(sk_walk_canonical(&plain4, 0x00007fffffffffffULL));
	EXPECT(!sk_walk_canonical(&plain4, 0x0000800000000000ULL));
	EXPECT(!sk_walk_canonical(&plain4, 0xffff7fffffffffffULL));
	EXPECT(sk_walk_canonical(&plain4, 0xffff800000000000ULL));
	EXPECT(sk_walk_canonical(&plain5, 0x00ffffffffffffffULL));
	EXPECT(!sk_walk_canonical(&plain5, 0x0100000000000000ULL));
	EXPECT(!sk_walk_canonical(&plain5, 0xfeffffffffffffffULL));
	EXPECT(sk_walk_canonical(&plain5, 0xff00000000000000ULL));
	for (size_t i = 0; i < 4; i++) {
		const struct sk_paging *const below_4g[] = { &off, &legacy, &pse, &pae };

		EXPECT(sk_walk_canonical(below_4g[i], 0xffffffff));
		EXPECT(!sk_walk_canonical(below_4g[i], 0x100000000ULL));
		EXPECT(!sk_walk_canonical(below_4g[i], 0xffffffff80000000ULL));
	}
	EXPECT(!sk_walk_canonical(&no_mode, 0));
}

static void test_shapes(void)
{
	const struct sk_paging *const modes[] = { &off, &legacy, &pse, &pae, &plain4, &plain5, &no_mode };
	const uint32_t levels[] = { 0, 2, 2, 3, 4, 5, 0 };

	for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++) {
		EXPECT(sk_walk_levels(modes[i]) == levels[i]);
		EXPECT(sk_walk_nentries(modes[i], 0) == 0 && sk_walk_nentries(modes[i], levels[i] + 1) == 0);
		EXPECT(sk_walk_shift(modes[i], 0) == 0 && sk_walk_shift(modes[i], levels[i] + 1) == 0);
		EXPECT(sk_walk_table_nbytes(modes[i], levels[i] + 1) == 0);
	}
	EXPECT(sk_walk_nentries(&pse, 2) == 1024 && sk_walk_nentries(&legacy, 1) == 1024);
	EXPECT(sk_walk_shift(&pse, 2) == 22 && sk_walk_shift(&pse, 1) == 12);
	EXPECT(sk_walk_nentries(&pae, 3) == 4 && sk_walk_nentries(&pae, 2) == 512);
	EXPECT(sk_walk_shift(&pae, 3) == 30 && sk_walk_shift(&pae, 2) == 21);
	EXPECT(sk_walk_table_nbytes(&pae, 3) == 32 && sk_walk_table_nbytes(&pae, 2) == 4096);
	EXPECT(sk_walk_table_nbytes(&legacy, 2) == 4096 && sk_walk_table_nbytes(&plain5, 5) == 4096);
	EXPECT(sk_walk_nentries(&plain5, 5) == 512 && sk_walk_shift(&plain5, 5) == 48);
}

static void test_raw(void)
{
	/* at an odd address, as a table inside a packet may be */
	char bytes[1 + SK_TABLE_NBYTES];
	const char *table = bytes + 1;

	for (size_t i = 0; i < sizeof bytes; i++)
		bytes[i] = (char)(i * 7);
	EXPECT(sk_walk_raw(&plain4, 1, table, 0) == 0x38312a231c150e07ULL);
	EXPECT(sk_walk_raw(&plain4, 4, table, 511) == 0x00f9f2ebe4ddd6cfULL);
	EXPECT(sk_walk_raw(&plain4, 4, table, 512) == 0 && sk_walk_raw(&plain4, 5, table, 0) == 0);
	EXPECT(sk_walk_raw(&legacy, 1, table, 1) == 0x38312a23 && sk_walk_raw(&pse, 2, table, 1023) == 0x00f9f2eb);
	EXPECT(sk_walk_raw(&legacy, 1, table, 1024) == 0);
	EXPECT(sk_walk_raw(&pae, 3, table, 3) == 0xe0d9d2cbc4bdb6afULL && sk_walk_raw(&pae, 3, table, 4) == 0);
	EXPECT(sk_walk_raw(&off, 1, table, 0) == 0);
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
	expect_entry(&plain4, 5, 1, 0, 0, 0);
	expect_entry(&plain4, 6, 1, 0, 0, 0);
	expect_entry(&off, 1, 1, 0, 0, 0);
	expect_entry(&no_mode, 1, 1, 0, 0, 0);
}

static void test_entries_of_32_bits(void)
{
	const uint32_t present = SK_PRESENT, leaf = SK_PRESENT | SK_LEAF;

	for (size_t i = 0; i < 2; i++) {
		const struct sk_paging *const both[] = { &legacy, &pse };

		expect_entry(both[i], 1, 0xfffffffe, 0, 0, 0);
		expect_entry(both[i], 1, 0xfffff001, 0xfffff000, 0x1000, leaf);
		/* PAT, G and what the kernel keeps in 11:9; nothing is reserved */
		expect_entry(both[i], 1, 0x12345fff, 0x12345000, 0x1000, leaf | SK_WRITABLE | SK_USER);
		expect_entry(both[i], 2, 0xfffff067, 0xfffff000, 0, present | SK_WRITABLE | SK_USER);
		expect_entry(both[i], 3, 1, 0, 0, 0);
	}
	/* CR4.PSE clear: bit 7 is ignored */
	expect_entry(&legacy, 2, 0x00402083, 0x00402000, 0, present | SK_WRITABLE);
	/* 4 MiB: 20:13 are bits 39:32, 12 is PAT, 21 is reserved */
	expect_entry(&pse, 2, 0x00401081, 0x00400000, 0x400000, leaf);
	expect_entry(&pse, 2, 0xffc00087, 0xffc00000, 0x400000, leaf | SK_WRITABLE | SK_USER);
	expect_entry(&pse, 2, 0x00402081, 0x0100400000ULL, 0x400000, leaf);
	expect_entry(&pse, 2, 0xffdff081, 0xffffc00000ULL, 0x400000, leaf);
	expect_entry(&pse, 2, 0x00600081, 0x00400000, 0x400000, leaf | SK_RESERVED);
	/* with 36 physical bits only 16:13 are address */
	expect_entry(&pse_narrow, 2, 0x0041f081, 0x0f00400000ULL, 0x400000, leaf);
	expect_entry(&pse_narrow, 2, 0x00421081, 0x0000400000ULL, 0x400000, leaf | SK_RESERVED);
	/* no C-bit, and none is needed: all is private */
	expect_entry(&pse_sev, 1, 0xfffff001, 0xfffff000, 0x1000, leaf | SK_PRIVATE);
	expect_entry(&pse_sev, 2, 0x00402081, 0x0100400000ULL, 0x400000, leaf | SK_PRIVATE);
	expect_entry(&pse_sev, 2, 0x00402001, 0x00402000, 0, present | SK_PRIVATE);
}

static void test_entries_of_pae(void)
{
	const uint32_t present = SK_PRESENT, leaf = SK_PRESENT | SK_LEAF;
	const uint32_t passes = SK_PRESENT | SK_WRITABLE | SK_USER;
	const struct sk_paging *const both[] = { &pae, &pae47 };
	const uint64_t cbits[] = { 0, C47 };

	for (size_t i = 0; i < 2; i++) {
		const uint64_t c = cbits[i];
		const uint32_t private = c ? SK_PRIVATE : 0;

		/* the top entry has no rights of its own: where they would be it is reserved */
		expect_entry(both[i], 3, c | 0x5001, 0x5000, 0, passes | private);
		expect_entry(both[i], 3, c | 0x5e19, 0x5000, 0, passes | private);
		for (uint32_t bit = 0; bit < 64; bit++) {
			if (bit == 1 || bit == 2 || (bit >= 5 && bit <= 8) || bit >= 52)
				expect_entry(both[i], 3, c | 0x5001 | 1ULL << bit, 0x5000, 0,
				             passes | private | SK_RESERVED);
		}
		expect_entry(both[i], 2, c | 0x5063, 0x5000, 0, present | SK_WRITABLE | private);
		expect_entry(both[i], 2, c | 0x8000000000201085ULL, 0x200000, 0x200000,
		             leaf | SK_USER | SK_NX | private);
		expect_entry(both[i], 2, c | 0x300081, 0x200000, 0x200000, leaf | private | SK_RESERVED);
		expect_entry(both[i], 1, c | C51 | 0x8000000000005083ULL, C51 | 0x5000, 0x1000,
		             leaf | SK_WRITABLE | SK_NX | private);
		for (uint32_t bit = 52; bit < 63; bit++) {
			expect_entry(both[i], 1, c | 0x5001 | 1ULL << bit, 0x5000, 0x1000, leaf | private | SK_RESERVED);
			expect_entry(both[i], 2, c | 0x5001 | 1ULL << bit, 0x5000, 0, present | private | SK_RESERVED);
		}
		expect_entry(both[i], 4, c | 1, 0, 0, 0);
	}
	expect_entry(&pae_no_nx, 1, 0x8000000000005001ULL, 0x5000, 0x1000, leaf | SK_RESERVED);
	expect_entry(&pae_no_nx, 2, 0x8000000000005001ULL, 0x5000, 0, present | SK_RESERVED);
}

static void expect_run(const struct sk_run *run, uint64_t gpa, uint64_t page_nbytes, uint32_t flags,
                       uint16_t first, uint16_t count)
{
	EXPECT(run->gpa == gpa && run->page_nbytes == page_nbytes);
	EXPECT(run->flags == flags && run->first == first && run->count == count);
}

static void test_table(void)
{
	static uint64_t table[NENTRIES];
	struct sk_run runs[NENTRIES];
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

	for (uint64_t i = 0; i < NENTRIES; i++)
		table[i] = 0x40000083 + i * 0x200000;
	EXPECT(sk_walk_table(&plain4, 2, table, runs) == 1);
	expect_run(&runs[0], 0x40000000, 0x200000, leaf | SK_WRITABLE, 0, 512);
}

static void test_tables_of_32_bits(void)
{
	static uint32_t table[1024];
	struct sk_run runs[SK_MAX_ENTRIES];
	const uint32_t leaf = SK_PRESENT | SK_LEAF;

	for (uint32_t i = 0; i < 1024; i++)
		table[i] = i % 2 ? 0 : i << 12 | 1;
	EXPECT(sk_walk_table(&pse, 1, table, runs) == 512);
	expect_run(&runs[511], 1022 << 12, 0x1000, leaf, 1022, 1);
	for (uint32_t i = 0; i < 1024; i++)
		table[i] = i << 12 | 1;
	EXPECT(sk_walk_table(&pse, 1, table, runs) == 1);
	expect_run(&runs[0], 0, 0x1000, leaf, 0, 1024);
	EXPECT(sk_walk_table(&legacy, 2, table, runs) == 1024);
	/* large pages that go on above 4 GiB; none of them without CR4.PSE */
	memset(table, 0, sizeof table);
	table[3] = 0xff800083;
	table[4] = 0xffc00083;
	table[5] = 0x00002083;
	table[6] = 0x00404083;
	EXPECT(sk_walk_table(&pse_sev, 2, table, runs) == 2);
	expect_run(&runs[0], 0xff800000, 0x400000, leaf | SK_WRITABLE | SK_PRIVATE, 3, 3);
	expect_run(&runs[1], 0x0200400000ULL, 0x400000, leaf | SK_WRITABLE | SK_PRIVATE, 6, 1);
	EXPECT(sk_walk_table(&legacy, 2, table, runs) == 4);
	expect_run(&runs[0], 0xff800000, 0, SK_PRESENT | SK_WRITABLE, 3, 1);
}

static void test_top_table_of_pae(void)
{
	/* exactly as long as it is, so that the sanitizers see who reads on */
	uint64_t table[4] = { 0x1001 | C47, 0, 0x2001, 0x3003 };
	struct sk_run runs[4];
	const uint32_t passes = SK_PRESENT | SK_WRITABLE | SK_USER;

	EXPECT(sk_walk_table(&pae47, 3, table, runs) == 3);
	expect_run(&runs[0], 0x1000, 0, passes | SK_PRIVATE, 0, 1);
	expect_run(&runs[1], 0x2000, 0, passes, 2, 1);
	expect_run(&runs[2], 0x3000, 0, passes | SK_RESERVED, 3, 1);
}

/* The bits that are reserved in a leaf of this level, each tried by itself. */
static uint64_t reserved_in_leaf(const struct sk_paging *paging, uint32_t level)
{
	const uint64_t leaf = level > 1 ? 0x81 : 1;
	uint64_t mask = 0;

	for (uint32_t bit = 0; bit < 64; bit++) {
		struct sk_entry entry;

		sk_walk_entry(paging, level, leaf | 1ULL << bit, &entry);
		mask |= entry.flags & SK_RESERVED ? 1ULL << bit : 0;
	}
	return mask;
}

/* The contract of a run, entry by entry, without sk_walk_table. */
static size_t runs_one_by_one(const struct sk_paging *paging, uint32_t level, const void *table,
                              struct sk_run *out)
{
	const uint64_t reserved = reserved_in_leaf(paging, level);
	size_t nruns = 0;
	uint64_t before = 0;

	for (uint32_t i = 0; i < sk_walk_nentries(paging, level); i++) {
		uint64_t raw = sk_walk_raw(paging, level, table, i);
		struct sk_run *last = nruns ? &out[nruns - 1] : NULL;
		struct sk_entry entry;

		sk_walk_entry(paging, level, raw, &entry);
		if (!entry.flags)
			continue;
		if (last && last->first + last->count == (int)i && entry.flags & SK_LEAF &&
		    last->flags == entry.flags && last->gpa + last->count * last->page_nbytes == entry.gpa &&
		    !((raw ^ before) & reserved))
			last->count++;
		else
			out[nruns++] = (struct sk_run){ entry.gpa, entry.page_nbytes, entry.flags, (uint16_t)i, 1 };
		before = raw;
	}
	return nruns;
}

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13, *state ^= *state >> 7, *state ^= *state << 17;
	return *state;
}

/* An entry that likely continues the one before it, in most ways in which it can fail to. */
static uint64_t likely_entry(uint64_t *state, uint64_t before, uint64_t step)
{
	switch (next_random(state) % 24) {
	case 0: return 0;
	case 1: return before;
	case 2: return *state & ~1ULL;
	case 3: return *state | 1;
	case 4: return (before + step) ^ 1ULL << (*state >> 32 & 63);
	case 5: return before ^ 0x80;
	case 6: return (before + step) & 0xffffffff;
	case 7: return 0x0000fffff0000083ULL | (*state & 0xf800000);
	default: return before + step;
	}
}

static void test_tables_equal_their_entries(void)
{
	const struct sk_paging *const modes[] = { &legacy, &pse, &pse_narrow, &pse_sev, &pae, &pae_no_nx, &pae47,
	                                          &plain4, &no_nx, &sev47, &narrow, &plain5 };
	static uint64_t table[SK_TABLE_NBYTES / 8];
	static struct sk_run runs[SK_MAX_ENTRIES], expected[SK_MAX_ENTRIES];
	uint64_t state = 88172645463325252ULL;

	for (uint32_t round = 0; round < 200; round++) {
		for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++) {
			const struct sk_paging *paging = modes[i];
			uint32_t level = 1 + round % sk_walk_levels(paging);
			uint64_t step = 1ULL << sk_walk_shift(paging, level);
			uint32_t wide = sk_walk_table_nbytes(paging, level) / sk_walk_nentries(paging, level) == 8;
			uint64_t entry = 0x83;
			size_t nruns;

			for (size_t at = 0; at < SK_TABLE_NBYTES / (wide ? 8 : 4); at++) {
				entry = likely_entry(&state, entry, step);
				/* little-endian: a narrow entry is the first half */
				memcpy((char *)table + at * (wide ? 8 : 4), &entry, wide ? 8 : 4);
			}
			nruns = sk_walk_table(paging, level, table, runs);
			EXPECT(nruns == runs_one_by_one(paging, level, table, expected));
			EXPECT(!memcmp(runs, expected, nruns * sizeof runs[0]));
		}
	}
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
	static uint64_t tables[3][NENTRIES];
	struct sk_scan *scan = new_scan(SK_PRIVATE, 1 << 16, 1 << 16);
	const struct sk_span *spans;
	const uint64_t *found;
	struct sk_scan_totals totals;
	struct sk_error err;

	for (uint64_t i = 0; i < NENTRIES; i++) {
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
	static uint64_t table[NENTRIES];
	struct sk_scan *scan = new_scan(0, 2048, 2048);
	const struct sk_span *spans;
	const uint64_t *found;
	struct sk_scan_totals totals;
	struct sk_error err;
	size_t count;

	for (uint64_t t = 0; t < 64; t++) {
		for (uint64_t i = 0; i < NENTRIES; i++)
			table[i] = (((t * NENTRIES + i) * 2 + 1) << 12) | 1;
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
	static uint64_t table[NENTRIES];
	static struct sk_run runs[SK_MAX_ENTRIES];
	struct sk_scan *scan = new_scan(~0U, 4096, 4096);
	uint64_t state = 88172645463325252ULL;
	struct sk_error err;

	for (int round = 0; round < 2000; round++) {
		uint32_t level = 1 + (uint32_t)round % 4;
		size_t nruns, entries = 0;
		unsigned next = 0;

		for (size_t i = 0; i < NENTRIES; i++) {
			table[i] = round % 3 ? next_random(&state) : next_random(&state) & 0x1f083;
			entries += table[i] & 1;
		}
		nruns = sk_walk_table(round % 2 ? &sev47 : &no_nx, level, table, runs);
		for (size_t i = 0; i < nruns; i++) {
			EXPECT(runs[i].first >= next && runs[i].count >= 1);
			next = runs[i].first + runs[i].count;
			entries -= runs[i].count;
		}
		EXPECT(next <= NENTRIES && entries == 0);
		EXPECT(sk_scan_tables(scan, &sev47, level, table, 1, &err) == SK_OK);
	}
	sk_scan_destroy(scan);
}

int main(void)
{
	test_index_and_canonical();
	test_shapes();
	test_raw();
	test_entries();
	test_entries_of_32_bits();
	test_entries_of_pae();
	test_table();
	test_tables_of_32_bits();
	test_top_table_of_pae();
	test_tables_equal_their_entries();
	test_scan_merges();
	test_scan_limits();
	test_noise();
	return 0;
}
