#include "sk_tweak.h"

#include <string.h>

#define FIRST_BIT 4
#define PAGE_BIT 12

/* Any alignment, and allowed to alias the bytes it stands for: one SSE register. */
typedef uint64_t block_t __attribute__((vector_size(SK_TWEAK_BLOCK), aligned(1), may_alias));

static const block_t *constant(const struct sk_tweak *tweak, unsigned bit)
{
	return (const block_t *)tweak->constants[bit];
}

void sk_tweak_init(struct sk_tweak *tweak, const uint8_t *constants)
{
	memcpy(tweak->constants, constants, sizeof tweak->constants);
	for (unsigned index = 0; index < 256; index++) {
		block_t sum = { 0, 0 };

		for (unsigned bit = FIRST_BIT; bit < PAGE_BIT; bit++)
			if (index >> (bit - FIRST_BIT) & 1)
				sum ^= *constant(tweak, bit);
		*(block_t *)tweak->page[index] = sum;
	}
}

static block_t of_page(const struct sk_tweak *tweak, uint64_t spa)
{
	block_t sum = { 0, 0 };

	for (unsigned bit = PAGE_BIT; bit < SK_TWEAK_BITS; bit++)
		if (spa >> bit & 1)
			sum ^= *constant(tweak, bit);
	return sum;
}

void sk_tweak_xor(const struct sk_tweak *tweak, uint64_t spa, const void *in, void *out, size_t nbytes)
{
	const block_t *from = in;
	block_t *to = out;
	size_t left = nbytes / SK_TWEAK_BLOCK;

	while (left) {
		size_t first = spa >> FIRST_BIT & 0xff;
		size_t count = 256 - first < left ? 256 - first : left;
		const block_t *stream = (const block_t *)tweak->page[first];
		block_t base = of_page(tweak, spa);

		for (size_t i = 0; i < count; i++)
			to[i] = from[i] ^ stream[i] ^ base;
		from += count;
		to += count;
		left -= count;
		spa += count * SK_TWEAK_BLOCK;
	}
}
