/* VMs that copied another one's encryption context (KVM_CAP_VM_COPY_ENC_CONTEXT_FROM). */
#define _GNU_SOURCE
#include "conformance.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

static void mirror_of(struct vm *mirror, struct vm *source)
{
	vm_create(mirror);
	NEED(vm_copy_context(mirror, source->fd, 0));
}

static void advertised(void)
{
	struct vm vm;

	vm_create(&vm);
	CHECK_EQ(conf_fd_ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_VM_COPY_ENC_CONTEXT_FROM), 1);
	CHECK_EQ(conf_fd_ioctl(vm.fd, KVM_CHECK_EXTENSION, KVM_CAP_VM_COPY_ENC_CONTEXT_FROM), 1);
}

static void bad_source(void)
{
	struct vm vm, plain;

	vm_create(&vm);
	vm_create(&plain);
	CHECK_ERRNO(vm_copy_context(&vm, -1, 0), EBADF);
	CHECK_ERRNO(vm_copy_context(&vm, 9999, 0), EBADF);
	CHECK_ERRNO(vm_copy_context(&vm, vm.kvm, 0), EBADF);
	CHECK_ERRNO(vm_copy_context(&vm, open("/dev/null", O_RDWR), 0), EBADF);
	CHECK_ERRNO(vm_copy_context(&vm, vm_vcpu(&plain, 0), 0), EBADF);
	CHECK_ERRNO(vm_copy_context(&vm, vm.fd, 0), EINVAL);
	CHECK_ERRNO(vm_copy_context(&vm, plain.fd, 0), EINVAL);
}

static void bad_destination(void)
{
	struct vm source, vm;

	vm_launch(&source, 0, 1);
	vm_create(&vm);
	CHECK_ERRNO(vm_copy_context(&vm, source.fd, 1), EINVAL); /* flags */
	vm_vcpu(&vm, 0);
	CHECK_ERRNO(vm_copy_context(&vm, source.fd, 0), EINVAL); /* it has a vCPU */
	vm_init(&vm, false);
	CHECK_ERRNO(vm_copy_context(&vm, source.fd, 0), EINVAL); /* it is a SEV VM */
	mirror_of(&vm, &source);
	CHECK_ERRNO(vm_copy_context(&vm, source.fd, 0), EINVAL); /* it is a mirror */
	vm_create(&source);
	CHECK_ERRNO(vm_copy_context(&source, vm.fd, 0), EINVAL); /* a mirror's mirror */
}

static void debug_through_mirror(void)
{
	uint8_t *out = conf_pages(2), plain[2 * PAGE];
	struct sev_guest_status status;
	struct vm source, mirror;

	vm_launch(&source, 0, 2);
	mirror_of(&mirror, &source);
	conf_fill(plain, sizeof(plain), 1);
	CHECK_OP(&mirror, vm_status(&mirror, &status), 0, 0U);
	CHECK_EQ(status.handle, source.handle);
	CHECK_EQ(status.state, STATE_RUNNING);
	CHECK_OP(&mirror, vm_decrypt(&mirror, source.ram, out, 2 * PAGE), 0, 0U);
	CHECK(memcmp(out, plain, 2 * PAGE) == 0);
	memset(out, 0x33, PAGE);
	CHECK_OP(&mirror, vm_encrypt(&mirror, out, source.ram + PAGE, 48), 0, 0U);
	CHECK_OP(&source, vm_decrypt(&source, source.ram + PAGE, out + PAGE, PAGE), 0, 0U);
	CHECK(conf_is_all(out + PAGE, 0x33, 48));
	CHECK(memcmp(out + PAGE + 48, plain + PAGE + 48, PAGE - 48) == 0);
}

static void refused(void)
{
	static const uint32_t ids[] = {
		SEV_INIT,	    SEV_ES_INIT,	SEV_INIT2,	       SEV_LAUNCH_START,
		SEV_LAUNCH_UPDATE_DATA, SEV_LAUNCH_SECRET, SEV_LAUNCH_MEASURE, SEV_LAUNCH_FINISH,
		SEV_SEND_START,	    SEV_SEND_UPDATE_DATA, SEV_SEND_FINISH,     SEV_RECEIVE_START,
		SEV_RECEIVE_UPDATE_DATA, SEV_RECEIVE_FINISH, SEV_GET_ATTESTATION_REPORT, SEV_SEND_CANCEL, 99,
	};
	struct sev_cmd *fixed = conf_pages(1);
	struct vm source, mirror;

	vm_launch(&source, 0, 1);
	mirror_of(&mirror, &source);
	for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
		int result;

		mprotect(fixed, PAGE, PROT_READ | PROT_WRITE);
		*fixed = (struct sev_cmd){.id = ids[i], .error = 0x1234};
		mprotect(fixed, PAGE, PROT_READ); /* nothing is copied back */
		result = vm_cmd(&mirror, fixed);
		if (result != EINVAL || mirror.error != 0x1234)
			FAIL("command %u gives %s, wanted EINVAL", ids[i], conf_errno(result));
	}
	/* allowed, but there is no SEV-ES here */
	CHECK_OP(&mirror, vm_op(&mirror, SEV_LAUNCH_UPDATE_VMSA, NULL), ENOTTY, NO_FW_CALL);
}

static void regions(void)
{
	uint8_t *page = conf_pages(1);
	struct vm source, mirror;

	vm_launch(&source, 0, 1);
	mirror_of(&mirror, &source);
	CHECK_ERRNO(vm_region(&mirror, true, page, PAGE), EINVAL);
	CHECK_ERRNO(vm_region(&mirror, false, page, PAGE), EINVAL);
	CHECK_ERRNO(vm_region(&mirror, false, source.ram, source.ram_nbytes), EINVAL);
}

static void outlives_source(void)
{
	struct sev_guest_status status;
	uint8_t *out = conf_pages(1), plain[PAGE];
	struct vm source, mirror;

	vm_launch(&source, 0, 1);
	mirror_of(&mirror, &source);
	conf_fill(plain, PAGE, 1);
	close(source.fd);
	CHECK_OP(&mirror, vm_status(&mirror, &status), 0, 0U);
	CHECK_EQ(status.handle, source.handle);
	CHECK_OP(&mirror, vm_decrypt(&mirror, source.ram, out, PAGE), 0, 0U);
	CHECK(memcmp(out, plain, PAGE) == 0);
}

static void fd_number(void)
{
	struct sev_guest_status status;
	struct vm source, mirror;
	int other = conf_open_sev(O_RDONLY);

	vm_launch(&source, 0, 1);
	mirror_of(&mirror, &source);
	close(source.sev);
	CHECK_OP(&mirror, vm_status(&mirror, &status), EBADF, NO_FW_CALL);
	CHECK(dup2(other, source.sev) == source.sev);
	CHECK_OP(&mirror, vm_status(&mirror, &status), 0, 0U);
}

static void before_launch(void)
{
	struct sev_guest_status status;
	struct vm source, mirror;

	vm_init(&source, false);
	mirror_of(&mirror, &source);
	NEED(vm_launch_start(&source, 0, 0, source.sev));
	/* what was copied is what there was then: no handle, no descriptor */
	CHECK_OP(&mirror, vm_status(&mirror, &status), EBADF, NO_FW_CALL);
}

struct shared {
	struct vm source;
	uint8_t *ram, plain[PAGE];
};

/* Another process: it may not use the source, but copy its context into a VM of its own. */
static int from_outside(void *argument)
{
	struct shared *shared = argument;
	struct sev_guest_status status;
	uint8_t *out = conf_pages(1);
	struct vm mirror;

	CHECK_OP(&shared->source, vm_status(&shared->source, &status), EIO, NO_FW_CALL);
	mirror_of(&mirror, &shared->source);
	CHECK_OP(&mirror, vm_status(&mirror, &status), 0, 0U);
	CHECK_OP(&mirror, vm_decrypt(&mirror, shared->ram, out, PAGE), 0, 0U);
	CHECK(memcmp(out, shared->plain, PAGE) == 0);
	close(shared->source.sev);
	CHECK_OP(&mirror, vm_status(&mirror, &status), EBADF, NO_FW_CALL);
	return 0;
}

static void other_process(void)
{
	struct sev_guest_status status;
	struct shared shared;

	vm_start(&shared.source, 0);
	shared.ram = conf_shared_pages(1);
	conf_fill(shared.ram, PAGE, 8);
	memcpy(shared.plain, shared.ram, PAGE);
	NEED(vm_update(&shared.source, shared.ram, PAGE));
	CHECK_EQ(conf_in_fork(from_outside, &shared), 0);
	CHECK_OP(&shared.source, vm_status(&shared.source, &status), 0, 0U);
}

static void policy(void)
{
	uint8_t *out = conf_pages(1);
	struct vm source, mirror;

	vm_launch(&source, POLICY_NODBG, 1);
	mirror_of(&mirror, &source);
	CHECK_OP(&mirror, vm_decrypt(&mirror, source.ram, out, PAGE), EIO, FW_POLICY_FAILURE);
}

const struct row rows_mirror[] = {
	ROW("mirror.advertised", ON_ANY, advertised, "7: capability 197"),
	ROW("mirror.bad-source", ON_ANY, bad_source, "7: EBADF, EINVAL"),
	ROW("mirror.bad-destination", ON_ANY, bad_destination, "7: EINVAL for what is a SEV VM or has vCPUs"),
	ROW("mirror.debug", ON_ANY, debug_through_mirror, "7: GUEST_STATUS and DBG_* work on the source's guest"),
	ROW("mirror.refused", ON_ANY, refused, "1.1.5: every other command: EINVAL, nothing copied back"),
	ROW("mirror.regions", ON_ANY, regions, "7: a mirror registers no memory: EINVAL"),
	ROW("mirror.outlives-source", ON_ANY, outlives_source, "7: a mirror keeps the guest alive"),
	ROW("mirror.fd-number", ON_ANY, fd_number, "7: the descriptor's number is copied, and looked up in the caller's"),
	ROW("mirror.before-launch", ON_ANY, before_launch, "7: a copy of that moment"),
	ROW("mirror.other-process", ON_ANY, other_process, "7: the source's address space is not compared"),
	ROW("mirror.policy", ON_ANY, policy, "7: the policy is the guest's"),
	END_OF_ROWS,
};
