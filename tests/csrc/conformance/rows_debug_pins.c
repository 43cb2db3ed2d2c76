/* DBG_DECRYPT and DBG_ENCRYPT: pages that cannot be pinned, and what was done before them. */
#define _GNU_SOURCE
#include "conformance.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

static void source_missing(void)
{
	uint8_t *out = conf_pages(1), *hole = conf_hole();
	struct vm vm;

	vm_launch(&vm, 0, 1);
	CHECK_OP(&vm, vm_decrypt(&vm, hole, out, PAGE), ENOMEM, NO_FW_CALL);
	CHECK_OP(&vm, vm_decrypt(&vm, hole + 5, out, 7), ENOMEM, NO_FW_CALL);
	CHECK_OP(&vm, vm_encrypt(&vm, hole, vm.ram, PAGE), ENOMEM, NO_FW_CALL);
	CHECK_OP(&vm, vm_encrypt(&vm, hole + 5, vm.ram, 7), ENOMEM, NO_FW_CALL);
	/* addresses that no process has */
	CHECK_OP(&vm, vm_decrypt(&vm, (void *)0xffff888000000000UL, out, PAGE), ENOMEM, NO_FW_CALL);
	CHECK_OP(&vm, vm_decrypt(&vm, (void *)0x0000800000000000UL, out, PAGE), ENOMEM, NO_FW_CALL);
}

static void source_unreadable(void)
{
	uint8_t *out = conf_pages(1), *none = conf_protected(1, PROT_NONE);
	struct vm vm;

	vm_launch(&vm, 0, 1);
	CHECK_OP(&vm, vm_decrypt(&vm, none, out, PAGE), ENOMEM, NO_FW_CALL);
	CHECK_OP(&vm, vm_encrypt(&vm, none, vm.ram, PAGE), ENOMEM, NO_FW_CALL);
}

static void source_read_only(void)
{
	uint8_t *out = conf_pages(1), *source = conf_protected(1, PROT_READ), expected[16];
	struct vm vm;

	vm_launch(&vm, 0, 1);
	conf_fill(expected, sizeof(expected), 1);
	mprotect(vm.ram, PAGE, PROT_READ);
	CHECK_OP(&vm, vm_decrypt(&vm, vm.ram, out, PAGE), 0, 0U);
	CHECK(memcmp(out, expected, sizeof(expected)) == 0);
	mprotect(vm.ram, PAGE, PROT_READ | PROT_WRITE);
	CHECK_OP(&vm, vm_encrypt(&vm, source, vm.ram, PAGE), 0, 0U);
}

static void destination_missing(void)
{
	uint8_t *hole = conf_hole(), *none = conf_protected(1, PROT_NONE);
	struct vm vm;

	vm_launch(&vm, 0, 1);
	CHECK_OP(&vm, vm_decrypt(&vm, vm.ram, hole, PAGE), ENOMEM, NO_FW_CALL);
	CHECK_OP(&vm, vm_decrypt(&vm, vm.ram, hole + 3, 7), ENOMEM, NO_FW_CALL);
	CHECK_OP(&vm, vm_decrypt(&vm, vm.ram, none, PAGE), ENOMEM, NO_FW_CALL);
	CHECK_OP(&vm, vm_encrypt(&vm, vm.ram, hole, PAGE), ENOMEM, NO_FW_CALL);
	CHECK_OP(&vm, vm_encrypt(&vm, vm.ram, none, PAGE), ENOMEM, NO_FW_CALL);
}

static void destination_read_only(void)
{
	uint8_t *page = conf_protected(1, PROT_READ);
	struct vm vm;

	vm_launch(&vm, 0, 1);
	CHECK_OP(&vm, vm_decrypt(&vm, vm.ram, page, PAGE), ENOMEM, NO_FW_CALL);
	CHECK_OP(&vm, vm_decrypt(&vm, vm.ram + 1, page + 2, 3), ENOMEM, NO_FW_CALL);
	CHECK_OP(&vm, vm_encrypt(&vm, vm.ram, page, PAGE), ENOMEM, NO_FW_CALL);
	CHECK(conf_is_all(page, 0, PAGE));
}

static void end_of_file(void)
{
	int fd = conf_memfd(1);
	uint8_t *pages = conf_file_pages(fd, 2), *out = conf_pages(2);
	struct vm vm;

	vm_launch(&vm, 0, 1);
	CHECK_OP(&vm, vm_decrypt(&vm, pages, out, PAGE), 0, 0U);
	CHECK_OP(&vm, vm_decrypt(&vm, pages + PAGE, out, PAGE), ENOMEM, NO_FW_CALL);
	CHECK_OP(&vm, vm_encrypt(&vm, out, pages + PAGE, PAGE), ENOMEM, NO_FW_CALL);
}

static void partial_source(void)
{
	uint8_t *out = conf_pages(4);
	struct vm vm;

	vm_launch(&vm, 0, 4);
	memset(out, 0x5a, 4 * PAGE);
	mprotect(vm.ram + 2 * PAGE, PAGE, PROT_NONE);
	/* error: what the commands before left there */
	CHECK_OP(&vm, vm_decrypt(&vm, vm.ram, out, 4 * PAGE), ENOMEM, 0U);
	mprotect(vm.ram + 2 * PAGE, PAGE, PROT_READ | PROT_WRITE);
	conf_fill(vm.ram, 4 * PAGE, 1);
	CHECK(memcmp(out, vm.ram, 2 * PAGE) == 0);
	CHECK(conf_is_all(out + 2 * PAGE, 0x5a, 2 * PAGE));
}

static void partial_destination(void)
{
	uint8_t *out = conf_pages(4);
	struct vm vm;

	vm_launch(&vm, 0, 4);
	memset(out, 0x5a, 4 * PAGE);
	mprotect(out + PAGE, PAGE, PROT_READ);
	CHECK_OP(&vm, vm_decrypt(&vm, vm.ram + 16, out + 16, 3 * PAGE), ENOMEM, 0U);
	conf_fill(vm.ram, 4 * PAGE, 1);
	CHECK(conf_is_all(out, 0x5a, 16));
	CHECK(memcmp(out + 16, vm.ram + 16, PAGE - 16) == 0);
	CHECK(conf_is_all(out + PAGE, 0x5a, 3 * PAGE));
}

static void partial_encrypt(void)
{
	uint8_t *in = conf_pages_then_hole(2), *out = conf_pages(4), expected[4 * PAGE];
	struct vm vm;

	vm_launch(&vm, 0, 4);
	conf_fill(expected, sizeof(expected), 1);
	conf_fill(in, 2 * PAGE, 7);
	CHECK_OP(&vm, vm_encrypt(&vm, in + PAGE, vm.ram + PAGE, 3 * PAGE), ENOMEM, 0U);
	memcpy(expected + PAGE, in + PAGE, PAGE);
	CHECK_OP(&vm, vm_decrypt(&vm, vm.ram, out, 4 * PAGE), 0, 0U);
	CHECK_EQ(conf_diff(out, expected, 4 * PAGE), 4 * PAGE);
}

static void no_limit_of_length(void)
{
	uint8_t *out = conf_pages(2);
	struct vm vm;
	uint8_t *edge;

	vm_start(&vm, 0);
	edge = conf_pages_then_hole(1);
	conf_fill(edge, PAGE, 3);
	NEED(vm_update(&vm, edge, PAGE));
	CHECK_OP(&vm, vm_decrypt(&vm, edge, out, 0xfffff000), ENOMEM, 0U);
	conf_fill(out + PAGE, PAGE, 3);
	CHECK(memcmp(out, out + PAGE, PAGE) == 0);
}

static void set_memlock(size_t npages)
{
	struct rlimit limit;

	getrlimit(RLIMIT_MEMLOCK, &limit);
	limit.rlim_cur = npages * PAGE;
	if (setrlimit(RLIMIT_MEMLOCK, &limit))
		FAIL("could not begin: setrlimit gives %s", conf_errno(errno));
}

static void locked_memory(void)
{
	uint8_t *out = conf_pages(16), *more = conf_pages(8);
	struct vm vm;

	vm_start(&vm, 0);
	conf_fill(more, 8 * PAGE, 4);
	NEED(vm_update(&vm, more, PAGE));
	conf_drop_ipc_lock();
	set_memlock(6);
	/* LAUNCH_UPDATE_DATA pins all of it at once, a debug command one page of each side at a time */
	CHECK_OP(&vm, vm_update(&vm, more + PAGE, 7 * PAGE), ENOMEM, NO_FW_CALL);
	CHECK_OP(&vm, vm_update(&vm, more + PAGE, 6 * PAGE), 0, 0U);
	CHECK_OP(&vm, vm_decrypt(&vm, more, out, 7 * PAGE), 0, 0U);
	/* registered regions count, for this VM, until they are unregistered */
	CHECK_ERRNO(vm_region(&vm, true, out, 7 * PAGE), ENOMEM);
	CHECK_ERRNO(vm_region(&vm, true, out, 5 * PAGE), 0);
	CHECK_OP(&vm, vm_decrypt(&vm, more, out, PAGE), ENOMEM, NO_FW_CALL);
	CHECK_OP(&vm, vm_update(&vm, more + 7 * PAGE, PAGE), 0, 0U);
	CHECK_ERRNO(vm_region(&vm, true, out + 8 * PAGE, PAGE + 1), ENOMEM);
	CHECK_ERRNO(vm_region(&vm, false, out, 5 * PAGE), 0);
	CHECK_OP(&vm, vm_decrypt(&vm, more, out, PAGE), 0, 0U);
	set_memlock(1);
	CHECK_OP(&vm, vm_decrypt(&vm, more, out, 16), ENOMEM, NO_FW_CALL);
	set_memlock(2);
	CHECK_OP(&vm, vm_decrypt(&vm, more, out, 16), 0, 0U);
}

const struct row rows_debug_pins[] = {
	ROW("pin.source-missing", ON_ANY, source_missing, "1.2.f: ENOMEM, not EFAULT"),
	ROW("pin.source-unreadable", ON_ANY, source_unreadable, "1.2.f: ENOMEM"),
	ROW("pin.source-read-only", ON_ANY, source_read_only, "1.2.e: the source is pinned for reading"),
	ROW("pin.destination-missing", ON_ANY, destination_missing, "1.2.f: ENOMEM"),
	ROW("pin.destination-read-only", ON_ANY, destination_read_only, "1.2.f: ENOMEM, nothing written"),
	ROW("pin.end-of-file", ON_ANY, end_of_file, "1.2.f: a mapping past its file: ENOMEM"),
	ROW("pin.partial-source", ON_ANY, partial_source, "1.2.f: pages before the bad one stay done"),
	ROW("pin.partial-destination", ON_ANY, partial_destination, "1.2.f: pages before the bad one stay done"),
	ROW("pin.partial-encrypt", ON_ANY, partial_encrypt, "1.2.f: pages before the bad one stay done"),
	ROW("pin.huge-length", ON_ANY, no_limit_of_length, "1.2.f: page by page, so no cap on the length"),
	ROW("pin.memlock", ON_ANY, locked_memory, "1.2.f: RLIMIT_MEMLOCK without CAP_IPC_LOCK: ENOMEM"),
	END_OF_ROWS,
};
