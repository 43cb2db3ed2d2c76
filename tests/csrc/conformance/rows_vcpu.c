/* vCPU ioctls of encrypted guests. */
#define _GNU_SOURCE
#include "conformance.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

static void set_registers(int vcpu)
{
	struct vcpu_regs regs;
	struct vcpu_sregs sregs;

	NEED(conf_ioctl(vcpu, KVM_GET_REGS, &regs));
	NEED(conf_ioctl(vcpu, KVM_GET_SREGS, &sregs));
	regs.rax = 0x1111;
	regs.r15 = 0x1515;
	sregs.cr3 = 0x5000;
	NEED(conf_ioctl(vcpu, KVM_SET_REGS, &regs));
	NEED(conf_ioctl(vcpu, KVM_SET_SREGS, &sregs));
}

static void check_registers(int vcpu)
{
	struct vcpu_regs regs;
	struct vcpu_sregs sregs;

	CHECK_ERRNO(conf_ioctl(vcpu, KVM_GET_REGS, &regs), 0);
	CHECK_ERRNO(conf_ioctl(vcpu, KVM_GET_SREGS, &sregs), 0);
	CHECK_EQ(regs.rax, 0x1111);
	CHECK_EQ(regs.r15, 0x1515);
	CHECK_EQ(sregs.cr3, 0x5000);
}

static void plain_sev(void)
{
	struct guest_debug debug = {.control = KVM_GUESTDBG_ENABLE};
	struct vm vm;
	int vcpu;

	vm_launch(&vm, 0, 1);
	vcpu = vm_vcpu(&vm, 0);
	set_registers(vcpu);
	check_registers(vcpu);
	CHECK_ERRNO(conf_ioctl(vcpu, KVM_GET_FPU, conf_pages(1)), 0);
	CHECK_ERRNO(conf_ioctl(vcpu, KVM_GET_DEBUGREGS, conf_pages(1)), 0);
	CHECK_ERRNO(conf_ioctl(vcpu, KVM_SET_GUEST_DEBUG, &debug), 0);
}

static int try_registers(void *vcpu)
{
	struct vcpu_regs regs;
	struct vcpu_sregs sregs;
	int first = conf_ioctl(*(int *)vcpu, KVM_GET_REGS, &regs);
	int second = conf_ioctl(*(int *)vcpu, KVM_GET_SREGS, &sregs);

	return first == second ? first : 255;
}

static void other_process(void)
{
	struct vm vm;
	int vcpu;

	vm_launch(&vm, 0, 1);
	vcpu = vm_vcpu(&vm, 0);
	CHECK_ERRNO(conf_in_fork(try_registers, &vcpu), EIO);
	CHECK_ERRNO(try_registers(&vcpu), 0);
}

/* The one vCPU of an SEV-ES guest, of either kind of VM, in state LUPDATE. */
static int es_vcpu(struct vm *vm, unsigned long type)
{
	struct sev_init2 init = {0};

	if (!host_has_es())
		conf_skip("this host has no SEV-ES");
	NEED(vm_create_type(vm, type));
	vm->sev = conf_open_sev(O_RDWR);
	NEED(vm_op(vm, type == KVM_X86_DEFAULT_VM ? SEV_ES_INIT : SEV_INIT2, &init));
	NEED(vm_launch_start(vm, 0, POLICY_ES, vm->sev));
	return vm_vcpu(vm, 0);
}

static void es_before_sealing(void)
{
	struct vm vm;
	int vcpu = es_vcpu(&vm, KVM_X86_DEFAULT_VM);

	set_registers(vcpu);
	check_registers(vcpu);
}

static void es_legacy(void)
{
	struct guest_debug debug = {.control = KVM_GUESTDBG_ENABLE};
	struct vcpu_sregs before, after;
	struct vcpu_regs regs;
	struct vm vm;
	int vcpu = es_vcpu(&vm, KVM_X86_DEFAULT_VM);

	set_registers(vcpu);
	NEED(conf_ioctl(vcpu, KVM_GET_SREGS, &before));
	CHECK_OP(&vm, vm_op(&vm, SEV_LAUNCH_UPDATE_VMSA, NULL), 0, 0U);
	/* success, and nothing true in it */
	CHECK_ERRNO(conf_ioctl(vcpu, KVM_GET_REGS, &regs), 0);
	CHECK_ERRNO(conf_ioctl(vcpu, KVM_SET_REGS, &regs), 0);
	memset(&after, 0xee, sizeof(after));
	CHECK_ERRNO(conf_ioctl(vcpu, KVM_GET_SREGS, &after), 0);
	CHECK_EQ(after.cr3, 0);
	CHECK_EQ(after.cr2, 0);
	CHECK(conf_is_all(after.segments, 0, sizeof(after.segments)));
	CHECK(conf_is_all(after.tables, 0, sizeof(after.tables)));
	CHECK_EQ(after.cr0, before.cr0);
	CHECK_EQ(after.cr4, before.cr4);
	CHECK_EQ(after.efer, before.efer);
	CHECK_EQ(after.apic_base, before.apic_base);
	CHECK_ERRNO(conf_ioctl(vcpu, KVM_SET_GUEST_DEBUG, &debug), EINVAL);
}

static void es_own_type(void)
{
	static const struct {
		unsigned long request;
		const char *name;
	} refused[] = {
		{KVM_GET_REGS, "KVM_GET_REGS"},		  {KVM_SET_REGS, "KVM_SET_REGS"},
		{KVM_GET_SREGS, "KVM_GET_SREGS"},	  {KVM_SET_SREGS, "KVM_SET_SREGS"},
		{KVM_GET_SREGS2, "KVM_GET_SREGS2"},	  {KVM_SET_SREGS2, "KVM_SET_SREGS2"},
		{KVM_GET_DEBUGREGS, "KVM_GET_DEBUGREGS"}, {KVM_SET_DEBUGREGS, "KVM_SET_DEBUGREGS"},
		{KVM_GET_FPU, "KVM_GET_FPU"},		  {KVM_SET_FPU, "KVM_SET_FPU"},
		{KVM_GET_XSAVE, "KVM_GET_XSAVE"},	  {KVM_SET_XSAVE, "KVM_SET_XSAVE"},
	};
	struct guest_debug debug = {.control = KVM_GUESTDBG_ENABLE};
	uint8_t *buffer = conf_pages(1);
	struct vm vm;
	int vcpu = es_vcpu(&vm, KVM_X86_SEV_ES_VM);

	set_registers(vcpu);
	check_registers(vcpu);
	CHECK_OP(&vm, vm_op(&vm, SEV_LAUNCH_UPDATE_VMSA, NULL), 0, 0U);
	for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
		int result = conf_ioctl(vcpu, refused[i].request, buffer);

		if (result != EINVAL)
			FAIL("%s gives %s, wanted EINVAL", refused[i].name, conf_errno(result));
	}
	CHECK(conf_is_all(buffer, 0, PAGE));
	CHECK_ERRNO(conf_ioctl(vcpu, KVM_SET_GUEST_DEBUG, &debug), EINVAL);
}

static void update_vmsa(void)
{
	struct guest_debug debug = {.control = KVM_GUESTDBG_ENABLE};
	struct vm vm;
	int vcpu;

	vm_start(&vm, 0);
	CHECK_OP(&vm, vm_op(&vm, SEV_LAUNCH_UPDATE_VMSA, NULL), ENOTTY, NO_FW_CALL); /* no SEV-ES */
	vm_start(&vm, POLICY_ES);
	CHECK_OP(&vm, vm_op(&vm, SEV_LAUNCH_UPDATE_VMSA, NULL), 0, NO_FW_CALL); /* no vCPU, no command */
	vm_init(&vm, true);
	vm_vcpu(&vm, 0);
	CHECK_OP(&vm, vm_op(&vm, SEV_LAUNCH_UPDATE_VMSA, NULL), EBADF, NO_FW_CALL);
	vcpu = es_vcpu(&vm, KVM_X86_DEFAULT_VM);
	NEED(conf_ioctl(vcpu, KVM_SET_GUEST_DEBUG, &debug));
	CHECK_OP(&vm, vm_op(&vm, SEV_LAUNCH_UPDATE_VMSA, NULL), EINVAL, NO_FW_CALL);
	debug.control = 0;
	NEED(conf_ioctl(vcpu, KVM_SET_GUEST_DEBUG, &debug));
	CHECK_OP(&vm, vm_op(&vm, SEV_LAUNCH_UPDATE_VMSA, NULL), 0, 0U);
	NEED(vm_measure(&vm));
	vcpu = es_vcpu(&vm, KVM_X86_DEFAULT_VM);
	NEED(vm_measure(&vm));
	CHECK_OP(&vm, vm_op(&vm, SEV_LAUNCH_UPDATE_VMSA, NULL), EIO, FW_INVALID_GUEST_STATE);
}

static void es_memory(void)
{
	uint8_t *out = conf_pages(2), plain[2 * PAGE];
	struct vm vm;

	vm_launch(&vm, POLICY_ES, 2);
	conf_fill(plain, sizeof(plain), 1);
	CHECK_OP(&vm, vm_decrypt(&vm, vm.ram + 3, out + 5, PAGE + 7), 0, 0U);
	CHECK(memcmp(out + 5, plain + 3, PAGE + 7) == 0);
	CHECK_OP(&vm, vm_encrypt(&vm, out, vm.ram, PAGE), 0, 0U);
}

/* A vCPU that halts at its reset vector and waits there for an interrupt that never comes. */
struct halted {
	struct vm vm;
	int vcpu;
	pthread_t runner;
	atomic_int run_result; /* -1 while KVM_RUN lasts */
	atomic_int regs_result;
};

static void on_signal(int number)
{
	(void)number;
}

static void *run_body(void *argument)
{
	struct halted *halted = argument;

	atomic_store(&halted->run_result, conf_ioctl(halted->vcpu, KVM_RUN, NULL));
	return NULL;
}

static void pause_ms(long milliseconds)
{
	struct timespec duration = {milliseconds / 1000, milliseconds % 1000 * 1000000};

	nanosleep(&duration, NULL);
}

static void halted_start(struct halted *halted)
{
	struct sigaction action = {.sa_handler = on_signal};
	struct memory_region region = {.guest_phys_addr = 0xfffff000, .memory_size = PAGE};
	uint8_t *code = conf_pages(1);

	sigaction(SIGUSR1, &action, NULL);
	vm_init(&halted->vm, false);
	NEED(conf_ioctl(halted->vm.fd, KVM_CREATE_IRQCHIP, NULL));
	NEED(vm_launch_start(&halted->vm, 0, 0, halted->vm.sev));
	memset(code, 0xf4, PAGE); /* hlt */
	region.userspace_addr = (uintptr_t)code;
	NEED(conf_ioctl(halted->vm.fd, KVM_SET_USER_MEMORY_REGION, &region));
	NEED(vm_region(&halted->vm, true, code, PAGE));
	NEED(vm_update(&halted->vm, code, PAGE));
	NEED(vm_measure(&halted->vm));
	halted->vcpu = vm_vcpu(&halted->vm, 0);
	NEED(vm_op(&halted->vm, SEV_LAUNCH_FINISH, NULL));
	atomic_store(&halted->run_result, -1);
	atomic_store(&halted->regs_result, -1);
	CHECK(pthread_create(&halted->runner, NULL, run_body, halted) == 0);
	pause_ms(200);
	CHECK_EQ(atomic_load(&halted->run_result), -1);
}

static void halted_stop(struct halted *halted)
{
	/* the signal could come just before the system call */
	for (int i = 0; i < 100 && atomic_load(&halted->run_result) < 0; i++) {
		pthread_kill(halted->runner, SIGUSR1);
		pause_ms(20);
	}
	CHECK(atomic_load(&halted->run_result) >= 0 && pthread_join(halted->runner, NULL) == 0);
	CHECK_ERRNO(atomic_load(&halted->run_result), EINTR);
}

static void *regs_body(void *argument)
{
	struct halted *halted = argument;
	struct vcpu_regs regs;

	atomic_store(&halted->regs_result, conf_ioctl(halted->vcpu, KVM_GET_REGS, &regs));
	return NULL;
}

static void registers_wait(void)
{
	static struct halted halted;
	pthread_t reader;

	halted_start(&halted);
	CHECK(pthread_create(&reader, NULL, regs_body, &halted) == 0);
	pause_ms(200);
	CHECK_EQ(atomic_load(&halted.regs_result), -1);
	halted_stop(&halted);
	CHECK(pthread_join(reader, NULL) == 0);
	CHECK_ERRNO(atomic_load(&halted.regs_result), 0);
}

static void vm_ioctls_go_on(void)
{
	static struct halted halted;
	struct sev_guest_status status;
	uint8_t *out = conf_pages(2);

	halted_start(&halted);
	CHECK_OP(&halted.vm, vm_status(&halted.vm, &status), 0, 0U);
	CHECK_EQ(status.state, STATE_RUNNING);
	CHECK_OP(&halted.vm, vm_decrypt(&halted.vm, out, out + PAGE, PAGE), 0, 0U);
	CHECK_EQ(atomic_load(&halted.run_result), -1);
	halted_stop(&halted);
}

const struct row rows_vcpu[] = {
	ROW("vcpu.plain-sev", ON_ANY, plain_sev, "3: registers of a plain SEV guest are as ever"),
	ROW("vcpu.other-process", ON_ANY, other_process, "3: EIO"),
	ROW("vcpu.es-before-sealing", ON_ANY, es_before_sealing, "3: before LAUNCH_UPDATE_VMSA nothing is hidden"),
	ROW("vcpu.es-legacy", ON_ANY, es_legacy, "3: SEV-ES, default VM type: calls succeed and tell nothing"),
	ROW("vcpu.es-own-type", ON_ANY, es_own_type, "3: SEV-ES VM type: EINVAL"),
	ROW("vcpu.update-vmsa", ON_ANY, update_vmsa, "1.3, 3: what LAUNCH_UPDATE_VMSA refuses"),
	ROW("vcpu.es-memory", ON_ANY, es_memory, "2: debug commands on memory work as for SEV"),
	ROW("vcpu.registers-wait", ON_ANY, registers_wait, "3: a vCPU's ioctls wait until it leaves KVM_RUN"),
	ROW("vcpu.vm-ioctls-go-on", ON_ANY, vm_ioctls_go_on, "3: those of the VM do not"),
	END_OF_ROWS,
};
