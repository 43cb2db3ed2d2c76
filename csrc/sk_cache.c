#include "sk_cache.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "sk_hash.h"

#define PAGE_SHIFT 12
#define NONE SK_CACHE_NONE

struct slot {
	uint64_t gpa;
	uint32_t hash_next;
	uint32_t older; /* neighbours in the list of its class, while it may make room */
	uint32_t newer;
	uint8_t pins;
	uint8_t ahead;    /* the level it was fetched for and has not been visited at yet; 0: it has */
	uint8_t upper;    /* it has been visited above level 1 */
	uint8_t readable;
};

/* Slots that may make room, least recently used first. */
struct class {
	uint32_t oldest;
	uint32_t newest;
};

struct sk_cache {
	char *pages;
	struct slot *slots;
	uint32_t *heads;
	uint32_t nslots;
	uint32_t nused;
	uint32_t hash_shift;
	uint64_t seed;
	struct class classes[2]; /* by slot.upper */
};

static uint32_t *head_of(const struct sk_cache *cache, uint64_t gpa)
{
	return &cache->heads[sk_hash(gpa >> PAGE_SHIFT, cache->seed) >> cache->hash_shift];
}

enum sk_status sk_cache_create(size_t npages, uint64_t seed, struct sk_cache **out, struct sk_error *err)
{
	struct sk_cache *cache = calloc(1, sizeof *cache);
	size_t nheads = 1;

	*out = NULL;
	if (!cache)
		return sk_fail_errno(err, ENOMEM, "a cache of page tables");
	if (npages < SK_CACHE_MIN_PAGES)
		npages = SK_CACHE_MIN_PAGES;
	if (npages > SK_CACHE_MAX_PAGES)
		npages = SK_CACHE_MAX_PAGES;
	cache->hash_shift = 64;
	while (nheads < npages) {
		nheads *= 2;
		cache->hash_shift--;
	}
	cache->nslots = (uint32_t)npages;
	cache->seed = seed | 1;
	cache->classes[0] = cache->classes[1] = (struct class){ NONE, NONE };
	cache->pages = aligned_alloc(SK_CACHE_PAGE_NBYTES, npages * SK_CACHE_PAGE_NBYTES);
	cache->slots = calloc(npages, sizeof cache->slots[0]);
	cache->heads = malloc(nheads * sizeof cache->heads[0]);
	if (!cache->pages || !cache->slots || !cache->heads) {
		sk_cache_destroy(cache);
		return sk_fail_errno(err, ENOMEM, "a cache of %zu page tables", npages);
	}
	memset(cache->heads, 0xff, nheads * sizeof cache->heads[0]);
	*out = cache;
	return SK_OK;
}

void sk_cache_destroy(struct sk_cache *cache)
{
	if (!cache)
		return;
	free(cache->pages);
	free(cache->slots);
	free(cache->heads);
	free(cache);
}

size_t sk_cache_npages(const struct sk_cache *cache)
{
	return cache->nslots;
}

uint32_t sk_cache_find(const struct sk_cache *cache, uint64_t gpa)
{
	uint32_t at = *head_of(cache, gpa);

	while (at != NONE && cache->slots[at].gpa != gpa)
		at = cache->slots[at].hash_next;
	return at;
}

static void list_append(struct sk_cache *cache, uint32_t at)
{
	struct slot *slot = &cache->slots[at];
	struct class *class = &cache->classes[slot->upper];

	slot->older = class->newest;
	slot->newer = NONE;
	if (class->newest != NONE)
		cache->slots[class->newest].newer = at;
	else
		class->oldest = at;
	class->newest = at;
}

static void list_remove(struct sk_cache *cache, uint32_t at)
{
	struct slot *slot = &cache->slots[at];
	struct class *class = &cache->classes[slot->upper];

	if (slot->older != NONE)
		cache->slots[slot->older].newer = slot->newer;
	else
		class->oldest = slot->newer;
	if (slot->newer != NONE)
		cache->slots[slot->newer].older = slot->older;
	else
		class->newest = slot->older;
}

static void unhash(struct sk_cache *cache, uint32_t at)
{
	uint32_t *link = head_of(cache, cache->slots[at].gpa);

	while (*link != at)
		link = &cache->slots[*link].hash_next;
	*link = cache->slots[at].hash_next;
}

/* A slot to fill: a new one, the least recently used one, or, if nothing else is left, one fetched ahead. */
static uint32_t make_room(struct sk_cache *cache)
{
	uint32_t at = 0;

	if (cache->nused < cache->nslots)
		return cache->nused++;
	for (int upper = 0; upper < 2; upper++) {
		at = cache->classes[upper].oldest;
		if (at != NONE) {
			list_remove(cache, at);
			unhash(cache, at);
			return at;
		}
	}
	at = 0;
	while (cache->slots[at].pins) /* ends: a path is shorter than the smallest cache */
		at++;
	unhash(cache, at);
	return at;
}

void sk_cache_put(struct sk_cache *cache, uint64_t gpa, const void *page, uint32_t level)
{
	uint32_t at = make_room(cache);
	uint32_t *head = head_of(cache, gpa);
	struct slot *slot = &cache->slots[at];

	memset(slot, 0, sizeof *slot);
	slot->gpa = gpa;
	slot->ahead = (uint8_t)level;
	slot->readable = page != NULL;
	slot->hash_next = *head;
	*head = at;
	if (page)
		memcpy(cache->pages + (size_t)at * SK_CACHE_PAGE_NBYTES, page, SK_CACHE_PAGE_NBYTES);
}

const void *sk_cache_page(const struct sk_cache *cache, uint32_t slot)
{
	return cache->slots[slot].readable ? cache->pages + (size_t)slot * SK_CACHE_PAGE_NBYTES : NULL;
}

void sk_cache_pin(struct sk_cache *cache, uint32_t at, uint32_t level)
{
	struct slot *slot = &cache->slots[at];

	if (!slot->pins++ && !slot->ahead)
		list_remove(cache, at);
	if (slot->ahead == level)
		slot->ahead = 0;
	slot->upper |= level > 1;
}

void sk_cache_unpin(struct sk_cache *cache, uint32_t at)
{
	struct slot *slot = &cache->slots[at];

	if (!--slot->pins && !slot->ahead)
		list_append(cache, at);
}
