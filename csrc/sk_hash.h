/* Where a number stands in a hash table, so that a guest, which chooses the numbers, cannot make them meet. */
#ifndef SK_HASH_H
#define SK_HASH_H

#include <stdint.h>

/* The seed is random and odd. The upper bits of the result are the ones to use. */
static inline uint64_t sk_hash(uint64_t number, uint64_t seed)
{
	number *= seed;
	/* rows of neighbours would stay rows */
	number ^= number >> 32;
	return number * 0x9e3779b97f4a7c15ULL;
}

#endif
