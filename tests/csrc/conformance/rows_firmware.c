/* From firmware status to errno, and what nobody can bring about with ioctls. */
#include "conformance.h"

static void status_and_errno(void)
{
	uint8_t *page = conf_pages(1);
	struct vm vm;

	vm_start(&vm, POLICY_NODBG);
	CHECK_OP(&vm, vm_op(&vm, SEV_LAUNCH_FINISH, NULL), EIO, FW_INVALID_GUEST_STATE);
	CHECK_OP(&vm, vm_decrypt(&vm, page, page, PAGE), EIO, FW_POLICY_FAILURE);
	CHECK_OP(&vm, vm_update(&vm, page + 1, 16), EIO, FW_INVALID_ADDRESS);
	CHECK_OP(&vm, vm_update(&vm, page, 1), EIO, FW_INVALID_LEN);
	/* a later success says so */
	CHECK_OP(&vm, vm_update(&vm, page, PAGE), 0, 0U);
}

static void first_of_many(void)
{
	uint8_t *out = conf_pages(4);
	struct vm vm;

	vm_launch(&vm, POLICY_NODBG, 4);
	memset(out, 0x5a, 4 * PAGE);
	CHECK_OP(&vm, vm_decrypt(&vm, vm.ram, out, 4 * PAGE), EIO, FW_POLICY_FAILURE);
	CHECK(conf_is_all(out, 0x5a, 4 * PAGE));
}

static void inactive(void)
{
	conf_skip("KVM activates a guest inside LAUNCH_START: INACTIVE cannot be had by asking");
}

static void not_initialised(void)
{
	conf_skip("KVM initialises the platform before there is a guest: no command finds it UNINIT");
}

static void bad_range(void)
{
	conf_skip("only memory that can be pinned reaches the firmware: no address is out of its range");
}

static void snp_buffers(void)
{
	conf_skip("buffers that cannot be given to the firmware (EFAULT) are an SNP host's, and a defect");
}

const struct row rows_firmware[] = {
	ROW("firmware.status", ON_ANY, status_and_errno, "1.5: a status is EIO and error"),
	ROW("firmware.first-command", ON_ANY, first_of_many, "1.5: the first refusal ends it"),
	ROW("firmware.inactive", ON_ANY, inactive, "2: INACTIVE"),
	ROW("firmware.not-initialised", ON_ANY, not_initialised, "2: INVALID_PLATFORM_STATE"),
	ROW("firmware.bad-range", ON_ANY, bad_range, "2: INVALID_ADDRESS of a range"),
	ROW("firmware.snp-buffers", ON_ANY, snp_buffers, "1.5: EFAULT"),
	END_OF_ROWS,
};
