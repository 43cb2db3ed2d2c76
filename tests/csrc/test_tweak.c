/* The tweak stream against its definition, block by block, at page borders and at any alignment. */
#include "../../csrc/sk_tweak.h"

#include <string.h>

#include "expect.h"

#define MAX_BLOCKS 700

static uint8_t constants[SK_TWEAK_BITS * SK_TWEAK_BLOCK];

static void by_definition(uint64_t spa, uint8_t out[SK_TWEAK_BLOCK])
{
	memset(out, 0, SK_TWEAK_BLOCK);
	for (int bit = 4; bit < 64; bit++)
		if (spa >> bit & 1)
			for (int i = 0; i < SK_TWEAK_BLOCK; i++)
				out[i] ^= constants[bit * SK_TWEAK_BLOCK + i];
}

static void check(const struct sk_tweak *tweak, uint64_t spa, size_t blocks, size_t misalignment)
{
	static uint8_t in[MAX_BLOCKS * SK_TWEAK_BLOCK + 64], out[MAX_BLOCKS * SK_TWEAK_BLOCK + 64];
	uint8_t want[SK_TWEAK_BLOCK];
	size_t nbytes = blocks * SK_TWEAK_BLOCK;

	for (size_t i = 0; i < sizeof in; i++)
		in[i] = (uint8_t)(i * 31 + 7);
	memset(out, 0xee, sizeof out);
	/* a rest of less than a block is left alone */
	sk_tweak_xor(tweak, spa, in + misalignment, out + misalignment, nbytes + 15);
	for (size_t block = 0; block < blocks; block++) {
		by_definition(spa + block * SK_TWEAK_BLOCK, want);
		for (size_t i = 0; i < SK_TWEAK_BLOCK; i++) {
			size_t at = misalignment + block * SK_TWEAK_BLOCK + i;

			EXPECT(out[at] == (in[at] ^ want[i]));
		}
	}
	EXPECT(misalignment == 0 || out[misalignment - 1] == 0xee);
	EXPECT(out[misalignment + nbytes] == 0xee);
	sk_tweak_xor(tweak, spa, out + misalignment, out + misalignment, nbytes);
	EXPECT(memcmp(out + misalignment, in + misalignment, nbytes) == 0);
}

int main(void)
{
	struct sk_tweak tweak;

	for (size_t i = 0; i < sizeof constants; i++)
		constants[i] = (uint8_t)(i * i + (i >> 3));
	sk_tweak_init(&tweak, constants);
	check(&tweak, 0, 256, 0);
	check(&tweak, 0x1230, MAX_BLOCKS, 0);
	check(&tweak, 0xfffffffffffff000u, 256, 1);
	check(&tweak, 0x7ffffff0, 2, 7);
	check(&tweak, 0xfff0, 1, 0);
	check(&tweak, 0x8000000000000010u, 300, 13);
	check(&tweak, 0x1000, 0, 0);
	return 0;
}
