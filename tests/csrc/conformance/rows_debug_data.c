/*
 * DBG_DECRYPT and DBG_ENCRYPT: the bytes. Every combination of size and offsets, compared with a plain memcpy of the
 * guest's memory.
 */
#define _GNU_SOURCE
#include "conformance.h"

#include <sys/mman.h>

#define NPAGES 4
#define NBYTES (NPAGES * PAGE)

struct lab {
	struct vm vm;
	uint8_t model[NBYTES]; /* what the guest's memory holds, deciphered */
	uint8_t *in, *out;     /* ordinary memory, as large */
	unsigned int seed;
};

static const size_t small_sizes[] = {1, 8, 15, 16, 17, 32, 33};
static const size_t offsets[] = {0, 1, 8, 15, 16, 23, PAGE - 24, PAGE - 23, PAGE - 16, PAGE - 9, PAGE - 8, PAGE - 1};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static void lab_init(struct lab *lab)
{
	vm_launch(&lab->vm, 0, NPAGES);
	conf_fill(lab->model, NBYTES, 1);
	lab->in = conf_pages(NPAGES);
	lab->out = conf_pages(NPAGES);
	lab->seed = 100;
}

static size_t smaller(size_t a, size_t b)
{
	return a < b ? a : b;
}

/*
 * The old generation cuts at source pages only, and writes past the page that it pinned where the destination's page
 * ends earlier: what then is hit is anybody's memory. Such requests are for the new generation only.
 */
static bool fits_pages(size_t source, size_t destination, size_t nbytes)
{
	while (nbytes) {
		size_t piece = smaller(nbytes, PAGE - source % PAGE);

		if (destination % PAGE + piece > PAGE)
			return false;
		source += piece;
		destination += piece;
		nbytes -= piece;
	}
	return true;
}

/* Before 5.11 the end of a piece that begins inside a block was not decrypted (rows_debug_old.c). */
static bool ends_are_decrypted(size_t source, size_t destination, size_t nbytes)
{
	while (nbytes) {
		size_t piece = smaller(nbytes, PAGE - source % PAGE);

		if ((source | destination | piece) % BLOCK &&
		    source % BLOCK + piece > (piece + BLOCK - 1) / BLOCK * BLOCK)
			return false;
		source += piece;
		destination += piece;
		nbytes -= piece;
	}
	return true;
}

/* What DBG_ENCRYPT of in[source...] makes of the guest's memory. */
static void encrypt_model(struct lab *lab, size_t source, size_t destination, size_t nbytes)
{
	while (nbytes) {
		size_t piece = smaller(nbytes, PAGE - source % PAGE), written = piece, in_block = destination % BLOCK;

		if (conf.generation == KERNEL_NEW)
			piece = written = smaller(piece, PAGE - destination % PAGE);
		else if (in_block || piece % BLOCK) /* the tail behind the rounded length is dropped */
			written = smaller(piece, (piece + BLOCK - 1) / BLOCK * BLOCK - in_block);
		memcpy(lab->model + destination, lab->in + source, written);
		source += piece;
		destination += piece;
		nbytes -= piece;
	}
}

static void check_guest(struct lab *lab, size_t source, size_t destination, size_t nbytes)
{
	size_t at;

	NEED(vm_decrypt(&lab->vm, lab->vm.ram, lab->out, NBYTES));
	at = conf_diff(lab->out, lab->model, NBYTES);
	if (at < NBYTES)
		FAIL("DBG_ENCRYPT of %zu bytes from offset %zu to offset %zu: byte %zu of the guest is wrong", nbytes,
		     source, destination, at);
}

static void try_encrypt(struct lab *lab, size_t source, size_t destination, size_t nbytes)
{
	int result;

	if (conf.generation == KERNEL_OLD && !fits_pages(source, destination, nbytes))
		return;
	conf_fill(lab->in, NBYTES, lab->seed++);
	result = vm_encrypt(&lab->vm, lab->in + source, lab->vm.ram + destination, nbytes);
	if (result || lab->vm.error)
		FAIL("DBG_ENCRYPT of %zu bytes from offset %zu to offset %zu gives %s, error 0x%x", nbytes, source,
		     destination, conf_errno(result), lab->vm.error);
	encrypt_model(lab, source, destination, nbytes);
	check_guest(lab, source, destination, nbytes);
}

static void try_decrypt(struct lab *lab, size_t source, size_t destination, size_t nbytes)
{
	static uint8_t expected[NBYTES];
	size_t at;
	int result;

	if (conf.generation == KERNEL_OLD &&
	    !(fits_pages(source, destination, nbytes) && ends_are_decrypted(source, destination, nbytes)))
		return;
	memset(lab->out, 0x5a, NBYTES);
	memset(expected, 0x5a, NBYTES);
	memcpy(expected + destination, lab->model + source, nbytes);
	result = vm_decrypt(&lab->vm, lab->vm.ram + source, lab->out + destination, nbytes);
	if (result || lab->vm.error)
		FAIL("DBG_DECRYPT of %zu bytes from offset %zu to offset %zu gives %s, error 0x%x", nbytes, source,
		     destination, conf_errno(result), lab->vm.error);
	at = conf_diff(lab->out, expected, NBYTES);
	if (at < NBYTES)
		FAIL("DBG_DECRYPT of %zu bytes from offset %zu to offset %zu: byte %zu of the destination is wrong",
		     nbytes, source, destination, at);
}

typedef void (*attempt)(struct lab *lab, size_t source, size_t destination, size_t nbytes);

static void try_offsets(struct lab *lab, attempt try, size_t nbytes)
{
	for (size_t i = 0; i < COUNT(offsets); i++)
		for (size_t j = 0; j < COUNT(offsets); j++)
			try(lab, offsets[i], offsets[j], nbytes);
}

static void try_sizes(attempt try, size_t base, bool minus)
{
	static struct lab lab;

	lab_init(&lab);
	for (size_t i = 0; i < COUNT(small_sizes); i++)
		try_offsets(&lab, try, minus ? base - small_sizes[i] : base + small_sizes[i]);
}

static void encrypt_small(void)
{
	try_sizes(try_encrypt, 0, false);
}

static void decrypt_small(void)
{
	try_sizes(try_decrypt, 0, false);
}

static void encrypt_page_minus(void)
{
	try_sizes(try_encrypt, PAGE, true);
}

static void decrypt_page_minus(void)
{
	try_sizes(try_decrypt, PAGE, true);
}

static void encrypt_page_plus(void)
{
	try_sizes(try_encrypt, PAGE, false);
}

static void decrypt_page_plus(void)
{
	try_sizes(try_decrypt, PAGE, false);
}

static void encrypt_two_pages(void)
{
	try_sizes(try_encrypt, 2 * PAGE, true);
}

static void decrypt_two_pages(void)
{
	try_sizes(try_decrypt, 2 * PAGE, true);
}

static void one_page(void)
{
	static struct lab lab;

	lab_init(&lab);
	try_offsets(&lab, try_decrypt, PAGE);
	try_offsets(&lab, try_encrypt, PAGE);
}

static void whole_guest(void)
{
	static struct lab lab;

	lab_init(&lab);
	try_decrypt(&lab, 0, 0, NBYTES);
	try_encrypt(&lab, 0, 0, NBYTES);
	try_encrypt(&lab, 1, 1, NBYTES - 2);
	try_decrypt(&lab, 1, 1, NBYTES - 2);
}

static void memory_is_ciphertext(void)
{
	uint8_t plain[PAGE], *page = conf_pages(1);
	struct vm vm;

	vm_launch(&vm, 0, 2);
	conf_fill(plain, PAGE, 1);
	for (size_t i = 0; i < PAGE; i += BLOCK)
		CHECK(memcmp(vm.ram + i, plain + i, BLOCK) != 0);
	memset(page, 0x41, PAGE);
	CHECK_OP(&vm, vm_encrypt(&vm, page, vm.ram, PAGE), 0, 0U);
	for (size_t i = 0; i < PAGE; i += BLOCK) {
		CHECK(memcmp(vm.ram + i, page + i, BLOCK) != 0);
		/* the same plaintext is another ciphertext in every block */
		CHECK(i == 0 || memcmp(vm.ram + i, vm.ram + i - BLOCK, BLOCK) != 0);
	}
}

static void plain_page_is_noise(void)
{
	uint8_t *plain = conf_pages(1), *first = conf_pages(1), *again = conf_pages(1);
	struct vm vm;

	vm_launch(&vm, 0, 1);
	memset(plain, 0, PAGE);
	CHECK_OP(&vm, vm_decrypt(&vm, plain, first, PAGE), 0, 0U);
	CHECK_OP(&vm, vm_decrypt(&vm, plain, again, PAGE), 0, 0U);
	CHECK(memcmp(first, again, PAGE) == 0);
	for (size_t i = 0; i < PAGE; i += BLOCK)
		CHECK(!conf_is_all(first + i, 0, BLOCK));
	CHECK(conf_is_all(plain, 0, PAGE));
}

static void moved_ciphertext_is_noise(void)
{
	uint8_t *copy = conf_pages(1), *out = conf_pages(1), plain[PAGE];
	struct vm vm;

	vm_launch(&vm, 0, 1);
	conf_fill(plain, PAGE, 1);
	memcpy(copy, vm.ram, PAGE);
	CHECK_OP(&vm, vm_decrypt(&vm, copy, out, PAGE), 0, 0U);
	for (size_t i = 0; i < PAGE; i += BLOCK)
		CHECK(memcmp(out + i, plain + i, BLOCK) != 0);
}

static void blocks_stand_alone(void)
{
	uint8_t *out = conf_pages(1), plain[PAGE];
	struct vm vm;

	vm_launch(&vm, 0, 1);
	conf_fill(plain, PAGE, 1);
	vm.ram[5 * BLOCK] ^= 1;
	CHECK_OP(&vm, vm_decrypt(&vm, vm.ram, out, PAGE), 0, 0U);
	CHECK(memcmp(out, plain, 5 * BLOCK) == 0);
	CHECK(memcmp(out + 5 * BLOCK, plain + 5 * BLOCK, BLOCK) != 0);
	CHECK(memcmp(out + 6 * BLOCK, plain + 6 * BLOCK, PAGE - 6 * BLOCK) == 0);
}

static void aliases_agree(void)
{
	int fd = conf_memfd(2);
	uint8_t *page = conf_file_pages(fd, 2), *alias = conf_file_pages(fd, 2), *out = conf_pages(2), plain[2 * PAGE];
	struct vm vm;

	vm_start(&vm, 0);
	conf_fill(page, 2 * PAGE, 5);
	memcpy(plain, page, 2 * PAGE);
	NEED(vm_update(&vm, page, 2 * PAGE));
	CHECK_OP(&vm, vm_decrypt(&vm, alias, out, 2 * PAGE), 0, 0U);
	CHECK(memcmp(out, plain, 2 * PAGE) == 0);
	alias = mremap(alias, 2 * PAGE, 4 * PAGE, MREMAP_MAYMOVE);
	CHECK(alias != MAP_FAILED);
	CHECK_OP(&vm, vm_decrypt(&vm, alias + PAGE, out, PAGE), 0, 0U);
	CHECK(memcmp(out, plain + PAGE, PAGE) == 0);
}

static void other_guests_key(void)
{
	uint8_t *out = conf_pages(1), plain[PAGE];
	struct vm vm, other;

	vm_launch(&vm, 0, 1);
	vm_launch(&other, 0, 1);
	conf_fill(plain, PAGE, 1);
	CHECK_OP(&other, vm_decrypt(&other, vm.ram, out, PAGE), 0, 0U);
	for (size_t i = 0; i < PAGE; i += BLOCK)
		CHECK(memcmp(out + i, plain + i, BLOCK) != 0);
}

const struct row rows_debug_data[] = {
	ROW("data.encrypt-small", ON_ANY, encrypt_small, "1.6: 1 to 33 bytes at every offset"),
	ROW("data.decrypt-small", ON_ANY, decrypt_small, "1.6: 1 to 33 bytes at every offset"),
	ROW("data.encrypt-page-minus", ON_ANY, encrypt_page_minus, "1.6: a page less 1 to 33 bytes at every offset"),
	ROW("data.decrypt-page-minus", ON_ANY, decrypt_page_minus, "1.6: a page less 1 to 33 bytes at every offset"),
	ROW("data.encrypt-page-plus", ON_ANY, encrypt_page_plus, "1.6: a page and 1 to 33 bytes at every offset"),
	ROW("data.decrypt-page-plus", ON_ANY, decrypt_page_plus, "1.6: a page and 1 to 33 bytes at every offset"),
	ROW("data.encrypt-two-pages", ON_ANY, encrypt_two_pages, "1.6: two pages less 1 to 33 bytes at every offset"),
	ROW("data.decrypt-two-pages", ON_ANY, decrypt_two_pages, "1.6: two pages less 1 to 33 bytes at every offset"),
	ROW("data.page", ON_ANY, one_page, "1.6: a page at every offset, both ways"),
	ROW("data.whole-guest", ON_ANY, whole_guest, "1.6: many pages in one request"),
	ROW("data.ciphertext", ON_ANY, memory_is_ciphertext, "6: the host sees ciphertext, tweaked by address"),
	ROW("data.shared-is-noise", ON_ANY, plain_page_is_noise, "7: a page that is not encrypted decrypts to noise"),
	ROW("data.moved-is-noise", ON_ANY, moved_ciphertext_is_noise, "6: ciphertext elsewhere does not decrypt"),
	ROW("data.blocks", ON_ANY, blocks_stand_alone, "6: no integrity; each block decrypts by itself"),
	ROW("data.aliases", ON_ANY, aliases_agree, "6: every mapping of the same memory agrees"),
	ROW("data.other-key", ON_ANY, other_guests_key, "6: a key for each guest"),
	END_OF_ROWS,
};
