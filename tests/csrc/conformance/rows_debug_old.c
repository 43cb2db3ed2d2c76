/* Where the debug commands before the rewrite of 2026 go wrong, silently. */
#include "conformance.h"

static void dropped_tail(void)
{
	uint8_t *in = conf_pages(1), *out = conf_pages(1), expected[PAGE];
	struct vm vm;

	vm_launch(&vm, 0, 1);
	conf_fill(expected, PAGE, 1);
	memset(in, 0x77, PAGE);
	CHECK_OP(&vm, vm_encrypt(&vm, in, vm.ram + 8, 9), 0, 0U);
	CHECK_OP(&vm, vm_decrypt(&vm, vm.ram, out, PAGE), 0, 0U);
	memset(expected + 8, 0x77, 8); /* the ninth byte lies in a block that is never written */
	CHECK_EQ(conf_diff(out, expected, PAGE), PAGE);
}

static void wrong_offset(void)
{
	uint8_t *out = conf_pages(1), expected[BLOCK];
	struct vm vm;

	vm_launch(&vm, 0, 1);
	conf_fill(expected, BLOCK, 1);
	CHECK_OP(&vm, vm_decrypt(&vm, vm.ram + 10, out, BLOCK), 0, 0U);
	CHECK(memcmp(out, expected + 10, BLOCK - 10) == 0);
	conf_fill(vm.ram, 2 * BLOCK, 1);
	if (memcmp(out, vm.ram + 10, BLOCK) == 0)
		conf_skip("this kernel has the fix of 5.11");
}

/* Both aligned, the destination further into its page: the firmware writes on past the page that was pinned. */
static void overflow(void)
{
	uint8_t *out = conf_pages(8), *middle = out + 4 * PAGE;
	struct vm vm;

	vm_launch(&vm, 0, 2);
	memset(out, 0x5a, 8 * PAGE);
	CHECK_OP(&vm, vm_decrypt(&vm, vm.ram, middle + PAGE / 2, PAGE), 0, 0U);
	conf_fill(vm.ram, PAGE, 1);
	CHECK(memcmp(middle + PAGE / 2, vm.ram, PAGE / 2) == 0);
	/* what belongs into the next page went wherever the next physical page is */
	if (memcmp(middle + PAGE, vm.ram + PAGE / 2, PAGE / 2) == 0)
		conf_skip("this kernel has the fix of 2026");
	CHECK(conf_is_all(middle + PAGE, 0x5a, PAGE));
}

static void encrypt_overflow(void)
{
	uint8_t *in = conf_pages(1), *out = conf_pages(4), expected[4 * PAGE];
	struct vm vm;

	vm_launch(&vm, 0, 4);
	conf_fill(expected, sizeof(expected), 1);
	memset(in, 0x77, PAGE);
	CHECK_OP(&vm, vm_encrypt(&vm, in, vm.ram + 2 * PAGE - 32, 64), 0, 0U);
	CHECK_OP(&vm, vm_decrypt(&vm, vm.ram, out, 4 * PAGE), 0, 0U);
	CHECK(memcmp(out + 2 * PAGE - 32, in, 32) == 0);
	if (memcmp(out + 2 * PAGE, in, 32) == 0)
		conf_skip("this kernel has the fix of 2026");
	CHECK(memcmp(out + 2 * PAGE, expected + 2 * PAGE, PAGE) == 0);
}

const struct row rows_debug_old[] = {
	ROW("old.dropped-tail", ON_OLD, dropped_tail, "1.2: 9 bytes at offset 8: success, and the last byte not written"),
	ROW("old.wrong-offset", ON_OLD, wrong_offset, "1.2: before 5.11: the end of an unaligned DECRYPT is stale"),
	ROW("old.overflow", ON_OLD | DESTRUCTIVE, overflow, "1.2: a destination further into its page than the source"),
	ROW("old.encrypt-overflow", ON_OLD | DESTRUCTIVE, encrypt_overflow, "1.2: the same when encrypting"),
	END_OF_ROWS,
};
