/* VMs, guests and the commands that rows give them. */
#define _GNU_SOURCE
#include "conformance.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

int conf_fd_ioctl(int fd, unsigned long request, unsigned long argument)
{
	int result = ioctl(fd, request, argument);

	return result < 0 ? -errno : result;
}

int conf_ioctl(int fd, unsigned long request, void *argument)
{
	int result = conf_fd_ioctl(fd, request, (unsigned long)argument);

	return result < 0 ? -result : 0;
}

int conf_open_sev(int flags)
{
	int fd = open(conf.sev_path, flags | O_CLOEXEC);

	if (fd < 0)
		FAIL("could not begin: %s cannot be opened: %s", conf.sev_path, conf_errno(errno));
	return fd;
}

int vm_create_type(struct vm *vm, unsigned long type)
{
	memset(vm, 0, sizeof(*vm));
	vm->sev = -1;
	vm->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (vm->kvm < 0)
		FAIL("could not begin: /dev/kvm cannot be opened: %s", conf_errno(errno));
	vm->fd = conf_fd_ioctl(vm->kvm, KVM_CREATE_VM, type);
	return vm->fd < 0 ? -vm->fd : 0;
}

void vm_create(struct vm *vm)
{
	NEED(vm_create_type(vm, KVM_X86_DEFAULT_VM));
}

void vm_init(struct vm *vm, bool es)
{
	if (es && !host_has_es())
		conf_skip("this host has no SEV-ES");
	vm_create(vm);
	vm->sev = conf_open_sev(O_RDWR);
	NEED(vm_op(vm, es ? SEV_ES_INIT : SEV_INIT, NULL));
}

void vm_start(struct vm *vm, uint32_t policy)
{
	vm_init(vm, policy & POLICY_ES);
	NEED(vm_launch_start(vm, 0, policy, vm->sev));
}

void vm_launch(struct vm *vm, uint32_t policy, size_t npages)
{
	vm_start(vm, policy);
	vm->ram_nbytes = npages * PAGE;
	vm->ram = conf_pages(npages);
	conf_fill(vm->ram, vm->ram_nbytes, 1);
	NEED(vm_region(vm, true, vm->ram, vm->ram_nbytes));
	NEED(vm_update(vm, vm->ram, vm->ram_nbytes));
	if (policy & POLICY_ES) {
		vm_vcpu(vm, 0);
		NEED(vm_op(vm, SEV_LAUNCH_UPDATE_VMSA, NULL));
	}
	NEED(vm_measure(vm));
	NEED(vm_op(vm, SEV_LAUNCH_FINISH, NULL));
}

int vm_vcpu(struct vm *vm, unsigned long id)
{
	int fd = conf_fd_ioctl(vm->fd, KVM_CREATE_VCPU, id);

	if (fd < 0)
		FAIL("could not begin: KVM_CREATE_VCPU gives %s", conf_errno(-fd));
	return fd;
}

void vm_close(struct vm *vm)
{
	close(vm->fd);
	close(vm->kvm);
	if (vm->sev >= 0)
		close(vm->sev);
}

bool host_has_es(void)
{
	struct platform_status status;
	uint32_t error;
	int fd = conf_open_sev(O_RDONLY);

	NEED(sev_platform(fd, SEV_PLATFORM_STATUS, &status, &error));
	close(fd);
	return status.flags & PLATFORM_FLAG_ES;
}

int vm_cmd(struct vm *vm, struct sev_cmd *cmd)
{
	int result = conf_ioctl(vm->fd, KVM_MEMORY_ENCRYPT_OP, cmd);

	vm->error = cmd->error;
	return result;
}

int vm_op(struct vm *vm, uint32_t id, void *data)
{
	struct sev_cmd cmd = {.id = id, .data = (uintptr_t)data, .error = NO_FW_CALL, .sev_fd = (uint32_t)-1};

	return vm_cmd(vm, &cmd);
}

int vm_launch_start(struct vm *vm, uint32_t handle, uint32_t policy, int sev_fd)
{
	struct sev_launch_start start = {.handle = handle, .policy = policy};
	struct sev_cmd cmd = {SEV_LAUNCH_START, 0, (uintptr_t)&start, NO_FW_CALL, (uint32_t)sev_fd};
	int result = vm_cmd(vm, &cmd);

	if (result == 0)
		vm->handle = start.handle;
	return result;
}

int vm_update(struct vm *vm, void *hva, size_t nbytes)
{
	struct sev_uaddr_len data = {.uaddr = (uintptr_t)hva, .len = (uint32_t)nbytes};

	return vm_op(vm, SEV_LAUNCH_UPDATE_DATA, &data);
}

int vm_measure(struct vm *vm)
{
	uint8_t blob[MEASUREMENT_NBYTES];
	struct sev_uaddr_len data = {.uaddr = (uintptr_t)blob, .len = sizeof(blob)};

	return vm_op(vm, SEV_LAUNCH_MEASURE, &data);
}

int vm_status(struct vm *vm, struct sev_guest_status *status)
{
	memset(status, 0xee, sizeof(*status));
	return vm_op(vm, SEV_GUEST_STATUS, status);
}

int vm_debug(struct vm *vm, uint32_t id, const void *src, const void *dst, size_t nbytes)
{
	struct sev_dbg data = {.src_uaddr = (uintptr_t)src, .dst_uaddr = (uintptr_t)dst, .len = (uint32_t)nbytes};

	return vm_op(vm, id, &data);
}

int vm_decrypt(struct vm *vm, const void *src, void *dst, size_t nbytes)
{
	return vm_debug(vm, SEV_DBG_DECRYPT, src, dst, nbytes);
}

int vm_encrypt(struct vm *vm, const void *src, void *dst, size_t nbytes)
{
	return vm_debug(vm, SEV_DBG_ENCRYPT, src, dst, nbytes);
}

int vm_region(struct vm *vm, bool add, const void *hva, size_t nbytes)
{
	struct enc_region region = {(uintptr_t)hva, nbytes};

	return conf_ioctl(vm->fd, add ? KVM_MEMORY_ENCRYPT_REG_REGION : KVM_MEMORY_ENCRYPT_UNREG_REGION, &region);
}

int vm_copy_context(struct vm *vm, int source_fd, uint32_t flags)
{
	struct enable_cap cap = {.cap = KVM_CAP_VM_COPY_ENC_CONTEXT_FROM, .flags = flags};

	cap.args[0] = (uint32_t)source_fd;
	return conf_ioctl(vm->fd, KVM_ENABLE_CAP, &cap);
}

int sev_issue(int fd, struct issue_cmd *cmd)
{
	return conf_ioctl(fd, SEV_ISSUE_CMD, cmd);
}

int sev_platform(int fd, uint32_t cmd, void *data, uint32_t *error)
{
	struct issue_cmd issue = {cmd, (uintptr_t)data, NO_FW_CALL};
	int result = sev_issue(fd, &issue);

	*error = issue.error;
	return result;
}
