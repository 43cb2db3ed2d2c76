#include "sk_digest.h"

#include <string.h>

typedef unsigned __int128 u128;

struct half_key {
	uint64_t low[SK_DIGEST_WORDS + 1];
	uint64_t high[SK_DIGEST_WORDS + 1];
};

_Static_assert(2 * sizeof(struct half_key) == SK_DIGEST_KEY_NBYTES, "a key is two halves");

static uint64_t half(const struct half_key *key, const uint64_t *words)
{
	u128 sum = (u128)key->high[0] << 64 | key->low[0];
	uint64_t high = 0;

	for (size_t i = 0; i < SK_DIGEST_WORDS; i++) {
		sum += (u128)key->low[i + 1] * words[i];
		high += key->high[i + 1] * words[i];
	}
	return (uint64_t)(sum >> 64) + high;
}

void sk_digest_pages(const void *key, const void *pages, size_t npages, void *out)
{
	struct half_key halves[2];
	const char *page = pages;
	char *digest = out;

	memcpy(halves, key, sizeof halves);
	for (; npages; npages--) {
		uint64_t words[SK_DIGEST_WORDS], sums[2];

		memcpy(words, page, sizeof words);
		for (int i = 0; i < 2; i++)
			sums[i] = half(&halves[i], words);
		memcpy(digest, sums, SK_DIGEST_NBYTES);
		page += SK_DIGEST_PAGE;
		digest += SK_DIGEST_NBYTES;
	}
}
