#include "sk_pagetype.h"

#include <stdbool.h>
#include <string.h>

#define MAX_ORDER 20 /* 4 GiB; the largest pages there are have 1 GiB */
#define MAPPING_ANON 1u
#define HEAD_IS_TAIL 1u

static uint64_t u64_at(const char *page, uint32_t offset)
{
	uint64_t value;

	memcpy(&value, page + offset, sizeof value);
	return value;
}

static int32_t i32_at(const char *page, uint32_t offset)
{
	int32_t value;

	memcpy(&value, page + offset, sizeof value);
	return value;
}

static bool is_cache(const struct sk_page_layout *layout, uint64_t flags)
{
	return flags & layout->lru ||
	       (flags & layout->swapcache && (!layout->swapbacked || flags & layout->swapbacked));
}

static uint32_t type_of(const struct sk_page_layout *layout, uint32_t level, const char *page, int dtor)
{
	uint64_t flags = u64_at(page, layout->flags);
	int32_t mapcount = i32_at(page, layout->mapcount);
	/* the fields of a slab page mean other things */
	bool slab = (flags & layout->slab) != 0;
	bool anon = !slab && u64_at(page, layout->mapping) & MAPPING_ANON;

	if (level & SK_PAGE_FREE && !slab && layout->buddy_mapcount && mapcount == layout->buddy_mapcount)
		return SK_PAGE_FREE;
	if (is_cache(layout, flags) && !anon) {
		if (level & SK_PAGE_CACHE && !(flags & layout->has_private))
			return SK_PAGE_CACHE;
		if (level & SK_PAGE_CACHE_PRIVATE)
			return SK_PAGE_CACHE_PRIVATE;
	}
	if (level & SK_PAGE_USER && (anon || (dtor >= 0 && dtor == layout->hugetlb_dtor)))
		return SK_PAGE_USER;
	if (flags & layout->hwpoison)
		return SK_PAGE_BAD;
	if (level & SK_PAGE_FREE && !slab && layout->offline_mapcount && mapcount == layout->offline_mapcount)
		return SK_PAGE_FREE;
	return 0;
}

void sk_page_types(const struct sk_page_layout *layout, uint32_t level, uint64_t pfn, const void *structs,
                   size_t npages, struct sk_page_block *block, uint8_t *types)
{
	const char *page = structs;

	for (size_t i = 0; i < npages; i++, pfn++, page += layout->nbytes) {
		const char *second = page + layout->nbytes;
		unsigned order = 0;
		int dtor = -1;
		uint32_t type;

		if (pfn < block->until_pfn) {
			types[i] = block->type;
			continue;
		}
		types[i] = 0;
		/* a part of a block was dealt with by its head; a stray one is kept */
		if (u64_at(page, layout->compound_head) & HEAD_IS_TAIL)
			continue;
		if (u64_at(page, layout->flags) & layout->head && i + 1 < npages) {
			order = (uint8_t)second[layout->order];
			dtor = (uint8_t)second[layout->dtor];
		}
		type = type_of(layout, level, page, dtor);
		if (!type)
			continue;
		if (type == SK_PAGE_FREE && i32_at(page, layout->mapcount) == layout->buddy_mapcount) {
			uint64_t free_order = u64_at(page, layout->private_data);

			order = free_order > MAX_ORDER ? 0 : (unsigned)free_order;
		}
		if (order > MAX_ORDER || pfn & ((UINT64_C(1) << order) - 1))
			order = 0; /* no block of the kernel's lies like this */
		types[i] = (uint8_t)type;
		block->until_pfn = pfn + (UINT64_C(1) << order);
		block->type = (uint8_t)type;
	}
}
