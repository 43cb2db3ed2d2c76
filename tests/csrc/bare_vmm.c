/*
 * The barest VMM there is: RAM of 2 MiB with a known pattern, one vCPU that never runs, and a thread that waits for
 * its input to end. Linked statically, or with -nostdlib -DBARE: then no byte of a C library is in it.
 *
 * It prints "FD HVA\n" (the VM's descriptor, decimal; where its RAM is, hexadecimal) and answers each byte of input
 * with a dot.
 */
#include <linux/kvm.h>
#include <stdint.h>

#ifdef BARE
#define SYS_READ 0
#define SYS_WRITE 1
#define SYS_OPEN 2
#define SYS_MMAP 9
#define SYS_IOCTL 16
#define SYS_EXIT_GROUP 231

/* The instruction is followed by an and, never by a ret: nothing here is a piece that a deputy could borrow. */
static long call(long number, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;

	__asm__ volatile("syscall\n\tandl $-1, %%ecx"
	                 : "+a"(number)
	                 : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
	                 : "rcx", "r11", "memory");
	return number;
}
#define openat_kvm() call(SYS_OPEN, (long)"/dev/kvm", 2, 0, 0, 0, 0)
#define ioctl(fd, request, argument) call(SYS_IOCTL, fd, (long)(request), (long)(argument), 0, 0, 0)
#define read(fd, buffer, nbytes) call(SYS_READ, fd, (long)(buffer), nbytes, 0, 0, 0)
#define write(fd, buffer, nbytes) call(SYS_WRITE, fd, (long)(buffer), nbytes, 0, 0, 0)
#define map_ram() ((uint8_t *)call(SYS_MMAP, 0, RAM_NBYTES, 3, 0x22, -1, 0))
#define leave(status) call(SYS_EXIT_GROUP, status, 0, 0, 0, 0, 0)
#else
#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#define openat_kvm() open("/dev/kvm", O_RDWR)
#define map_ram() ((uint8_t *)mmap(0, RAM_NBYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))
#define leave(status) exit(status)
#endif

#define RAM_NBYTES (2L << 20)

static int vmm(void)
{
	struct kvm_userspace_memory_region region = { .memory_size = RAM_NBYTES };
	char line[32], byte;
	int device, vm, used = 0;
	uint8_t *ram = map_ram();

	for (long at = 0; at < RAM_NBYTES; at++)
		ram[at] = (uint8_t)(at * 7 + (at >> 12));
	device = (int)openat_kvm();
	vm = (int)ioctl(device, KVM_CREATE_VM, 0);
	region.userspace_addr = (uintptr_t)ram;
	if (device < 0 || vm < 0 || ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) < 0
	    || ioctl(vm, KVM_CREATE_VCPU, 0) < 0)
		return 1;
	line[used++] = (char)('0' + vm);
	line[used++] = ' ';
	for (int shift = 60; shift >= 0; shift -= 4)
		line[used++] = "0123456789abcdef"[region.userspace_addr >> shift & 15];
	line[used++] = '\n';
	if (vm > 9 || write(1, line, used) != used)
		return 1;
	while (read(0, &byte, 1) == 1)
		if (write(1, ".", 1) != 1)
			return 1;
	return 0;
}

#ifdef BARE
__attribute__((force_align_arg_pointer)) void _start(void)
{
	leave(vmm());
	__builtin_unreachable();
}
#else
int main(void)
{
	leave(vmm());
}
#endif
