#include "sk_summary.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "sk_hash.h"

#define PAGE_SHIFT 12
#define FIRST_ROOM 1024
#define MAX_ROOM ((size_t)1 << 28)
#define PROBES 128 /* places looked at for one key */

_Static_assert(sizeof(struct sk_summary) == 16, "memory is counted with this");

struct sk_summaries {
	struct sk_summary *places;
	size_t room; /* a power of two */
	size_t count;
	size_t max;
	uint64_t seed;
	uint32_t hash_shift;
	uint32_t forgot;
};

static uint64_t key_of(uint64_t gpa, uint32_t level)
{
	return (gpa >> PAGE_SHIFT) << 3 | level;
}

static bool holds(const struct sk_summary *place, uint64_t key)
{
	return ((uint64_t)place->page << 3 | place->level) == key;
}

/* Number `probe` of the places where a key may be: the same for all levels of a page. */
static struct sk_summary *place_of(const struct sk_summaries *map, uint64_t key, size_t probe)
{
	size_t home = (size_t)(sk_hash(key >> 3, map->seed) >> map->hash_shift);

	return &map->places[(home + probe) & (map->room - 1)];
}

static bool make_places(struct sk_summaries *map, size_t room)
{
	struct sk_summary *places = calloc(room, sizeof places[0]);

	if (!places)
		return false;
	map->places = places;
	map->room = room;
	map->hash_shift = 64;
	for (size_t i = 1; i < room; i *= 2)
		map->hash_shift--;
	return true;
}

enum sk_status sk_summaries_create(size_t max, uint64_t seed, struct sk_summaries **out, struct sk_error *err)
{
	struct sk_summaries *map = calloc(1, sizeof *map);

	*out = NULL;
	if (!map || !make_places(map, FIRST_ROOM)) {
		free(map);
		return sk_fail_errno(err, ENOMEM, "summaries of page tables");
	}
	map->max = max;
	map->seed = seed | 1;
	*out = map;
	return SK_OK;
}

void sk_summaries_destroy(struct sk_summaries *map)
{
	if (!map)
		return;
	free(map->places);
	free(map);
}

struct sk_summary *sk_summaries_find(const struct sk_summaries *map, uint64_t gpa, uint32_t level)
{
	uint64_t key = key_of(gpa, level);

	for (size_t probe = 0; probe < PROBES; probe++) {
		struct sk_summary *place = place_of(map, key, probe);

		if (holds(place, key))
			return place;
		if (!place->level)
			return NULL;
	}
	return NULL;
}

int sk_summaries_fetched(const struct sk_summaries *map, uint64_t gpa)
{
	uint64_t key = key_of(gpa, 0);

	for (size_t probe = 0; probe < PROBES; probe++) {
		const struct sk_summary *place = place_of(map, key, probe);

		if (!place->level)
			return 0;
		if (place->fetched && place->page == key >> 3)
			return 1;
	}
	return 0;
}

/* The first free place for a key, NULL if there is none within reach. */
static struct sk_summary *free_place(const struct sk_summaries *map, uint64_t key)
{
	for (size_t probe = 0; probe < PROBES; probe++) {
		struct sk_summary *place = place_of(map, key, probe);

		if (!place->level)
			return place;
	}
	return NULL;
}

static bool grow(struct sk_summaries *map)
{
	struct sk_summary *old = map->places;
	size_t old_room = map->room;

	if (map->room >= MAX_ROOM || !make_places(map, map->room * 2))
		return false;
	map->count = 0;
	for (size_t i = 0; i < old_room; i++) {
		struct sk_summary *place = old[i].level ? free_place(map, (uint64_t)old[i].page << 3 | old[i].level)
		                                        : NULL;

		if (place) {
			*place = old[i];
			map->count++;
		} else if (old[i].level) {
			map->forgot = 1;
		}
	}
	free(old);
	return true;
}

struct sk_summary *sk_summaries_put(struct sk_summaries *map, uint64_t gpa, uint32_t level)
{
	struct sk_summary *place = sk_summaries_find(map, gpa, level);
	uint64_t key = key_of(gpa, level);

	if (place)
		return place;
	if (map->count < map->max && map->count >= map->room / 8 * 5)
		grow(map);
	place = map->count < map->max ? free_place(map, key) : NULL;
	if (place) {
		map->count++;
	} else {
		size_t chain = 0;

		/* forget one of those that stand where this one would: each in its turn */
		while (chain < PROBES && place_of(map, key, chain)->level)
			chain++;
		place = place_of(map, key, chain ? map->forgot++ % chain : 0);
	}
	memset(place, 0, sizeof *place);
	place->page = gpa >> PAGE_SHIFT;
	place->level = level & 7;
	return place;
}

int sk_summaries_forgot(const struct sk_summaries *map)
{
	return map->forgot != 0;
}
