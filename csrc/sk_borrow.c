#define _GNU_SOURCE
#include "sk_borrow.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sk_trace.h"
#include "sk_xfer.h"

#define RED_ZONE_NBYTES 128
#define XSTATE_ROOM 16384 /* AMX brings the XSAVE area to 11 KiB */
#define XSTATE_ALIGN 64
#define USER_CODE_64 0x33

/* Answers that mean "restart me", seen by a tracer only (include/linux/errno.h). */
#define ERESTARTSYS 512
#define ERESTARTNOINTR 513
#define ERESTARTNOHAND 514
#define ERESTART_RESTARTBLOCK 516

/*
 * The frame rt_sigreturn(2) reads: arch/x86/include/asm/sigframe.h and uapi/asm/sigcontext.h (v6.18).
 * Spelled out here because glibc's ucontext_t is larger than the kernel's.
 */
struct sigcontext_64 {
	uint64_t r8, r9, r10, r11, r12, r13, r14, r15;
	uint64_t rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, eflags;
	uint16_t cs, gs, fs, ss;
	uint64_t err, trapno, oldmask, cr2, fpstate, reserved[8];
};

struct ucontext_64 {
	uint64_t flags, link;
	uint64_t ss_sp;
	int32_t ss_flags, pad;
	uint64_t ss_size;
	struct sigcontext_64 mcontext;
	uint64_t sigmask;
};

_Static_assert(sizeof(struct sigcontext_64) == 256, "the kernel's sigcontext is 256 bytes");
_Static_assert(offsetof(struct ucontext_64, sigmask) == 296, "the signal mask follows the registers");

#define UC_FP_XSTATE 0x1
#define UC_SIGCONTEXT_SS 0x2
#define UC_STRICT_RESTORE_SS 0x4
/* An invalid mode makes rt_sigreturn leave the alternate stack, which ptrace cannot read, as it is. */
#define SS_FLAGS_LEAVE_ALONE 0x40

/* The software bytes of the legacy XSAVE region, which tell rt_sigreturn what follows. */
struct fpx_sw_bytes {
	uint32_t magic1, extended_size;
	uint64_t xfeatures;
	uint32_t xstate_size, padding[7];
};

#define FP_XSTATE_MAGIC1 0x46505853u
#define FP_XSTATE_MAGIC2 0x46505845u
#define FPX_SW_OFFSET 464
#define XSAVE_HEADER_END 576 /* 512 bytes of legacy region, 64 of header */

struct return_frame {
	/* ret pops these: rax = 15, then the syscall; the last is also the frame's own first word */
	uint64_t pop_rax, number, syscall_ret;
	struct ucontext_64 context;
};

void sk_prepare_call(struct user_regs_struct *regs, uint64_t syscall_ret, uint64_t sp, long number,
                     const uint64_t args[6])
{
	regs->rip = syscall_ret;
	regs->rsp = sp;
	regs->rax = (unsigned long long)number;
	regs->orig_rax = (unsigned long long)-1; /* nothing of the thread's own is to be restarted here */
	regs->rdi = args[0];
	regs->rsi = args[1];
	regs->rdx = args[2];
	regs->r10 = args[3];
	regs->r8 = args[4];
	regs->r9 = args[5];
}

/* What the thread would see if its interrupted system call were restarted without the kernel's help. */
static void emulate_restart(struct sigcontext_64 *context, const struct user_regs_struct *regs)
{
	if ((int64_t)regs->orig_rax < 0)
		return;
	switch (-(int64_t)regs->rax) {
	case ERESTARTSYS:
	case ERESTARTNOINTR:
	case ERESTARTNOHAND:
		context->rax = regs->orig_rax;
		context->rip -= 2; /* the length of the syscall instruction */
		break;
	case ERESTART_RESTARTBLOCK:
		/* rt_sigreturn forgets the restart block: the call ends as if a signal had come */
		context->rax = (uint64_t)-EINTR;
		break;
	default:
		break;
	}
}

static void fill_context(struct ucontext_64 *context, const struct user_regs_struct *regs, uint64_t sigmask,
                         uint64_t fpstate)
{
	struct sigcontext_64 *machine = &context->mcontext;

	memset(context, 0, sizeof *context);
	context->flags = UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS;
	context->ss_flags = SS_FLAGS_LEAVE_ALONE;
	context->sigmask = sigmask;
	*machine = (struct sigcontext_64){
		.r8 = regs->r8, .r9 = regs->r9, .r10 = regs->r10, .r11 = regs->r11,
		.r12 = regs->r12, .r13 = regs->r13, .r14 = regs->r14, .r15 = regs->r15,
		.rdi = regs->rdi, .rsi = regs->rsi, .rbp = regs->rbp, .rbx = regs->rbx,
		.rdx = regs->rdx, .rax = regs->rax, .rcx = regs->rcx, .rsp = regs->rsp,
		.rip = regs->rip, .eflags = regs->eflags,
		.cs = (uint16_t)regs->cs, .ss = (uint16_t)regs->ss,
		.fpstate = fpstate,
	};
	emulate_restart(machine, regs);
}

/* Turn what ptrace gives into what a signal frame holds; returns the bytes it takes. */
static size_t finish_xstate(unsigned char *area, size_t nbytes)
{
	struct fpx_sw_bytes software = { 0 };
	uint32_t magic2 = FP_XSTATE_MAGIC2;

	/* ptrace puts the mask of enabled features into the first software word */
	memcpy(&software.xfeatures, area + FPX_SW_OFFSET, sizeof software.xfeatures);
	software.magic1 = FP_XSTATE_MAGIC1;
	software.xstate_size = (uint32_t)nbytes;
	software.extended_size = (uint32_t)(nbytes + sizeof magic2);
	memcpy(area + FPX_SW_OFFSET, &software, sizeof software);
	memcpy(area + nbytes, &magic2, sizeof magic2);
	return nbytes + sizeof magic2;
}

static enum sk_status write_frame(struct sk_borrowed *borrowed, const struct sk_gadgets *gadgets,
                                  struct sk_error *err)
{
	unsigned char xstate[XSTATE_ROOM + sizeof(uint32_t)];
	struct return_frame frame = {
		.pop_rax = gadgets->pop_rax,
		.number = SYS_rt_sigreturn,
		.syscall_ret = gadgets->syscall_ret,
	};
	uint64_t fpstate;
	size_t nbytes, done;
	enum sk_status status = sk_trace_get_xstate(borrowed->tid, xstate, XSTATE_ROOM, &nbytes, err);

	if (status)
		return status;
	if (nbytes < XSAVE_HEADER_END || nbytes == XSTATE_ROOM)
		return sk_fail(err, SK_ERR_UNSUPPORTED, 0, 0, "thread %d has %zu bytes of extended state",
		               (int)borrowed->tid, nbytes);
	nbytes = finish_xstate(xstate, nbytes);

	fpstate = (borrowed->regs.rsp - RED_ZONE_NBYTES - nbytes) & ~(uint64_t)(XSTATE_ALIGN - 1);
	fill_context(&frame.context, &borrowed->regs, borrowed->sigmask, fpstate);
	borrowed->chain_sp = (fpstate - sizeof frame) & ~(uint64_t)15;
	status = sk_write(borrowed->pid, fpstate, xstate, nbytes, &done, err);
	if (!status)
		status = sk_write(borrowed->pid, borrowed->chain_sp, &frame, sizeof frame, &done, err);
	return status;
}

enum sk_status sk_borrow(pid_t pid, pid_t tid, const struct sk_gadgets *gadgets, uint64_t deadline_ns,
                         struct sk_borrowed *out, struct sk_error *err)
{
	enum sk_status status;

	memset(out, 0, sizeof *out);
	out->pid = pid;
	out->tid = tid;
	out->deadline_ns = deadline_ns;
	out->syscall_ret = gadgets->syscall_ret;
	status = sk_trace_park(tid, deadline_ns, err);
	if (status)
		return status;
	status = sk_trace_get_regs(tid, &out->regs, err);
	if (!status && out->regs.cs != USER_CODE_64)
		status = sk_fail(err, SK_ERR_UNSUPPORTED, 0, 0, "thread %d does not run 64-bit code", (int)tid);
	if (!status)
		status = sk_trace_get_sigmask(tid, &out->sigmask, err);
	if (!status)
		status = write_frame(out, gadgets, err);
	if (status)
		sk_trace_detach(tid);
	return status;
}

enum sk_status sk_borrowed_call(struct sk_borrowed *borrowed, long number, const uint64_t args[6],
                                int64_t *result, pid_t *cloned, struct sk_error *err)
{
	struct user_regs_struct regs = borrowed->regs;
	enum sk_status status;
	int stop;

	sk_prepare_call(&regs, borrowed->syscall_ret, borrowed->chain_sp, number, args);
	status = sk_trace_set_regs(borrowed->tid, &regs, err);
	/* Registers first, mask second: from then on the return frame restores the mask if we cannot. */
	if (!status && !borrowed->signals_blocked) {
		status = sk_trace_set_sigmask(borrowed->tid, ~(uint64_t)0, err);
		borrowed->signals_blocked = !status;
	}
	for (stop = 0; !status && stop < 2; stop++) /* entry, exit */
		status = sk_trace_to_syscall_stop(borrowed->tid, borrowed->deadline_ns, cloned, err);
	if (!status)
		status = sk_trace_get_regs(borrowed->tid, &regs, err);
	if (!status)
		*result = (int64_t)regs.rax;
	return status;
}

enum sk_status sk_borrow_return(struct sk_borrowed *borrowed, struct sk_error *err)
{
	/*
	 * The kernel restarts an interrupted call only on its way out of signal handling, so go back by way
	 * of an event stop. If that fails, the thread returns through its frame wherever it is.
	 */
	enum sk_status status = sk_trace_park_again(borrowed->tid, borrowed->deadline_ns, err);

	if (!status)
		status = sk_trace_set_sigmask(borrowed->tid, borrowed->sigmask, err);
	if (!status)
		status = sk_trace_set_regs(borrowed->tid, &borrowed->regs, err);
	sk_trace_detach(borrowed->tid);
	return status;
}
