/* DBG_DECRYPT and DBG_ENCRYPT: arguments that are refused, and in which order. */
#define _GNU_SOURCE
#include "conformance.h"

#include <sys/mman.h>

static const uint32_t both[] = {SEV_DBG_DECRYPT, SEV_DBG_ENCRYPT};

#define FOR_BOTH(id) for (uint32_t i_ = 0, id; i_ < 2 && (id = both[i_], true); i_++)

static void bad_data(void)
{
	struct vm vm;
	uint8_t *edge = conf_pages_then_hole(1);

	vm_launch(&vm, 0, 1);
	FOR_BOTH(id)
	{
		CHECK_OP(&vm, vm_op(&vm, id, NULL), EFAULT, NO_FW_CALL);
		CHECK_OP(&vm, vm_op(&vm, id, conf_hole()), EFAULT, NO_FW_CALL);
		CHECK_OP(&vm, vm_op(&vm, id, edge + PAGE - 23), EFAULT, NO_FW_CALL);
	}
}

static void zero_length(void)
{
	struct vm vm;

	vm_launch(&vm, 0, 1);
	FOR_BOTH(id)
	{
		CHECK_OP(&vm, vm_debug(&vm, id, vm.ram, conf_pages(1), 0), EINVAL, NO_FW_CALL);
		CHECK_OP(&vm, vm_debug(&vm, id, conf_hole(), conf_hole(), 0), EINVAL, NO_FW_CALL);
	}
}

static void source_wraps(void)
{
	struct vm vm;

	vm_launch(&vm, 0, 1);
	FOR_BOTH(id)
	{
		CHECK_OP(&vm, vm_debug(&vm, id, (void *)-16L, conf_pages(1), 32), EINVAL, NO_FW_CALL);
		CHECK_OP(&vm, vm_debug(&vm, id, (void *)-1L, conf_hole(), 0xffffffff), EINVAL, NO_FW_CALL);
	}
}

static void destination_null(void)
{
	struct vm vm;

	vm_launch(&vm, 0, 1);
	FOR_BOTH(id)
	{
		CHECK_OP(&vm, vm_debug(&vm, id, vm.ram, NULL, 16), EINVAL, NO_FW_CALL);
		CHECK_OP(&vm, vm_debug(&vm, id, conf_hole(), NULL, 16), EINVAL, NO_FW_CALL);
	}
}

static void source_null(int wanted)
{
	struct vm vm;

	vm_launch(&vm, 0, 1);
	FOR_BOTH(id)
	{
		CHECK_OP(&vm, vm_debug(&vm, id, NULL, conf_pages(1), 16), wanted, NO_FW_CALL);
	}
}

static void source_null_new(void)
{
	source_null(EINVAL);
}

static void source_null_old(void)
{
	source_null(ENOMEM);
}

static void destination_wraps(int wanted)
{
	struct vm vm;

	vm_launch(&vm, 0, 1);
	FOR_BOTH(id)
	{
		CHECK_OP(&vm, vm_debug(&vm, id, vm.ram, (void *)-16L, 32), wanted, NO_FW_CALL);
	}
}

static void destination_wraps_new(void)
{
	destination_wraps(EINVAL);
}

static void destination_wraps_old(void)
{
	destination_wraps(ENOMEM);
}

static void before_launch(void)
{
	struct vm vm;

	vm_init(&vm, false);
	FOR_BOTH(id)
	{
		/* descriptor 0 is looked up, and only once the pages are pinned */
		CHECK_OP(&vm, vm_debug(&vm, id, conf_pages(1), conf_pages(1), 16), EBADF, NO_FW_CALL);
		CHECK_OP(&vm, vm_debug(&vm, id, conf_hole(), conf_pages(1), 16), ENOMEM, NO_FW_CALL);
		CHECK_OP(&vm, vm_debug(&vm, id, conf_pages(1), conf_hole(), 16), ENOMEM, NO_FW_CALL);
		CHECK_OP(&vm, vm_debug(&vm, id, conf_pages(1), NULL, 16), EINVAL, NO_FW_CALL);
	}
}

static void policy_forbids(void)
{
	uint8_t before[PAGE], *page = conf_pages(1);
	struct sev_guest_status status;
	struct vm vm;

	vm_launch(&vm, POLICY_NODBG, 2);
	memset(page, 0x5a, PAGE);
	memcpy(before, vm.ram, PAGE);
	CHECK_OP(&vm, vm_decrypt(&vm, vm.ram, page, PAGE), EIO, FW_POLICY_FAILURE);
	CHECK(conf_is_all(page, 0x5a, PAGE));
	CHECK_OP(&vm, vm_decrypt(&vm, vm.ram + 3, page + 1, 5), EIO, FW_POLICY_FAILURE);
	CHECK(conf_is_all(page, 0x5a, PAGE));
	CHECK_OP(&vm, vm_encrypt(&vm, page, vm.ram, PAGE), EIO, FW_POLICY_FAILURE);
	CHECK_OP(&vm, vm_encrypt(&vm, page, vm.ram + 3, 5), EIO, FW_POLICY_FAILURE);
	CHECK(memcmp(before, vm.ram, PAGE) == 0);
	/* what the kernel checks comes first */
	CHECK_OP(&vm, vm_decrypt(&vm, vm.ram, conf_hole(), PAGE), ENOMEM, NO_FW_CALL);
	CHECK_OP(&vm, vm_status(&vm, &status), 0, 0U);
	CHECK_EQ(status.policy, POLICY_NODBG);
}

static void any_launch_state(void)
{
	uint8_t *page = conf_pages(1), *out = conf_pages(1), plain[PAGE];
	struct vm vm;

	vm_start(&vm, 0);
	conf_fill(page, PAGE, 2);
	memcpy(plain, page, PAGE);
	NEED(vm_update(&vm, page, PAGE));
	CHECK_OP(&vm, vm_decrypt(&vm, page, out, PAGE), 0, 0U); /* LUPDATE */
	CHECK(memcmp(out, plain, PAGE) == 0);
	NEED(vm_measure(&vm));
	memset(out, 0, PAGE);
	CHECK_OP(&vm, vm_decrypt(&vm, page, out, PAGE), 0, 0U); /* LSECRET */
	CHECK(memcmp(out, plain, PAGE) == 0);
	CHECK_OP(&vm, vm_encrypt(&vm, out, page, 16), 0, 0U);
}

const struct row rows_debug_errors[] = {
	ROW("debug.bad-data", ON_ANY, bad_data, "1.2.b: struct kvm_sev_dbg cannot be read: EFAULT"),
	ROW("debug.zero-length", ON_ANY, zero_length, "1.2.c: EINVAL, before anything is pinned"),
	ROW("debug.source-wraps", ON_ANY, source_wraps, "1.2.c: EINVAL"),
	ROW("debug.destination-null", ON_ANY, destination_null, "1.2.d: EINVAL"),
	ROW("debug.source-null.new", ON_NEW, source_null_new, "1.3: EINVAL"),
	ROW("debug.source-null.old", ON_OLD, source_null_old, "1.2.d: an address like any other: ENOMEM"),
	ROW("debug.destination-wraps.new", ON_NEW, destination_wraps_new, "1.3: EINVAL"),
	ROW("debug.destination-wraps.old", ON_OLD, destination_wraps_old, "1.2.d: not checked; pinning fails: ENOMEM"),
	ROW("debug.before-launch", ON_ANY, before_launch, "1.4: before LAUNCH_START: EBADF, after the pages are pinned"),
	ROW("debug.policy", ON_ANY, policy_forbids, "2: NODBG: EIO with POLICY_FAILURE, nothing transferred"),
	ROW("debug.launch-states", ON_ANY, any_launch_state, "2: there is no check of the guest's state"),
	END_OF_ROWS,
};
