#include "sk_space.h"

#include <errno.h>
#include <stdlib.h>

static int compare_ranges(const void *left, const void *right)
{
	const struct sk_list_range *a = left, *b = right;

	return (a->first > b->first) - (a->first < b->first);
}

/* Keep the part of a range that lies in [first, last], counted from `zero` up. */
static void clip_range(struct sk_space *space, const struct sk_list_range *range, uint64_t first, uint64_t last,
                       uint64_t zero)
{
	uint64_t from = range->first > first ? range->first : first, to = range->last < last ? range->last : last;

	if (from <= to)
		space->ranges[space->nranges++] = (struct sk_list_range){ from - first + zero, to - first + zero };
}

/* Sort them, and make one of those that touch. */
static void merge_ranges(struct sk_space *space)
{
	size_t kept = 0;

	if (!space->nranges)
		return;
	qsort(space->ranges, space->nranges, sizeof space->ranges[0], compare_ranges);
	for (size_t i = 1; i < space->nranges; i++) {
		const struct sk_list_range *range = &space->ranges[i];

		if (range->first > space->ranges[kept].last + 1)
			space->ranges[++kept] = *range;
		else if (range->last > space->ranges[kept].last)
			space->ranges[kept].last = range->last;
	}
	space->nranges = kept + 1;
}

enum sk_status sk_space_init(struct sk_space *space, const struct sk_paging *paging,
                             const struct sk_list_range *ranges, size_t nranges, struct sk_error *err)
{
	uint32_t levels = sk_walk_levels(paging);
	uint64_t half;

	space->sign_bit = levels == 5 ? 56 : levels == 4 ? 47 : SK_SPACE_NO_SIGN;
	space->last = levels < 4 ? UINT32_MAX : (2ULL << space->sign_bit) - 1;
	space->nranges = 0;
	/* a range may reach over the middle */
	space->ranges = calloc(nranges + 1, 2 * sizeof space->ranges[0]);
	if (!space->ranges)
		return sk_fail_errno(err, ENOMEM, "%zu ranges of page tables", nranges);
	half = space->last / 2 + 1;
	for (size_t i = 0; i < nranges; i++) {
		if (space->sign_bit == SK_SPACE_NO_SIGN) {
			clip_range(space, &ranges[i], 0, space->last, 0);
			continue;
		}
		clip_range(space, &ranges[i], 0, half - 1, 0);
		clip_range(space, &ranges[i], -half, UINT64_MAX, half);
	}
	merge_ranges(space);
	return SK_OK;
}

void sk_space_deinit(struct sk_space *space)
{
	free(space->ranges);
	space->ranges = NULL;
}
