/* The order of checks before a command is looked at: kernel_vm_ioctl, sev_mem_enc_ioctl. */
#define _GNU_SOURCE
#include "harness.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static void null_is_the_question(void)
{
	struct vm vm;

	vm_create(&vm);
	CHECK_ERRNO(conf_ioctl(vm.fd, KVM_MEMORY_ENCRYPT_OP, NULL), 0);
}

static void bad_address(void)
{
	struct vm vm;
	uint8_t *edge = conf_pages_then_hole(1);

	vm_create(&vm);
	CHECK_ERRNO(conf_ioctl(vm.fd, KVM_MEMORY_ENCRYPT_OP, conf_hole()), EFAULT);
	CHECK_ERRNO(conf_ioctl(vm.fd, KVM_MEMORY_ENCRYPT_OP, conf_protected(1, PROT_NONE)), EFAULT);
	CHECK_ERRNO(conf_ioctl(vm.fd, KVM_MEMORY_ENCRYPT_OP, edge + PAGE - 23), EFAULT);
	edge[PAGE - 24] = 0xff; /* an id that nobody knows: the struct was read */
	CHECK_ERRNO(conf_ioctl(vm.fd, KVM_MEMORY_ENCRYPT_OP, edge + PAGE - 24), EINVAL);
}

static const uint32_t unknown_ids[] = {SEV_SEND_UPDATE_VMSA, SEV_RECEIVE_UPDATE_VMSA, SEV_CERT_EXPORT, 50, 99,
				       1000, 0x80000010, 0xffffffff};

static void unknown_ids_are_invalid(struct vm *vm)
{
	struct sev_cmd *fixed = conf_pages(1);

	for (size_t i = 0; i < sizeof(unknown_ids) / sizeof(unknown_ids[0]); i++) {
		CHECK_OP(vm, vm_op(vm, unknown_ids[i], NULL), EINVAL, NO_FW_CALL);
		/* nothing is copied back: a struct that cannot be written makes no difference */
		mprotect(fixed, PAGE, PROT_READ | PROT_WRITE);
		*fixed = (struct sev_cmd){.id = unknown_ids[i], .error = 0x1234};
		mprotect(fixed, PAGE, PROT_READ);
		CHECK_OP(vm, vm_cmd(vm, fixed), EINVAL, 0x1234U);
	}
}

static void unknown_id(void)
{
	struct vm vm;

	vm_start(&vm, 0);
	unknown_ids_are_invalid(&vm);
}

static void unknown_id_before_not_sev(void)
{
	struct vm vm;

	vm_create(&vm);
	unknown_ids_are_invalid(&vm);
}

static void not_sev(void)
{
	static const uint32_t ids[] = {
		SEV_LAUNCH_START,  SEV_LAUNCH_UPDATE_DATA, SEV_LAUNCH_UPDATE_VMSA,     SEV_LAUNCH_SECRET,
		SEV_LAUNCH_MEASURE, SEV_LAUNCH_FINISH,	   SEV_GUEST_STATUS,	       SEV_DBG_DECRYPT,
		SEV_DBG_ENCRYPT,   SEV_SEND_START,	   SEV_GET_ATTESTATION_REPORT, SEV_SEND_UPDATE_DATA,
		SEV_SEND_FINISH,   SEV_RECEIVE_START,	   SEV_RECEIVE_FINISH,	       SEV_SEND_CANCEL,
	};
	struct vm vm;

	vm_create(&vm);
	for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
		int result = vm_op(&vm, ids[i], NULL); /* the data would be EFAULT, had they been looked at */

		if (result != ENOTTY || vm.error != NO_FW_CALL)
			FAIL("command %u gives %s with error 0x%x, wanted ENOTTY with it untouched", ids[i],
			     conf_errno(result), vm.error);
	}
	/* the one whose author chose another number */
	CHECK_OP(&vm, vm_op(&vm, SEV_RECEIVE_UPDATE_DATA, NULL), EINVAL, NO_FW_CALL);
}

static void copied_back(void)
{
	struct sev_guest_status status = {0};
	struct sev_cmd *fixed = conf_pages(1);
	struct vm vm;

	vm_start(&vm, 0);
	*fixed = (struct sev_cmd){.id = SEV_INIT, .error = 0x1234};
	mprotect(fixed, PAGE, PROT_READ);
	CHECK_OP(&vm, vm_cmd(&vm, fixed), EFAULT, 0x1234U); /* EINVAL, overridden */
	mprotect(fixed, PAGE, PROT_READ | PROT_WRITE);
	*fixed = (struct sev_cmd){.id = SEV_GUEST_STATUS, .data = (uintptr_t)&status, .error = 0x1234};
	mprotect(fixed, PAGE, PROT_READ);
	CHECK_OP(&vm, vm_cmd(&vm, fixed), EFAULT, 0x1234U);
	CHECK_EQ(status.state, STATE_LUPDATE); /* but it was carried out */
}

static void error_is_in_and_out(void)
{
	struct sev_guest_status status;
	struct sev_cmd cmd = {.id = SEV_INIT, .error = 0x1234};
	struct vm vm;

	vm_create(&vm);
	CHECK_OP(&vm, vm_cmd(&vm, &cmd), 0, 0x1234U); /* success without the firmware's commands for a guest */
	cmd = (struct sev_cmd){.id = SEV_INIT, .error = 0x1234};
	CHECK_OP(&vm, vm_cmd(&vm, &cmd), EINVAL, 0x1234U);
	cmd = (struct sev_cmd){.id = SEV_LAUNCH_FINISH, .error = 0x1234};
	CHECK_OP(&vm, vm_cmd(&vm, &cmd), EBADF, 0x1234U);
	vm.sev = conf_open_sev(O_RDWR);
	NEED(vm_launch_start(&vm, 0, 0, vm.sev));
	CHECK_EQ(vm.error, 0);
	cmd = (struct sev_cmd){.id = SEV_GUEST_STATUS, .data = (uintptr_t)&status, .error = 0x1234};
	CHECK_OP(&vm, vm_cmd(&vm, &cmd), 0, 0U);
	cmd = (struct sev_cmd){.id = SEV_LAUNCH_FINISH, .error = 0x1234};
	CHECK_OP(&vm, vm_cmd(&vm, &cmd), EIO, FW_INVALID_GUEST_STATE);
}

static int outsider(void *argument)
{
	struct vm *vm = argument;
	struct sev_guest_status status;
	struct sev_cmd cmd = {.id = SEV_GUEST_STATUS, .data = (uintptr_t)&status, .error = 0x1234};

	CHECK_ERRNO(conf_ioctl(vm->fd, KVM_MEMORY_ENCRYPT_OP, NULL), EIO);
	CHECK_OP(vm, vm_cmd(vm, &cmd), EIO, 0x1234U);
	CHECK_OP(vm, vm_op(vm, 99, NULL), EIO, NO_FW_CALL);
	CHECK_ERRNO(conf_ioctl(vm->fd, KVM_MEMORY_ENCRYPT_OP, conf_hole()), EIO);
	CHECK_ERRNO(vm_region(vm, true, conf_pages(1), PAGE), EIO);
	CHECK_ERRNO(vm_region(vm, false, conf_pages(1), PAGE), EIO);
	CHECK_ERRNO(conf_ioctl(vm->fd, KVM_MEMORY_ENCRYPT_REG_REGION, conf_hole()), EIO);
	return 0;
}

static void other_process(void)
{
	struct sev_guest_status status;
	struct vm vm;

	vm_start(&vm, 0);
	CHECK_EQ(conf_in_fork(outsider, &vm), 0);
	CHECK_OP(&vm, vm_status(&vm, &status), 0, 0U);
}

int after_exec(const char *vm_fd)
{
	struct sev_guest_status status;
	struct vm vm = {.fd = atoi(vm_fd)};
	struct sev_cmd cmd = {.id = SEV_GUEST_STATUS, .data = (uintptr_t)&status, .error = 0x1234};
	int result = vm_cmd(&vm, &cmd);

	return cmd.error == 0x1234 ? result : 255;
}

static void exec_loses_the_vm(void)
{
	struct vm vm;
	char number[16];
	int status;
	pid_t child;

	vm_start(&vm, 0);
	fcntl(vm.fd, F_SETFD, 0);
	snprintf(number, sizeof(number), "%d", vm.fd);
	child = fork();
	if (child == 0) {
		execl(conf.program, "sev_conformance", "--after-exec", number, (char *)NULL);
		_exit(254);
	}
	CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
	CHECK_ERRNO(WEXITSTATUS(status), EIO);
}

static int relative(void *argument)
{
	struct sev_guest_status status;

	return vm_status(argument, &status);
}

static void shared_memory_may_call(void)
{
	struct vm vm;

	vm_start(&vm, 0);
	CHECK_ERRNO(conf_in_clone_vm(relative, &vm), 0);
	CHECK_EQ(vm.error, 0);
}

static void *thread_body(void *argument)
{
	return (void *)(intptr_t)relative(argument);
}

static void threads_may_call(void)
{
	struct vm vm;
	pthread_t thread;
	void *result;

	vm_start(&vm, 0);
	CHECK(pthread_create(&thread, NULL, thread_body, &vm) == 0 && pthread_join(thread, &result) == 0);
	CHECK_ERRNO((int)(intptr_t)result, 0);
}

static void other_descriptors(void)
{
	struct sev_cmd cmd = {.id = SEV_GUEST_STATUS, .error = 0x1234};
	struct vm vm;
	int result;

	vm_start(&vm, 0);
	result = conf_ioctl(vm_vcpu(&vm, 0), KVM_MEMORY_ENCRYPT_OP, &cmd);
	if (result != EINVAL && result != ENOTTY) /* it differs between versions */
		FAIL("on a vCPU it gives %s", conf_errno(result));
	result = conf_ioctl(vm.kvm, KVM_MEMORY_ENCRYPT_OP, &cmd);
	if (result != EINVAL && result != ENOTTY)
		FAIL("on /dev/kvm it gives %s", conf_errno(result));
	CHECK_ERRNO(conf_ioctl(9999, KVM_MEMORY_ENCRYPT_OP, &cmd), EBADF);
	CHECK_EQ(cmd.error, 0x1234);
}

static void dead_vm(void)
{
	struct vm source, target;
	struct enable_cap cap = {.cap = KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM};
	struct sev_guest_status status;

	vm_launch(&source, 0, 1);
	vm_create(&target);
	if (conf_fd_ioctl(target.fd, KVM_CHECK_EXTENSION, cap.cap) <= 0)
		conf_skip("this kernel cannot move an encryption context, which is what would kill a VM");
	cap.args[0] = (uint32_t)source.fd;
	CHECK_ERRNO(conf_ioctl(target.fd, KVM_ENABLE_CAP, &cap), 0);
	CHECK_OP(&source, vm_status(&source, &status), EIO, NO_FW_CALL);
	CHECK_ERRNO(conf_ioctl(source.fd, KVM_MEMORY_ENCRYPT_OP, NULL), EIO);
	CHECK_ERRNO(vm_region(&source, true, conf_pages(1), PAGE), EIO);
}

static void snp_vm(void)
{
	struct sev_init2 init = {0};
	struct vm vm;
	int types;

	vm_create(&vm);
	types = conf_fd_ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_VM_TYPES);
	vm_close(&vm);
	if (types <= 0 || !(types & 1 << KVM_X86_SNP_VM))
		conf_skip("this host makes no SEV-SNP VM");
	NEED(vm_create_type(&vm, KVM_X86_SNP_VM));
	NEED(vm_op(&vm, SEV_INIT2, &init));
	CHECK_OP(&vm, vm_op(&vm, SEV_GUEST_STATUS, NULL), EPERM, NO_FW_CALL);
	CHECK_OP(&vm, vm_op(&vm, SEV_DBG_DECRYPT, NULL), EPERM, NO_FW_CALL);
	CHECK_OP(&vm, vm_op(&vm, SEV_DBG_ENCRYPT, NULL), EPERM, NO_FW_CALL);
	CHECK_OP(&vm, vm_op(&vm, SEV_INIT, NULL), EPERM, NO_FW_CALL);
	CHECK_OP(&vm, vm_op(&vm, 99, NULL), EPERM, NO_FW_CALL); /* before the id is looked at */
	CHECK_OP(&vm, vm_op(&vm, 1000, NULL), EINVAL, NO_FW_CALL);
}

const struct row rows_order[] = {
	ROW("order.null", ON_ANY, null_is_the_question, "1.1.3: no argument asks whether SEV is on"),
	ROW("order.bad-address", ON_ANY, bad_address, "1.1.3: the command struct cannot be read: EFAULT"),
	ROW("order.unknown-id", ON_ANY, unknown_id, "1.1.7: EINVAL, nothing copied back"),
	ROW("order.unknown-id-not-sev", ON_ANY, unknown_id_before_not_sev, "1.1.7: the id comes before ENOTTY"),
	ROW("order.not-sev", ON_ANY, not_sev, "1.2.a: ENOTTY on a VM without SEV, before the data"),
	ROW("order.copied-back", ON_ANY, copied_back, "1.1: for a known id the struct is always copied back"),
	ROW("order.error-in-out", ON_ANY, error_is_in_and_out, "1.1: error stays as it was unless firmware was reached"),
	ROW("order.other-process", ON_ANY, other_process, "1.1.1: EIO before everything, nothing touched"),
	ROW("order.exec", ON_ANY, exec_loses_the_vm, "1.1.1: the same process after execve: EIO"),
	ROW("order.clone-vm", ON_ANY, shared_memory_may_call, "1.1.1: who shares the memory may call"),
	ROW("order.threads", ON_ANY, threads_may_call, "1.1.1: so may a thread"),
	ROW("order.other-descriptors", ON_ANY, other_descriptors, "1.1: it is an ioctl of a VM"),
	ROW("order.dead-vm", ON_ANY, dead_vm, "1.1: the source of VM_MOVE_ENC_CONTEXT is dead: EIO"),
	ROW("order.snp", ON_ANY, snp_vm, "1.1.6: EPERM for every legacy command"),
	END_OF_ROWS,
};
