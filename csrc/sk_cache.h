/*
 * A bounded cache of table pages, by guest-physical address.
 *
 * A page that was fetched ahead is kept until it has been visited at the level it was fetched for, and one on the
 * current path as long as it is pinned; of the others the least recently used one makes room, page tables (level
 * 1) before the tables above them: those are what a table that refers back up leads to again.
 */
#ifndef SK_CACHE_H
#define SK_CACHE_H

#include <stddef.h>
#include <stdint.h>

#include "sk_status.h"

#define SK_CACHE_NONE UINT32_MAX
#define SK_CACHE_PAGE_NBYTES 4096
#define SK_CACHE_MIN_PAGES 64 /* a path and what is fetched ahead of it */
#define SK_CACHE_MAX_PAGES (1 << 20)

struct sk_cache;

/* npages is brought between the two limits above; memory is taken as pages come. seed: where a gpa hashes to. */
enum sk_status sk_cache_create(size_t npages, uint64_t seed, struct sk_cache **out, struct sk_error *err);
void sk_cache_destroy(struct sk_cache *cache);

size_t sk_cache_npages(const struct sk_cache *cache);

/* The slot that holds the page at gpa (page-aligned), or SK_CACHE_NONE. */
uint32_t sk_cache_find(const struct sk_cache *cache, uint64_t gpa);

/* Keep a page that is not in the cache, or (page is NULL) that it cannot be read. level: what it was fetched for. */
void sk_cache_put(struct sk_cache *cache, uint64_t gpa, const void *page, uint32_t level);

/* A slot's 4096 bytes, page-aligned; NULL if they cannot be read; valid while it is pinned, or until the next put. */
const void *sk_cache_page(const struct sk_cache *cache, uint32_t slot);

/* Visit a slot at a level: it stays until it has been unpinned as often as it was pinned. */
void sk_cache_pin(struct sk_cache *cache, uint32_t slot, uint32_t level);
void sk_cache_unpin(struct sk_cache *cache, uint32_t slot);

#endif
