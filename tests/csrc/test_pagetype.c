/* Types of pages by hand-made structs: each rule, blocks that go on, blocks that are none, every byte random. */
#include "../../csrc/sk_pagetype.h"

#include <string.h>

#include "expect.h"

#define NBYTES 64
#define PAGES 64
#define ALL 31u

enum { LRU = 1 << 4, PRIVATE = 1 << 13, SLAB = 1 << 9, SWAPCACHE = 1 << 10, SWAPBACKED = 1 << 19, HEAD = 1 << 16, BROKEN = 1 << 22 };

static const struct sk_page_layout layout = {
	.nbytes = NBYTES,
	.flags = 0, .compound_head = 8, .dtor = 16, .order = 17, .mapping = 24, .private_data = 40, .mapcount = 48,
	.lru = LRU, .has_private = PRIVATE, .slab = SLAB, .swapcache = SWAPCACHE, .swapbacked = SWAPBACKED,
	.head = HEAD, .hwpoison = BROKEN,
	.buddy_mapcount = -129, .offline_mapcount = -257, .hugetlb_dtor = 2,
};
static char structs[PAGES * NBYTES];
static uint8_t types[PAGES + 1];

static void set(unsigned page, uint32_t offset, uint64_t value, size_t nbytes)
{
	memcpy(structs + page * NBYTES + offset, &value, nbytes);
}

static void page(unsigned number, uint64_t flags, uint64_t mapping, int64_t mapcount)
{
	memset(structs + number * NBYTES, 0, NBYTES);
	set(number, layout.flags, flags, 8);
	set(number, layout.mapping, mapping, 8);
	set(number, layout.mapcount, (uint64_t)mapcount, 4);
}

static uint8_t first(uint32_t level)
{
	struct sk_page_block block = { 0 };

	types[PAGES] = 0xee;
	sk_page_types(&layout, level, 0, structs, PAGES, &block, types);
	EXPECT(types[PAGES] == 0xee);
	return types[0];
}

static uint8_t alone(uint64_t flags, uint64_t mapping, int64_t mapcount, uint32_t level)
{
	page(0, flags, mapping, mapcount);
	return first(level);
}

static void rules(void)
{
	EXPECT(alone(0, 0, -1, ALL) == 0);
	EXPECT(alone(LRU, 0x1000, -1, ALL) == SK_PAGE_CACHE);
	EXPECT(alone(LRU, 0x1000, -1, ALL & ~2u) == SK_PAGE_CACHE_PRIVATE);
	EXPECT(alone(LRU | PRIVATE, 0x1000, -1, ALL) == SK_PAGE_CACHE_PRIVATE);
	EXPECT(alone(LRU | PRIVATE, 0x1000, -1, SK_PAGE_CACHE) == 0);
	EXPECT(alone(SWAPCACHE | SWAPBACKED, 0, -1, ALL) == SK_PAGE_CACHE);
	EXPECT(alone(SWAPCACHE, 0, -1, ALL) == 0);
	EXPECT(alone(LRU, 0x1001, 0, ALL) == SK_PAGE_USER);
	EXPECT(alone(LRU, 0x1001, 0, ALL & ~8u) == 0);
	EXPECT(alone(SLAB, 0x1001, -1, ALL) == 0);
	EXPECT(alone(0, 0, -129, ALL) == SK_PAGE_FREE);
	EXPECT(alone(0, 0, -129, ALL & ~16u) == 0);
	EXPECT(alone(SLAB, 0, -129, ALL) == 0);
	EXPECT(alone(0, 0, -257, ALL) == SK_PAGE_FREE);
	EXPECT(alone(BROKEN, 0, -1, SK_PAGE_CACHE) == SK_PAGE_BAD);
}

static void blocks(void)
{
	struct sk_page_block block = { 0 };

	/* a free block of 16 pages, whose other structs say nothing */
	page(0, 0, 0, -129);
	set(0, layout.private_data, 4, 8);
	EXPECT(first(ALL) == SK_PAGE_FREE);
	for (int i = 0; i < 16; i++)
		EXPECT(types[i] == SK_PAGE_FREE);
	EXPECT(types[16] == 0);
	/* it goes on in the next call */
	sk_page_types(&layout, ALL, 0, structs, 4, &block, types);
	EXPECT(block.until_pfn == 16);
	sk_page_types(&layout, ALL, 4, structs + NBYTES, PAGES - 1, &block, types);
	EXPECT(types[11] == SK_PAGE_FREE && types[12] == 0);
	/* one that is not where such a block can be, and one of an impossible size, are a page each */
	memset(&block, 0, sizeof block);
	sk_page_types(&layout, ALL, 8, structs, PAGES, &block, types);
	EXPECT(types[0] == SK_PAGE_FREE && types[1] == 0);
	set(0, layout.private_data, 1u << 20, 8);
	EXPECT(first(ALL) == SK_PAGE_FREE && types[1] == 0);
	/* a huge page of hugetlbfs, told by its second struct; its other parts are tails */
	page(0, HEAD, 0x1000, -1);
	for (unsigned i = 1; i < 8; i++) {
		page(i, 0, 0, -1);
		set(i, layout.compound_head, 1, 8);
	}
	set(1, layout.dtor, 2, 1);
	set(1, layout.order, 3, 1);
	EXPECT(first(ALL) == SK_PAGE_USER && types[7] == SK_PAGE_USER && types[8] == 0);
	EXPECT(first(ALL & ~8u) == 0 && types[7] == 0);
	set(1, layout.order, 255, 1);
	EXPECT(first(ALL) == SK_PAGE_USER && types[1] == 0);
}

int main(void)
{
	struct sk_page_block block = { 0 };
	uint32_t state = 1;

	rules();
	blocks();
	for (int turn = 0; turn < 2000; turn++) {
		for (size_t i = 0; i < sizeof structs; i++)
			structs[i] = (char)((state = state * 1664525 + 1013904223) >> 24);
		sk_page_types(&layout, state & ALL, (uint64_t)turn * PAGES, structs, PAGES, &block, types);
		for (int i = 0; i < PAGES; i++)
			EXPECT(!(types[i] & (types[i] - 1)));
	}
	return 0;
}
