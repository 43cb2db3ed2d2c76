#define _GNU_SOURCE
#include "sk_seccomp.h"

#include <errno.h>
#include <linux/audit.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>

#include "sk_tasks.h"

#ifndef PTRACE_SECCOMP_GET_FILTER
#define PTRACE_SECCOMP_GET_FILTER 0x420c
#endif
#ifndef SECCOMP_RET_KILL_PROCESS
#define SECCOMP_RET_KILL_PROCESS 0x80000000U
#endif
#ifndef SECCOMP_RET_LOG
#define SECCOMP_RET_LOG 0x7ffc0000U
#endif
#ifndef SECCOMP_RET_USER_NOTIF
#define SECCOMP_RET_USER_NOTIF 0x7fc00000U
#endif
#define ACTION_MASK 0xffff0000U
#define MAX_FILTERS 1024 /* the kernel's limit is on instructions: 32,768 in all of a thread's */
#define SYSCALL_INSN_NBYTES 2

/* ---- one program ---- */

static uint32_t alu(uint16_t operation, uint32_t a, uint32_t b)
{
	switch (operation) {
	case BPF_ADD:
		return a + b;
	case BPF_SUB:
		return a - b;
	case BPF_MUL:
		return a * b;
	case BPF_DIV:
		return b ? a / b : 0;
	case BPF_OR:
		return a | b;
	case BPF_AND:
		return a & b;
	case BPF_XOR:
		return a ^ b;
	case BPF_LSH:
		return a << (b & 31);
	case BPF_RSH:
		return a >> (b & 31);
	default: /* BPF_NEG */
		return -a;
	}
}

static bool holds(uint16_t comparison, uint32_t a, uint32_t b)
{
	switch (comparison) {
	case BPF_JEQ:
		return a == b;
	case BPF_JGT:
		return a > b;
	case BPF_JGE:
		return a >= b;
	default: /* BPF_JSET */
		return (a & b) != 0;
	}
}

uint32_t sk_seccomp_run(const struct sk_seccomp_filter *filter, const struct seccomp_data *call)
{
	uint32_t a = 0, x = 0, memory[BPF_MEMWORDS] = { 0 };

	/* jumps go forward only, so this ends; what the kernel would not have taken counts as killing */
	for (size_t pc = 0; pc < filter->ninsns; pc++) {
		const struct sock_filter *insn = &filter->code[pc];
		const uint32_t k = insn->k;
		const uint32_t operand = BPF_SRC(insn->code) == BPF_X ? x : k;

		switch (BPF_CLASS(insn->code)) {
		case BPF_LD:
			if (BPF_MODE(insn->code) == BPF_ABS && k <= sizeof *call - sizeof a)
				memcpy(&a, (const char *)call + k, sizeof a);
			else if (BPF_MODE(insn->code) == BPF_MEM && k < BPF_MEMWORDS)
				a = memory[k];
			else if (BPF_MODE(insn->code) == BPF_IMM)
				a = k;
			else if (BPF_MODE(insn->code) == BPF_LEN)
				a = sizeof *call;
			else
				return SECCOMP_RET_KILL_PROCESS;
			break;
		case BPF_LDX:
			if (BPF_MODE(insn->code) == BPF_MEM && k < BPF_MEMWORDS)
				x = memory[k];
			else if (BPF_MODE(insn->code) == BPF_IMM)
				x = k;
			else if (BPF_MODE(insn->code) == BPF_LEN)
				x = sizeof *call;
			else
				return SECCOMP_RET_KILL_PROCESS;
			break;
		case BPF_ST:
		case BPF_STX:
			if (k >= BPF_MEMWORDS)
				return SECCOMP_RET_KILL_PROCESS;
			memory[k] = BPF_CLASS(insn->code) == BPF_ST ? a : x;
			break;
		case BPF_ALU:
			if (BPF_OP(insn->code) > BPF_NEG && BPF_OP(insn->code) != BPF_XOR)
				return SECCOMP_RET_KILL_PROCESS;
			if (BPF_OP(insn->code) == BPF_DIV && operand == 0)
				return 0; /* as the kernel: the program ends with 0 */
			a = alu(BPF_OP(insn->code), a, operand);
			break;
		case BPF_JMP:
			if (BPF_OP(insn->code) == BPF_JA)
				pc += k;
			else
				pc += holds(BPF_OP(insn->code), a, operand) ? insn->jt : insn->jf;
			break;
		case BPF_RET:
			return BPF_RVAL(insn->code) == BPF_A ? a : k;
		default: /* BPF_MISC */
			if (BPF_MISCOP(insn->code) == BPF_TAX)
				x = a;
			else
				a = x;
			break;
		}
	}
	return SECCOMP_RET_KILL_PROCESS;
}

/* ---- all of a thread's ---- */

uint32_t sk_seccomp_action(const struct sk_seccomp *seccomp, const struct seccomp_data *call)
{
	int32_t strictest = (int32_t)SECCOMP_RET_ALLOW;

	/* the kernel compares actions as signed numbers: KILL_PROCESS is the lowest */
	for (size_t i = 0; i < seccomp->nfilters; i++) {
		int32_t action = (int32_t)(sk_seccomp_run(&seccomp->filters[i], call) & ACTION_MASK);

		if (action < strictest)
			strictest = action;
	}
	return (uint32_t)strictest;
}

static bool is_carried_out(uint32_t action)
{
	return action == SECCOMP_RET_ALLOW || action == SECCOMP_RET_LOG;
}

static bool is_harmless(uint32_t action)
{
	return is_carried_out(action) || action == SECCOMP_RET_USER_NOTIF || action == SECCOMP_RET_TRACE ||
	       action == SECCOMP_RET_ERRNO;
}

enum sk_status sk_seccomp_check(const struct sk_seccomp *seccomp, uint64_t syscall_hva, long number,
                                const uint64_t args[6], bool must_run, struct sk_error *err)
{
	struct seccomp_data call = {
		.nr = (int)number,
		.arch = AUDIT_ARCH_X86_64,
		.instruction_pointer = syscall_hva + SYSCALL_INSN_NBYTES,
	};
	uint32_t action;

	memcpy(call.args, args, sizeof call.args);
	action = sk_seccomp_action(seccomp, &call);
	if (must_run ? is_carried_out(action) : is_harmless(action))
		return SK_OK;
	return sk_fail(err, SK_ERR_SANDBOX, 0, 0,
	               "its seccomp filter forbids system call %ld (0x%llx, 0x%llx): action 0x%08x", number,
	               (unsigned long long)args[0], (unsigned long long)args[1], action);
}

/* ---- reading them ---- */

static enum sk_status read_one(pid_t tid, size_t index, struct sk_seccomp_filter *out, struct sk_error *err)
{
	long ninsns = ptrace((enum __ptrace_request)PTRACE_SECCOMP_GET_FILTER, tid, (void *)index, NULL);

	if (ninsns < 0)
		return sk_fail_errno(err, errno, "seccomp filter %zu of thread %d", index, (int)tid);
	out->code = calloc((size_t)ninsns + 1, sizeof *out->code);
	if (!out->code)
		return sk_fail_errno(err, ENOMEM, "room for a seccomp filter");
	if (ptrace((enum __ptrace_request)PTRACE_SECCOMP_GET_FILTER, tid, (void *)index, out->code) != ninsns)
		return sk_fail_errno(err, errno, "seccomp filter %zu of thread %d", index, (int)tid);
	out->ninsns = (size_t)ninsns;
	return SK_OK;
}

static bool grow(struct sk_seccomp *seccomp)
{
	struct sk_seccomp_filter *grown =
	    realloc(seccomp->filters, (seccomp->nfilters + 1) * sizeof *seccomp->filters);

	if (!grown)
		return false;
	seccomp->filters = grown;
	grown[seccomp->nfilters++] = (struct sk_seccomp_filter){ 0 };
	return true;
}

enum sk_status sk_seccomp_read(pid_t pid, pid_t tid, struct sk_seccomp *out, struct sk_error *err)
{
	char mode[16];

	memset(out, 0, sizeof *out);
	if (!sk_task_status_field(pid, tid, "Seccomp", mode, sizeof mode) || mode[0] == '0')
		return SK_OK; /* none, or a kernel without seccomp */
	if (mode[0] == '1')
		return sk_fail(err, SK_ERR_SANDBOX, 0, 0, "process %d is in strict seccomp mode", (int)pid);
	for (size_t index = 0; index < MAX_FILTERS; index++) {
		struct sk_error failure = { 0 };

		if (!grow(out))
			return sk_fail_errno(err, ENOMEM, "room for seccomp filters");
		if (!read_one(tid, index, &out->filters[index], &failure))
			continue;
		free(out->filters[index].code);
		out->nfilters--;
		if (failure.os_errno == ENOENT && index > 0)
			return SK_OK; /* that was all */
		if (failure.status == SK_ERR_NO_PROCESS) {
			sk_seccomp_forget(out);
			return sk_fail(err, SK_ERR_NO_PROCESS, ESRCH, 0, "thread %d", (int)tid);
		}
		break;
	}
	sk_seccomp_forget(out);
	out->unreadable = true;
	return SK_OK;
}

void sk_seccomp_forget(struct sk_seccomp *seccomp)
{
	for (size_t i = 0; i < seccomp->nfilters; i++)
		free(seccomp->filters[i].code);
	free(seccomp->filters);
	memset(seccomp, 0, sizeof *seccomp);
}
