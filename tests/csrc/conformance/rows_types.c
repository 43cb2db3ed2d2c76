/* VM types, KVM_SEV_INIT2, and what programs ask before they use them (since 6.10). */
#define _GNU_SOURCE
#include "conformance.h"

#include <fcntl.h>

static int advertised_types(void)
{
	struct vm vm;
	int types;

	vm_create(&vm);
	types = conf_fd_ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_VM_TYPES);
	CHECK_EQ(conf_fd_ioctl(vm.fd, KVM_CHECK_EXTENSION, KVM_CAP_VM_TYPES), types);
	vm_close(&vm);
	return types > 0 ? types : 0;
}

static void create(struct vm *vm, unsigned long type)
{
	if (!(advertised_types() & 1 << type))
		conf_skip("this kernel advertises no VM type %lu", type);
	NEED(vm_create_type(vm, type));
	vm->sev = conf_open_sev(O_RDWR);
}

static void advertised(void)
{
	int types = advertised_types();

	if (!(types & 1 << KVM_X86_SEV_VM))
		conf_skip("this kernel advertises no VM type for SEV");
	CHECK(types & 1 << KVM_X86_DEFAULT_VM);
	CHECK_EQ(!!(types & 1 << KVM_X86_SEV_ES_VM), host_has_es());
}

static void created_or_not(void)
{
	int types = advertised_types();
	struct vm vm;

	for (unsigned long type = 0; type < 8; type++) {
		int result = vm_create_type(&vm, type);

		/* a kernel that knows no types takes 0 only */
		if (result != (types & 1 << type || type == 0 ? 0 : EINVAL))
			FAIL("KVM_CREATE_VM(%lu) gives %s, and 0x%x is advertised", type, conf_errno(result), types);
		if (result == 0)
			vm_close(&vm);
	}
	CHECK_ERRNO(vm_create_type(&vm, 31), EINVAL);
	CHECK_ERRNO(vm_create_type(&vm, 1UL << 33 | 2), EINVAL);
}

static void init_is_for_the_default_type(void)
{
	struct sev_init2 init = {0};
	struct vm vm;

	create(&vm, KVM_X86_SEV_VM);
	CHECK_OP(&vm, vm_op(&vm, SEV_INIT, NULL), EINVAL, NO_FW_CALL);
	if (host_has_es()) {
		CHECK_OP(&vm, vm_op(&vm, SEV_ES_INIT, NULL), EINVAL, NO_FW_CALL);
		create(&vm, KVM_X86_SEV_ES_VM);
		CHECK_OP(&vm, vm_op(&vm, SEV_ES_INIT, NULL), EINVAL, NO_FW_CALL);
		CHECK_OP(&vm, vm_op(&vm, SEV_INIT, NULL), EINVAL, NO_FW_CALL);
	}
	vm_create(&vm);
	CHECK_OP(&vm, vm_op(&vm, SEV_INIT2, &init), EINVAL, NO_FW_CALL);
	CHECK_OP(&vm, vm_op(&vm, SEV_INIT2, NULL), EINVAL, NO_FW_CALL); /* before its data are read */
}

static int init2(struct vm *vm, struct sev_init2 init)
{
	return vm_op(vm, SEV_INIT2, &init);
}

static void init2_arguments(void)
{
	struct vm vm;

	create(&vm, KVM_X86_SEV_VM);
	CHECK_OP(&vm, vm_op(&vm, SEV_INIT2, NULL), EFAULT, NO_FW_CALL);
	for (int bit = 0; bit < 32; bit++)
		CHECK_OP(&vm, init2(&vm, (struct sev_init2){.flags = 1U << bit}), EINVAL, NO_FW_CALL);
	for (int bit = 0; bit < 64; bit++)
		CHECK_OP(&vm, init2(&vm, (struct sev_init2){.vmsa_features = 1UL << bit}), EINVAL, NO_FW_CALL);
	CHECK_OP(&vm, init2(&vm, (struct sev_init2){.ghcb_version = 1}), EINVAL, NO_FW_CALL);
	CHECK_OP(&vm, init2(&vm, (struct sev_init2){0}), 0, NO_FW_CALL);
	CHECK_OP(&vm, init2(&vm, (struct sev_init2){0}), EINVAL, NO_FW_CALL); /* twice */
	create(&vm, KVM_X86_SEV_VM);
	vm_vcpu(&vm, 0);
	CHECK_OP(&vm, init2(&vm, (struct sev_init2){0}), EINVAL, NO_FW_CALL); /* too late */
}

static uint64_t vmsa_features(void)
{
	uint64_t features = 0;
	struct device_attr attr = {
		.group = KVM_X86_GRP_SEV, .attr = KVM_X86_SEV_VMSA_FEATURES, .addr = (uintptr_t)&features};
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	CHECK_ERRNO(conf_ioctl(kvm, KVM_GET_DEVICE_ATTR, &attr), 0);
	return features;
}

static void init2_es_arguments(void)
{
	struct vm vm;
	uint64_t features;

	create(&vm, KVM_X86_SEV_ES_VM);
	features = vmsa_features();
	for (int bit = 0; bit < 64; bit++)
		if (!(features >> bit & 1))
			CHECK_OP(&vm, init2(&vm, (struct sev_init2){.vmsa_features = 1UL << bit}), EINVAL, NO_FW_CALL);
	CHECK_OP(&vm, init2(&vm, (struct sev_init2){.flags = 1}), EINVAL, NO_FW_CALL);
	CHECK_OP(&vm, init2(&vm, (struct sev_init2){.ghcb_version = 0xffff}), EINVAL, NO_FW_CALL);
	CHECK_OP(&vm, init2(&vm, (struct sev_init2){.ghcb_version = 1, .vmsa_features = features}), 0, NO_FW_CALL);
	create(&vm, KVM_X86_SEV_ES_VM);
	CHECK_OP(&vm, init2(&vm, (struct sev_init2){.ghcb_version = 2}), 0, NO_FW_CALL);
}

static void before_init2(void)
{
	struct sev_guest_status status;
	struct vm vm;

	create(&vm, KVM_X86_SEV_VM);
	CHECK_OP(&vm, vm_status(&vm, &status), ENOTTY, NO_FW_CALL);
	CHECK_OP(&vm, vm_launch_start(&vm, 0, 0, vm.sev), ENOTTY, NO_FW_CALL);
	CHECK_ERRNO(vm_region(&vm, true, conf_pages(1), PAGE), ENOTTY);
	CHECK_ERRNO(conf_ioctl(vm_vcpu(&vm, 0), KVM_RUN, NULL), EINVAL);
}

static void launch_by_type(unsigned long type, uint32_t policy)
{
	uint8_t *page = conf_pages(1), *out = conf_pages(1), plain[PAGE];
	struct sev_guest_status status;
	struct vm vm;

	create(&vm, type);
	NEED(init2(&vm, (struct sev_init2){0}));
	NEED(vm_launch_start(&vm, 0, policy, vm.sev));
	vm_vcpu(&vm, 0);
	conf_fill(page, PAGE, 9);
	memcpy(plain, page, PAGE);
	CHECK_OP(&vm, vm_update(&vm, page, PAGE), 0, 0U);
	if (policy & POLICY_ES)
		CHECK_OP(&vm, vm_op(&vm, SEV_LAUNCH_UPDATE_VMSA, NULL), 0, 0U);
	CHECK_OP(&vm, vm_measure(&vm), 0, 0U);
	CHECK_OP(&vm, vm_op(&vm, SEV_LAUNCH_FINISH, NULL), 0, 0U);
	CHECK_OP(&vm, vm_status(&vm, &status), 0, 0U);
	CHECK_EQ(status.policy, policy);
	CHECK_EQ(status.state, STATE_RUNNING);
	CHECK_OP(&vm, vm_decrypt(&vm, page, out, PAGE), 0, 0U);
	CHECK(memcmp(out, plain, PAGE) == 0);
}

static void launch_sev(void)
{
	launch_by_type(KVM_X86_SEV_VM, 0);
}

static void launch_es(void)
{
	launch_by_type(KVM_X86_SEV_ES_VM, POLICY_ES);
}

static void attributes(void)
{
	uint64_t features = ~0UL;
	struct device_attr attr = {
		.group = KVM_X86_GRP_SEV, .attr = KVM_X86_SEV_VMSA_FEATURES, .addr = (uintptr_t)&features};
	struct vm vm;

	create(&vm, KVM_X86_SEV_VM);
	CHECK_ERRNO(conf_ioctl(vm.kvm, KVM_HAS_DEVICE_ATTR, &attr), 0);
	CHECK_EQ(features, ~0UL);
	CHECK_ERRNO(conf_ioctl(vm.kvm, KVM_GET_DEVICE_ATTR, &attr), 0);
	CHECK(features != ~0UL);
	attr.addr = (uintptr_t)conf_hole();
	CHECK_ERRNO(conf_ioctl(vm.kvm, KVM_GET_DEVICE_ATTR, &attr), EFAULT);
	CHECK_ERRNO(conf_ioctl(vm.kvm, KVM_HAS_DEVICE_ATTR, &attr), 0);
	attr.attr = 99;
	CHECK_ERRNO(conf_ioctl(vm.kvm, KVM_HAS_DEVICE_ATTR, &attr), ENXIO);
	CHECK_ERRNO(conf_ioctl(vm.kvm, KVM_GET_DEVICE_ATTR, &attr), ENXIO);
	attr = (struct device_attr){.group = 99, .addr = (uintptr_t)&features};
	CHECK_ERRNO(conf_ioctl(vm.kvm, KVM_HAS_DEVICE_ATTR, &attr), ENXIO);
	CHECK_ERRNO(conf_ioctl(vm.kvm, KVM_HAS_DEVICE_ATTR, conf_hole()), EFAULT);
}

struct cpuid_table {
	uint32_t count, pad;
	struct {
		uint32_t function, index, flags, eax, ebx, ecx, edx, pad[3];
	} entries[256];
};

static void supported_cpuid(void)
{
	static struct cpuid_table table;
	struct vm vm;

	vm_create(&vm);
	table.count = 256;
	CHECK_ERRNO(conf_ioctl(vm.kvm, KVM_GET_SUPPORTED_CPUID, &table), 0);
	for (uint32_t i = 0; i < table.count; i++) {
		if (table.entries[i].function != 0x8000001f)
			continue;
		CHECK(table.entries[i].eax & 1 << 1); /* SEV */
		CHECK_EQ(table.entries[i].eax >> 3 & 1, host_has_es());
		CHECK((table.entries[i].ebx & 0x3f) >= 32); /* where the C-bit is */
		return;
	}
	FAIL("there is no leaf 0x8000001f");
}

const struct row rows_types[] = {
	ROW("types.advertised", ON_ANY, advertised, "3: KVM_CHECK_EXTENSION(235)"),
	ROW("types.create", ON_ANY, created_or_not, "3: KVM_CREATE_VM takes what is advertised; else EINVAL"),
	ROW("types.init", ON_ANY, init_is_for_the_default_type, "3: KVM_SEV_INIT and INIT2, each for its own: EINVAL"),
	ROW("types.init2-arguments", ON_ANY, init2_arguments, "3: flags, features, GHCB version, twice, too late"),
	ROW("types.init2-es-arguments", ON_ANY, init2_es_arguments, "3: features as the attribute tells them"),
	ROW("types.before-init2", ON_ANY, before_init2, "3: no SEV VM yet, and KVM_RUN refuses"),
	ROW("types.launch-sev", ON_ANY, launch_sev, "3: a whole launch in a VM of type 2"),
	ROW("types.launch-es", ON_ANY, launch_es, "3: a whole launch in a VM of type 3"),
	ROW("types.attributes", ON_ANY, attributes, "3: KVM_X86_GRP_SEV on /dev/kvm"),
	ROW("types.supported-cpuid", ON_ANY, supported_cpuid, "5: leaf 8000_001F as KVM supports it"),
	END_OF_ROWS,
};
