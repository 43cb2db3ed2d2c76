/*
 * A tiny virtual machine monitor that launches one SEV guest: the program that test_my_vmm.py tests.
 *
 *   my_vmm POLICY
 *
 * It prints what it does, one fact a line, and stays until its input ends. 1 on failure, with the reason on stderr.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/psp-sev.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define RAM_NBYTES 0x10000
#define MEASUREMENT_NBYTES 48

/* Since Linux 6.10; not in the headers of older distributions. */
#define MY_CAP_VM_TYPES 235
#define MY_SEV_VM 2
#define MY_SEV_INIT2 22
struct my_sev_init {
	uint64_t vmsa_features;
	uint32_t flags;
	uint16_t ghcb_version;
	uint16_t pad1;
	uint32_t pad2[8];
};

static int sev_fd, vm_fd;

static void fail(const char *what)
{
	fprintf(stderr, "my_vmm: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void sev(const char *name, uint32_t id, void *data)
{
	struct kvm_sev_cmd command = { .id = id, .data = (uintptr_t)data, .sev_fd = (uint32_t)sev_fd };

	if (ioctl(vm_fd, KVM_MEMORY_ENCRYPT_OP, &command) == 0)
		return;
	if (command.error)
		fprintf(stderr, "my_vmm: the firmware says 0x%x\n", command.error);
	fail(name);
}

static void create_vm(int kvm)
{
	int types = ioctl(kvm, KVM_CHECK_EXTENSION, MY_CAP_VM_TYPES);
	struct my_sev_init init = { 0 };

	if (types > 0 && types & 1 << MY_SEV_VM) {
		vm_fd = ioctl(kvm, KVM_CREATE_VM, MY_SEV_VM);
		if (vm_fd < 0)
			fail("KVM_CREATE_VM of type SEV");
		sev("INIT2", MY_SEV_INIT2, &init);
	} else {
		vm_fd = ioctl(kvm, KVM_CREATE_VM, 0);
		if (vm_fd < 0)
			fail("KVM_CREATE_VM");
		sev("INIT", KVM_SEV_INIT, NULL);
	}
}

static void *map_ram(void)
{
	struct kvm_userspace_memory_region slot = { .memory_size = RAM_NBYTES };
	void *ram = mmap(NULL, RAM_NBYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct kvm_enc_region region = { (uintptr_t)ram, RAM_NBYTES };

	if (ram == MAP_FAILED)
		fail("mmap");
	slot.userspace_addr = (uintptr_t)ram;
	if (ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &slot) < 0)
		fail("KVM_SET_USER_MEMORY_REGION");
	if (ioctl(vm_fd, KVM_MEMORY_ENCRYPT_REG_REGION, &region) < 0)
		fail("KVM_MEMORY_ENCRYPT_REG_REGION");
	memset(ram, 'G', RAM_NBYTES); /* the guest's program */
	return ram;
}

static void launch(uint32_t policy, void *ram)
{
	unsigned char measurement[MEASUREMENT_NBYTES];
	struct kvm_sev_launch_start start = { .policy = policy };
	struct kvm_sev_launch_update_data update = { .uaddr = (uintptr_t)ram, .len = RAM_NBYTES };
	struct kvm_sev_launch_measure measure = { (uintptr_t)measurement, sizeof measurement };

	sev("LAUNCH_START", KVM_SEV_LAUNCH_START, &start);
	sev("LAUNCH_UPDATE_DATA", KVM_SEV_LAUNCH_UPDATE_DATA, &update);
	sev("LAUNCH_MEASURE", KVM_SEV_LAUNCH_MEASURE, &measure);
	printf("measurement ");
	for (size_t i = 0; i < sizeof measurement; i++)
		printf("%02x", measurement[i]);
	printf("\nram %p\n", ram);
	sev("LAUNCH_FINISH", KVM_SEV_LAUNCH_FINISH, NULL);
}

int main(int argc, char **argv)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (argc != 2) {
		fprintf(stderr, "usage: my_vmm POLICY\n");
		return 2;
	}
	if (kvm < 0)
		fail("/dev/kvm");
	sev_fd = open("/dev/sev", O_RDWR | O_CLOEXEC);
	if (sev_fd < 0)
		fail("/dev/sev");
	create_vm(kvm);
	launch((uint32_t)strtoul(argv[1], NULL, 0), map_ram());
	puts("running");
	fflush(stdout);
	getchar();
	return 0;
}
