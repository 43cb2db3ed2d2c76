/*
 * Keyed 128-bit digests of pages, to find equal ones: twice the top 64 bits of k0 + sum k[i + 1] * word[i] mod 2^128.
 * Strongly universal (Lemire and Kaser, "Strongly universal string hashing is fast", 2014): with a random key that
 * whoever wrote the pages does not know, two pages that differ agree with a probability of 2^-128. No key, no safety.
 */
#ifndef SK_DIGEST_H
#define SK_DIGEST_H

#include <stddef.h>
#include <stdint.h>

#define SK_DIGEST_NBYTES 16
#define SK_DIGEST_PAGE 4096
#define SK_DIGEST_WORDS (SK_DIGEST_PAGE / 8)
#define SK_DIGEST_KEY_NBYTES (2 * (SK_DIGEST_WORDS + 1) * 16)

/* key: SK_DIGEST_KEY_NBYTES random bytes. out: SK_DIGEST_NBYTES for each of npages. Of any alignment. */
void sk_digest_pages(const void *key, const void *pages, size_t npages, void *out);

#endif
