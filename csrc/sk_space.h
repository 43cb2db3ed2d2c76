/*
 * A guest-virtual address space, and what of it is asked for.
 *
 * Addresses are counted here as the tables count them: from 0 up, without a hole, before sign extension.
 */
#ifndef SK_SPACE_H
#define SK_SPACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "sk_status.h"
#include "sk_walk.h"

/* Guest-virtual addresses, both inclusive. */
struct sk_list_range {
	uint64_t first;
	uint64_t last;
};

struct sk_space {
	uint32_t sign_bit; /* of an address; all bits above are equal to it. SK_SPACE_NO_SIGN: there are none */
	uint64_t last;     /* the last address */
	struct sk_list_range *ranges; /* as counted here, ascending, apart */
	size_t nranges;
};

#define SK_SPACE_NO_SIGN 64

/* ranges: guest-virtual, in any order; what they have of the address space is kept. */
enum sk_status sk_space_init(struct sk_space *space, const struct sk_paging *paging,
                             const struct sk_list_range *ranges, size_t nranges, struct sk_error *err);
void sk_space_deinit(struct sk_space *space);

/* The guest-virtual address. */
static inline uint64_t sk_space_gva(const struct sk_space *space, uint64_t address)
{
	if (space->sign_bit < SK_SPACE_NO_SIGN && address >> space->sign_bit & 1)
		return address | ~0ULL << space->sign_bit;
	return address;
}

/* Step over ranges that end before address; false: there is none left. */
static inline bool sk_space_range_at(const struct sk_space *space, size_t *range, uint64_t address)
{
	while (*range < space->nranges && space->ranges[*range].last < address)
		++*range;
	return *range < space->nranges;
}

#endif
