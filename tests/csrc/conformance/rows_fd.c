/* Which /dev/sev a command goes through: the number recorded at LAUNCH_START, looked up in the caller's table. */
#define _GNU_SOURCE
#include "conformance.h"

#include <fcntl.h>
#include <unistd.h>

static void before_launch(void)
{
	uint8_t *page = conf_pages(1);
	struct sev_guest_status status;
	struct vm vm;

	vm_init(&vm, false);
	CHECK_OP(&vm, vm_status(&vm, &status), EBADF, NO_FW_CALL);
	CHECK(conf_is_all(&status, 0xee, sizeof(status)));
	CHECK_OP(&vm, vm_update(&vm, page, PAGE), EBADF, NO_FW_CALL);
	CHECK_OP(&vm, vm_measure(&vm), EBADF, NO_FW_CALL);
	CHECK_OP(&vm, vm_op(&vm, SEV_LAUNCH_FINISH, NULL), EBADF, NO_FW_CALL);
}

static void field_is_ignored(void)
{
	static const int others[] = {-1, 0, 9999, 0x7fffffff};
	struct sev_guest_status status;
	struct vm vm;

	vm_start(&vm, 0);
	for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
		struct sev_cmd cmd = {SEV_GUEST_STATUS, 0, (uintptr_t)&status, NO_FW_CALL, (uint32_t)others[i]};

		CHECK_OP(&vm, vm_cmd(&vm, &cmd), 0, 0U);
		CHECK_EQ(cmd.sev_fd, (uint32_t)others[i]);
	}
}

static void closed(void)
{
	uint8_t *page = conf_pages(1), *out = conf_pages(1);
	struct sev_guest_status status;
	int spare;
	struct vm vm;

	vm_start(&vm, 0);
	NEED(vm_update(&vm, page, PAGE));
	spare = fcntl(vm.sev, F_DUPFD_CLOEXEC, vm.sev + 50); /* open still, but not under that number */
	close(vm.sev);
	CHECK_OP(&vm, vm_status(&vm, &status), EBADF, NO_FW_CALL);
	CHECK_OP(&vm, vm_decrypt(&vm, page, out, PAGE), EBADF, NO_FW_CALL);
	CHECK_OP(&vm, vm_encrypt(&vm, out, page, PAGE), EBADF, NO_FW_CALL);
	CHECK_OP(&vm, vm_update(&vm, page, PAGE), EBADF, NO_FW_CALL);
	CHECK_OP(&vm, vm_measure(&vm), EBADF, NO_FW_CALL);
	CHECK_OP(&vm, vm_op(&vm, SEV_LAUNCH_FINISH, NULL), EBADF, NO_FW_CALL);
	/* after the checks on the request itself */
	CHECK_OP(&vm, vm_decrypt(&vm, page, NULL, PAGE), EINVAL, NO_FW_CALL);
	CHECK(dup2(spare, vm.sev) == vm.sev);
	CHECK_OP(&vm, vm_status(&vm, &status), 0, 0U);
}

static void reopened(void)
{
	static const int modes[] = {O_RDONLY, O_WRONLY, O_RDWR};
	struct sev_guest_status status;
	struct vm vm;

	vm_start(&vm, 0);
	for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
		CHECK(dup2(conf_open_sev(modes[i]), vm.sev) == vm.sev);
		CHECK_OP(&vm, vm_status(&vm, &status), 0, 0U);
	}
}

static void other_file(void)
{
	struct sev_guest_status status;
	struct vm vm;
	int ends[2];

	vm_start(&vm, 0);
	CHECK(pipe(ends) == 0);
	dup2(open("/dev/null", O_RDWR), vm.sev);
	CHECK_OP(&vm, vm_status(&vm, &status), EBADF, NO_FW_CALL);
	dup2(ends[0], vm.sev);
	CHECK_OP(&vm, vm_status(&vm, &status), EBADF, NO_FW_CALL);
	dup2(vm.kvm, vm.sev);
	CHECK_OP(&vm, vm_status(&vm, &status), EBADF, NO_FW_CALL);
}

static void path_only(void)
{
	struct sev_guest_status status;
	struct vm vm;

	vm_start(&vm, 0);
	CHECK(dup2(conf_open_sev(O_PATH), vm.sev) == vm.sev);
	CHECK_OP(&vm, vm_status(&vm, &status), EBADF, NO_FW_CALL);
}

static void start_by_mode(int mode)
{
	struct sev_guest_status status;
	struct vm vm;

	vm_create(&vm);
	NEED(vm_op(&vm, SEV_INIT, NULL));
	vm.sev = conf_open_sev(mode);
	CHECK_OP(&vm, vm_launch_start(&vm, 0, 0, vm.sev), 0, 0U);
	CHECK_OP(&vm, vm_status(&vm, &status), 0, 0U);
}

static void start_any_mode(void)
{
	start_by_mode(O_RDONLY);
	start_by_mode(O_WRONLY);
	start_by_mode(O_RDWR);
}

static void start_without(void)
{
	struct sev_guest_status status;
	struct vm vm;

	vm_init(&vm, false);
	CHECK_OP(&vm, vm_launch_start(&vm, 0, 0, -1), EBADF, NO_FW_CALL);
	CHECK_OP(&vm, vm_launch_start(&vm, 0, 0, 9999), EBADF, NO_FW_CALL);
	CHECK_OP(&vm, vm_launch_start(&vm, 0, 0, vm.kvm), EBADF, NO_FW_CALL);
	CHECK_OP(&vm, vm_status(&vm, &status), EBADF, NO_FW_CALL);
	CHECK_OP(&vm, vm_launch_start(&vm, 0, 0, vm.sev), 0, 0U);
}

/* Before LAUNCH_START the number is 0: with /dev/sev there, commands reach the firmware, for handle 0. */
static void number_zero(void)
{
	uint8_t *page = conf_pages(1), *out = conf_pages(1);
	struct sev_guest_status status;
	struct vm vm, other;

	vm_start(&other, 0); /* so that the platform is WORKING */
	vm_init(&vm, false);
	CHECK(dup2(vm.sev, 0) == 0);
	CHECK_OP(&vm, vm_status(&vm, &status), 0, 0U);
	CHECK_EQ(status.handle, 0);
	CHECK_EQ(status.policy, 0);
	CHECK_EQ(status.state, STATE_INVALID);
	CHECK_OP(&vm, vm_decrypt(&vm, page, out, PAGE), EIO, FW_INVALID_GUEST);
	CHECK_OP(&vm, vm_decrypt(&vm, page + 1, out, 3), EIO, FW_INVALID_GUEST);
	CHECK_OP(&vm, vm_encrypt(&vm, page, out, PAGE), EIO, FW_INVALID_GUEST);
	CHECK_OP(&vm, vm_update(&vm, page, PAGE), EIO, FW_INVALID_GUEST);
	CHECK_OP(&vm, vm_measure(&vm), EIO, FW_INVALID_GUEST);
	CHECK_OP(&vm, vm_op(&vm, SEV_LAUNCH_FINISH, NULL), EIO, FW_INVALID_GUEST);
}

static int without_descriptor(void *argument)
{
	struct vm vm = *(struct vm *)argument;
	struct sev_guest_status status;

	close(vm.sev);
	return vm_status(&vm, &status) == EBADF && vm.error == NO_FW_CALL ? 0 : 1;
}

static void callers_table(void)
{
	struct sev_guest_status status;
	struct vm vm;

	vm_start(&vm, 0);
	CHECK_EQ(conf_in_clone_vm(without_descriptor, &vm), 0);
	CHECK_OP(&vm, vm_status(&vm, &status), 0, 0U);
}

const struct row rows_fd[] = {
	ROW("fd.before-launch", ON_ANY, before_launch, "1.4: before LAUNCH_START: EBADF"),
	ROW("fd.field-ignored", ON_ANY, field_is_ignored, "1.4: sev_fd of the command is ignored after LAUNCH_START"),
	ROW("fd.closed", ON_ANY, closed, "1.4: nothing at that number: EBADF"),
	ROW("fd.reopened", ON_ANY, reopened, "1.4: any /dev/sev at that number will do, in any mode"),
	ROW("fd.other-file", ON_ANY, other_file, "1.4: another file at that number: EBADF"),
	ROW("fd.path", ON_ANY, path_only, "1.4: O_PATH is no open file: EBADF"),
	ROW("fd.start-mode", ON_ANY, start_any_mode, "1.4: LAUNCH_START takes any mode"),
	ROW("fd.start-without", ON_ANY, start_without, "1.4: LAUNCH_START with a bad sev_fd: EBADF, and nothing happened"),
	ROW("fd.zero", ON_ANY, number_zero, "1.4, 2: descriptor 0 is /dev/sev: the firmware knows no guest 0"),
	ROW("fd.callers-table", ON_ANY, callers_table, "1.4: the table is the caller's, not the VM's"),
	END_OF_ROWS,
};
