/* Page digests against their definition in 128-bit arithmetic, at any alignment; each bit of a page counts. */
#include "../../csrc/sk_digest.h"

#include <string.h>

#include "expect.h"

#define PAGES 3

typedef unsigned __int128 u128;

static uint64_t key[SK_DIGEST_KEY_NBYTES / 8];
static uint64_t state = 1;

static uint64_t next_random(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static uint64_t by_definition(const uint64_t *half, const uint8_t *page)
{
	const uint64_t *low = half, *high = half + SK_DIGEST_WORDS + 1;
	u128 sum = (u128)high[0] << 64 | low[0];

	for (size_t i = 0; i < SK_DIGEST_WORDS; i++) {
		uint64_t word = 0;

		for (int byte = 7; byte >= 0; byte--)
			word = word << 8 | page[8 * i + (size_t)byte];
		sum += ((u128)high[i + 1] << 64 | low[i + 1]) * word;
	}
	return (uint64_t)(sum >> 64);
}

static void check(const uint8_t *pages, size_t misalignment)
{
	static uint8_t in[PAGES * SK_DIGEST_PAGE + 16], out[PAGES * SK_DIGEST_NBYTES + 16];

	memcpy(in + misalignment, pages, PAGES * SK_DIGEST_PAGE);
	memset(out, 0xee, sizeof out);
	sk_digest_pages(key, in + misalignment, PAGES, out + misalignment);
	for (size_t page = 0; page < PAGES; page++) {
		uint64_t got[2];

		memcpy(got, out + misalignment + page * SK_DIGEST_NBYTES, sizeof got);
		for (size_t i = 0; i < 2; i++)
			EXPECT(got[i] == by_definition(key + i * SK_DIGEST_KEY_NBYTES / 16,
			                               pages + page * SK_DIGEST_PAGE));
	}
	EXPECT(out[misalignment + PAGES * SK_DIGEST_NBYTES] == 0xee);
	EXPECT(misalignment == 0 || out[misalignment - 1] == 0xee);
}

int main(void)
{
	static uint8_t pages[PAGES * SK_DIGEST_PAGE];
	uint8_t before[SK_DIGEST_NBYTES], after[SK_DIGEST_NBYTES];

	for (size_t i = 0; i < sizeof key / sizeof *key; i++)
		key[i] = next_random();
	for (size_t i = 0; i < sizeof pages; i++)
		pages[i] = i < SK_DIGEST_PAGE ? 0xff : (uint8_t)next_random();
	check(pages, 0);
	check(pages, 5);
	sk_digest_pages(key, pages, 1, before);
	for (size_t bit = 0; bit < SK_DIGEST_PAGE * 8; bit++) {
		pages[bit / 8] ^= (uint8_t)(1 << bit % 8);
		sk_digest_pages(key, pages, 1, after);
		EXPECT(memcmp(before, after, sizeof before) != 0);
		pages[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	return 0;
}
