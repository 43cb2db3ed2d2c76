/* From KVM_SEV_INIT to LAUNCH_FINISH: states, arguments, descriptors of keys. */
#define _GNU_SOURCE
#include "conformance.h"

#include <sys/mman.h>
#include <unistd.h>

static void init_refused(void)
{
	struct vm vm;

	vm_init(&vm, false);
	CHECK_OP(&vm, vm_op(&vm, SEV_INIT, NULL), EINVAL, NO_FW_CALL); /* twice */
	CHECK_OP(&vm, vm_op(&vm, SEV_INIT, conf_hole()), EINVAL, NO_FW_CALL);
	vm_create(&vm);
	vm_vcpu(&vm, 0);
	CHECK_OP(&vm, vm_op(&vm, SEV_INIT, NULL), EINVAL, NO_FW_CALL); /* too late */
	vm_create(&vm);
	CHECK_OP(&vm, vm_op(&vm, SEV_INIT, conf_hole()), 0, NO_FW_CALL); /* it has no data */
}

static void es_init(void)
{
	struct sev_guest_status status;
	struct vm vm;

	vm_init(&vm, true);
	CHECK_OP(&vm, vm_op(&vm, SEV_ES_INIT, NULL), EINVAL, NO_FW_CALL);
	CHECK_OP(&vm, vm_op(&vm, SEV_INIT, NULL), EINVAL, NO_FW_CALL);
	CHECK_OP(&vm, vm_launch_start(&vm, 0, POLICY_ES, vm.sev), 0, 0U);
	CHECK_OP(&vm, vm_status(&vm, &status), 0, 0U);
	CHECK_EQ(status.policy, POLICY_ES);
}

static void states(void)
{
	uint8_t *page = conf_pages(1);
	struct sev_guest_status status;
	struct vm vm;

	vm_start(&vm, POLICY_NOKS);
	CHECK(vm.handle >= 1 && vm.handle <= 1024);
	CHECK_OP(&vm, vm_status(&vm, &status), 0, 0U);
	CHECK_EQ(status.handle, vm.handle);
	CHECK_EQ(status.policy, POLICY_NOKS);
	CHECK_EQ(status.state, STATE_LUPDATE);
	CHECK_OP(&vm, vm_op(&vm, SEV_LAUNCH_FINISH, NULL), EIO, FW_INVALID_GUEST_STATE);
	NEED(vm_update(&vm, page, PAGE));
	NEED(vm_measure(&vm));
	NEED(vm_status(&vm, &status));
	CHECK_EQ(status.state, STATE_LSECRET);
	CHECK_OP(&vm, vm_update(&vm, page, PAGE), EIO, FW_INVALID_GUEST_STATE);
	CHECK_OP(&vm, vm_measure(&vm), EIO, FW_INVALID_GUEST_STATE);
	NEED(vm_op(&vm, SEV_LAUNCH_FINISH, NULL));
	NEED(vm_status(&vm, &status));
	CHECK_EQ(status.state, STATE_RUNNING);
	CHECK_OP(&vm, vm_update(&vm, page, PAGE), EIO, FW_INVALID_GUEST_STATE);
	CHECK_OP(&vm, vm_measure(&vm), EIO, FW_INVALID_GUEST_STATE);
	CHECK_OP(&vm, vm_op(&vm, SEV_LAUNCH_FINISH, NULL), EIO, FW_INVALID_GUEST_STATE);
}

static void status_faults(void)
{
	uint8_t *page = conf_protected(1, PROT_READ);
	struct vm vm;

	vm_start(&vm, 0);
	/* the firmware has answered: error is 0 */
	CHECK_OP(&vm, vm_op(&vm, SEV_GUEST_STATUS, NULL), EFAULT, 0U);
	CHECK_OP(&vm, vm_op(&vm, SEV_GUEST_STATUS, page), EFAULT, 0U);
}

static int start_with(struct vm *vm, struct sev_launch_start *start)
{
	struct sev_cmd cmd = {SEV_LAUNCH_START, 0, (uintptr_t)start, NO_FW_CALL, (uint32_t)vm->sev};

	return vm_cmd(vm, &cmd);
}

static void start_arguments(void)
{
	uint8_t *blob = conf_pages(5);
	struct sev_launch_start start;
	struct vm vm;

	vm_init(&vm, false);
	CHECK_OP(&vm, start_with(&vm, NULL), EFAULT, NO_FW_CALL);
	start = (struct sev_launch_start){.dh_uaddr = (uintptr_t)blob};
	CHECK_OP(&vm, start_with(&vm, &start), EINVAL, NO_FW_CALL);
	start.dh_len = BLOB_MAX_NBYTES + 1;
	CHECK_OP(&vm, start_with(&vm, &start), EINVAL, NO_FW_CALL);
	start = (struct sev_launch_start){.dh_uaddr = (uintptr_t)conf_hole(), .dh_len = CERT_NBYTES};
	CHECK_OP(&vm, start_with(&vm, &start), EFAULT, NO_FW_CALL);
	start = (struct sev_launch_start){.session_uaddr = (uintptr_t)blob};
	CHECK_OP(&vm, start_with(&vm, &start), EINVAL, NO_FW_CALL);
	start.session_len = BLOB_MAX_NBYTES + 1;
	CHECK_OP(&vm, start_with(&vm, &start), EINVAL, NO_FW_CALL);
	start = (struct sev_launch_start){.session_uaddr = (uintptr_t)conf_hole(), .session_len = SESSION_NBYTES};
	CHECK_OP(&vm, start_with(&vm, &start), EFAULT, NO_FW_CALL);
	/* the descriptor comes after the data */
	CHECK_OP(&vm, vm_op(&vm, SEV_LAUNCH_START, NULL), EFAULT, NO_FW_CALL);
	CHECK_OP(&vm, vm_launch_start(&vm, 0, 0, vm.sev), 0, 0U);
}

static void start_session_lengths(void)
{
	uint8_t *blob = conf_pages(4);
	struct sev_launch_start start = {.dh_uaddr = (uintptr_t)blob,
					 .dh_len = CERT_NBYTES,
					 .session_uaddr = (uintptr_t)blob + PAGE,
					 .session_len = SESSION_NBYTES - 1};
	struct vm vm;
	int result;

	vm_init(&vm, false);
	CHECK_OP(&vm, start_with(&vm, &start), EIO, FW_INVALID_LEN);
	start.session_len = SESSION_NBYTES;
	start.dh_len = CERT_NBYTES + 1;
	CHECK_OP(&vm, start_with(&vm, &start), EIO, FW_INVALID_LEN);
	start.dh_len = CERT_NBYTES; /* right at last, but zeros are no certificate */
	result = start_with(&vm, &start);
	CHECK_ERRNO(result, EIO);
	CHECK(vm.error != 0 && vm.error != NO_FW_CALL);
	CHECK_EQ(start.handle, 0);
	CHECK_OP(&vm, vm_launch_start(&vm, 0, 0, vm.sev), 0, 0U);
}

static void start_copy_back_fails(void)
{
	struct sev_launch_start *start = conf_protected(1, PROT_READ);
	struct sev_guest_status status;
	struct vm vm;

	vm_init(&vm, false);
	CHECK_OP(&vm, start_with(&vm, start), EFAULT, 0U);
	/* it is all undone */
	CHECK_OP(&vm, vm_status(&vm, &status), EBADF, NO_FW_CALL);
	CHECK_OP(&vm, vm_launch_start(&vm, 0, 0, vm.sev), 0, 0U);
}

static void start_twice(void)
{
	struct sev_guest_status status;
	struct vm vm;
	uint32_t handle;

	vm_start(&vm, 0);
	handle = vm.handle;
	/* a second guest cannot be activated with the first one's ASID */
	CHECK_OP(&vm, vm_launch_start(&vm, 0, POLICY_NOKS, vm.sev), EIO, FW_ASID_OWNED);
	CHECK_OP(&vm, vm_status(&vm, &status), 0, 0U);
	CHECK_EQ(status.handle, handle);
	CHECK_EQ(status.policy, 0);
	CHECK_EQ(status.state, STATE_LUPDATE);
}

static void shared_key(void)
{
	uint8_t *page = conf_pages(1), *out = conf_pages(1), plain[PAGE];
	struct vm first, second;

	vm_start(&first, 0);
	vm_init(&second, false);
	CHECK_OP(&second, vm_launch_start(&second, first.handle, 0, second.sev), 0, 0U);
	CHECK(second.handle != first.handle);
	conf_fill(page, PAGE, 6);
	memcpy(plain, page, PAGE);
	NEED(vm_update(&first, page, PAGE));
	CHECK_OP(&second, vm_decrypt(&second, page, out, PAGE), 0, 0U);
	CHECK(memcmp(out, plain, PAGE) == 0);
}

static void shared_key_refused(void)
{
	struct vm first, second;

	vm_start(&first, 0);
	vm_init(&second, false);
	CHECK_OP(&second, vm_launch_start(&second, 1025, 0, second.sev), EIO, FW_INVALID_GUEST);
	CHECK_OP(&second, vm_launch_start(&second, 0xffffffff, 0, second.sev), EIO, FW_INVALID_GUEST);
	CHECK_OP(&second, vm_launch_start(&second, first.handle, POLICY_NODBG, second.sev), EIO, FW_POLICY_FAILURE);
	vm_close(&first);
	vm_start(&first, POLICY_NOKS);
	CHECK_OP(&second, vm_launch_start(&second, first.handle, POLICY_NOKS, second.sev), EIO, FW_POLICY_FAILURE);
	CHECK_OP(&second, vm_launch_start(&second, 0, 0, second.sev), 0, 0U);
}

static void update_arguments(void)
{
	uint8_t *page = conf_pages(1);
	struct vm vm;

	vm_init(&vm, false);
	/* pinning comes before the descriptor */
	CHECK_OP(&vm, vm_update(&vm, conf_hole(), PAGE), ENOMEM, NO_FW_CALL);
	CHECK_OP(&vm, vm_update(&vm, page, 0), EINVAL, NO_FW_CALL);
	NEED(vm_launch_start(&vm, 0, 0, vm.sev));
	CHECK_OP(&vm, vm_op(&vm, SEV_LAUNCH_UPDATE_DATA, NULL), EFAULT, NO_FW_CALL);
	CHECK_OP(&vm, vm_update(&vm, page, 0), EINVAL, NO_FW_CALL);
	CHECK_OP(&vm, vm_update(&vm, (void *)-16L, 32), EINVAL, NO_FW_CALL);
	CHECK_OP(&vm, vm_update(&vm, conf_hole(), PAGE), ENOMEM, NO_FW_CALL);
	CHECK_OP(&vm, vm_update(&vm, conf_protected(1, PROT_READ), PAGE), ENOMEM, NO_FW_CALL);
	CHECK_OP(&vm, vm_update(&vm, page + 8, 32), EIO, FW_INVALID_ADDRESS);
	CHECK_OP(&vm, vm_update(&vm, page + 8, 8), EIO, FW_INVALID_ADDRESS);
	CHECK_OP(&vm, vm_update(&vm, page, 8), EIO, FW_INVALID_LEN);
	CHECK(conf_is_all(page, 0, PAGE));
	CHECK_OP(&vm, vm_update(&vm, page + 16, 32), 0, 0U);
	CHECK(conf_is_all(page, 0, 16) && conf_is_all(page + 48, 0, PAGE - 48));
	CHECK(!conf_is_all(page + 16, 0, 16) && !conf_is_all(page + 32, 0, 16));
}

static void update_is_all_or_nothing(void)
{
	uint8_t *pages = conf_pages_then_hole(3);
	struct vm vm;

	vm_start(&vm, 0);
	CHECK_OP(&vm, vm_update(&vm, pages, 4 * PAGE), ENOMEM, NO_FW_CALL);
	CHECK(conf_is_all(pages, 0, 3 * PAGE)); /* everything is pinned first */
}

const struct row rows_launch[] = {
	ROW("launch.init", ON_ANY, init_refused, "2: KVM_SEV_INIT twice, or after a vCPU: EINVAL"),
	ROW("launch.es-init", ON_ANY, es_init, "2: KVM_SEV_ES_INIT"),
	ROW("launch.states", ON_ANY, states, "2: LUPDATE, LSECRET, RUNNING; what each refuses"),
	ROW("launch.status-faults", ON_ANY, status_faults, "2: GUEST_STATUS into memory that is not there: EFAULT"),
	ROW("launch.start-arguments", ON_ANY, start_arguments, "2: EFAULT and EINVAL of LAUNCH_START"),
	ROW("launch.session-lengths", ON_ANY, start_session_lengths, "2: a session of the wrong size: INVALID_LEN"),
	ROW("launch.start-copy-back", ON_ANY, start_copy_back_fails, "2: no way to tell the handle: undone"),
	ROW("launch.start-twice", ON_ANY, start_twice, "2: ASID_OWNED, and the first guest lives on"),
	ROW("launch.shared-key", ON_ANY, shared_key, "2: LAUNCH_START with another guest's handle shares its key"),
	ROW("launch.shared-key-refused", ON_ANY, shared_key_refused, "2: INVALID_GUEST, POLICY_FAILURE"),
	ROW("launch.update-arguments", ON_ANY, update_arguments, "2: INVALID_ADDRESS, INVALID_LEN, ENOMEM, EINVAL"),
	ROW("launch.update-pins-first", ON_ANY, update_is_all_or_nothing, "2: a page missing: nothing is encrypted"),
	END_OF_ROWS,
};
