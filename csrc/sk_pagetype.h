/*
 * What Linux uses its pages for, told by its own struct page as VMCOREINFO describes it.
 * Source: Linux include/linux/page-flags.h, mm_types.h and kernel/crash_core.c (v5.10 to v6.5); what counts as cache,
 * user data and free is what makedumpfile(8) calls so in its dump levels.
 */
#ifndef SK_PAGETYPE_H
#define SK_PAGETYPE_H

#include <stddef.h>
#include <stdint.h>

/* Bits of a dump level; and what is told of a page. SK_PAGE_BAD: broken memory, left out at any level. */
enum {
	SK_PAGE_CACHE = 2,
	SK_PAGE_CACHE_PRIVATE = 4,
	SK_PAGE_USER = 8,
	SK_PAGE_FREE = 16,
	SK_PAGE_BAD = 32,
};

/* Offsets in a struct page of nbytes; masks of flags, 0 where the kernel does not have them. */
struct sk_page_layout {
	uint32_t nbytes;
	uint32_t flags, mapping, mapcount, private_data, compound_head, order, dtor; /* the last two: of the second page */
	uint64_t lru, has_private, slab, swapcache, swapbacked, head, hwpoison;
	int32_t buddy_mapcount, offline_mapcount; /* 0: none */
	int32_t hugetlb_dtor;                     /* -1: none */
};

/* A compound or free block that goes on: pages below until_pfn are of this type. */
struct sk_page_block {
	uint64_t until_pfn;
	uint8_t type;
};

/*
 * types[i]: of page pfn + i, one SK_PAGE_* that is in level, or 0 for a page to keep. structs: npages of them in order,
 * whose fields end within nbytes each; block: zeroed before the first call, pages ascend from call to call.
 */
void sk_page_types(const struct sk_page_layout *layout, uint32_t level, uint64_t pfn, const void *structs,
                   size_t npages, struct sk_page_block *block, uint8_t *types);

#endif
