/* The address tweak of the pretend memory cipher: T(p) = XOR of constant i for every set bit i >= 4 of p. */
#ifndef SK_TWEAK_H
#define SK_TWEAK_H

#include <stddef.h>
#include <stdint.h>

#define SK_TWEAK_BLOCK 16
#define SK_TWEAK_BITS 64

struct sk_tweak {
	uint8_t constants[SK_TWEAK_BITS][SK_TWEAK_BLOCK]; /* entries 0..3 are not used */
	uint8_t page[256][SK_TWEAK_BLOCK];                /* T of the 256 blocks of page 0 */
};

/* constants: SK_TWEAK_BITS blocks of 16 random bytes. */
void sk_tweak_init(struct sk_tweak *tweak, const uint8_t *constants);

/*
 * out = in XOR the tweak stream of the blocks at address spa and up. spa and nbytes are multiples of 16
 * (a rest of less than a block is left alone); in and out may be the same buffer, but not overlap otherwise.
 */
void sk_tweak_xor(const struct sk_tweak *tweak, uint64_t spa, const void *in, void *out, size_t nbytes);

#endif
