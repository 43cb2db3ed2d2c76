#include "sk_line.h"

#include <string.h>

#include "sk_walk.h"

#define HEX_DIGITS 16

#define FOUR 4
#define NX_BIT 63
#define PS_BIT 7

/* Letters of `info tlb` after X: those of the entry's bits 8 to 5, and 4 to 1. */
#define LETTERS(bits, a, b, c, d)                                                                    \
	{ (bits) & 8 ? (a) : '-', (bits) & 4 ? (b) : '-', (bits) & 2 ? (c) : '-', (bits) & 1 ? (d) : '-' }
#define ALL_LETTERS(a, b, c, d)                                                                      \
	{ LETTERS(0, a, b, c, d), LETTERS(1, a, b, c, d), LETTERS(2, a, b, c, d), LETTERS(3, a, b, c, d), \
	  LETTERS(4, a, b, c, d), LETTERS(5, a, b, c, d), LETTERS(6, a, b, c, d), LETTERS(7, a, b, c, d), \
	  LETTERS(8, a, b, c, d), LETTERS(9, a, b, c, d), LETTERS(10, a, b, c, d), LETTERS(11, a, b, c, d), \
	  LETTERS(12, a, b, c, d), LETTERS(13, a, b, c, d), LETTERS(14, a, b, c, d), LETTERS(15, a, b, c, d) }

static const char bits_8_to_5[16][FOUR] = ALL_LETTERS('G', 'P', 'D', 'A');
static const char bits_4_to_1[16][FOUR] = ALL_LETTERS('C', 'T', 'U', 'W');

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
		entry &= ~(1ULL << PS_BIT);
	out = put_hex(out, gva);
	*out++ = ':';
	*out++ = ' ';
	out = put_hex(out, gpa);
	*out++ = ' ';
	*out++ = entry >> NX_BIT ? 'X' : '-';
	memcpy(out, bits_8_to_5[entry >> 5 & 15], FOUR);
	memcpy(out + FOUR, bits_4_to_1[entry >> 1 & 15], FOUR);
	out[2 * FOUR] = '\n';
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
