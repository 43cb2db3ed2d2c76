#include "sk_line.h"

#include <string.h>

#include "sk_walk.h"

#define HEX_DIGITS 16

/* Letters of `info tlb` in the order they are printed, and the bit of the entry that each stands for. */
static const struct {
	char letter;
	uint8_t bit;
} letters[] = {
	{ 'X', 63 }, { 'G', 8 }, { 'P', 7 }, { 'D', 6 }, { 'A', 5 }, { 'C', 4 }, { 'T', 3 }, { 'U', 2 }, { 'W', 1 },
};

_Static_assert(SK_LINE_LEAF_NBYTES == 2 * HEX_DIGITS + 3 + sizeof letters / sizeof letters[0] + 1, "one line");

/* 0..15 in every byte to its hexadecimal digit, eight at a time. */
static uint64_t digits_of(uint64_t nibbles)
{
	uint64_t above_9 = ((nibbles + 0x0606060606060606ULL) >> 4) & 0x0101010101010101ULL;

	return nibbles + 0x3030303030303030ULL + above_9 * ('a' - '0' - 10);
}

/* The nibbles of 32 bits, most significant first in memory, each in a byte of its own. */
static uint64_t spread(uint32_t value)
{
	uint64_t wide = value;

	wide = (wide | wide << 16) & 0x0000ffff0000ffffULL;
	wide = (wide | wide << 8) & 0x00ff00ff00ff00ffULL;
	wide = (wide | wide << 4) & 0x0f0f0f0f0f0f0f0fULL;
	return __builtin_bswap64(wide);
}

static char *put_hex(char *out, uint64_t value)
{
	uint64_t digits[2] = { digits_of(spread((uint32_t)(value >> 32))), digits_of(spread((uint32_t)value)) };

	memcpy(out, digits, HEX_DIGITS);
	return out + HEX_DIGITS;
}

void sk_line_leaf(char out[SK_LINE_LEAF_NBYTES], uint64_t gva, uint64_t gpa, uint64_t entry, int large)
{
	if (!large)
		entry &= ~(1ULL << 7);
	out = put_hex(out, gva);
	*out++ = ':';
	*out++ = ' ';
	out = put_hex(out, gpa);
	*out++ = ' ';
	for (size_t i = 0; i < sizeof letters / sizeof letters[0]; i++)
		*out++ = entry >> letters[i].bit & 1 ? letters[i].letter : '-';
	*out = '\n';
}

void sk_line_run(char out[SK_LINE_RUN_NBYTES], uint64_t start, uint64_t end, uint64_t nbytes, uint32_t flags)
{
	out = put_hex(out, start);
	*out++ = '-';
	out = put_hex(out, end);
	*out++ = ' ';
	out = put_hex(out, nbytes);
	*out++ = ' ';
	*out++ = flags & SK_USER ? 'u' : '-';
	*out++ = 'r';
	*out++ = flags & SK_WRITABLE ? 'w' : '-';
	*out = '\n';
}
