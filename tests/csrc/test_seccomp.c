/* What a seccomp program returns: the kernel is the judge, with random programs that answer getpid with errno. */
#define _GNU_SOURCE
#include "../../csrc/sk_seccomp.h"

#include <errno.h>
#include <linux/audit.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "expect.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))
#define OFFSET(field) offsetof(struct seccomp_data, field)
#define NPROGRAMS 400
#define MAX_INSNS 40

static uint32_t run(const struct sock_filter *code, size_t ninsns, const struct seccomp_data *call)
{
	const struct sk_seccomp_filter filter = { (struct sock_filter *)code, ninsns };

	return sk_seccomp_run(&filter, call);
}

static void programs_are_run(void)
{
	const struct seccomp_data call = { .nr = 16, .arch = AUDIT_ARCH_X86_64, .args = { 7, 0x1122334455667788 } };
	const struct sock_filter by_request[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, OFFSET(nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 16, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, OFFSET(args[1]) + 4),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0x11223344, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 5),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	const struct sock_filter no_end[] = { BPF_STMT(BPF_LD | BPF_IMM, 1) };
	const struct sock_filter too_far[] = { BPF_STMT(BPF_JMP | BPF_JA, 100), BPF_STMT(BPF_RET | BPF_K, 1) };
	const struct sock_filter divided[] = {
		BPF_STMT(BPF_LD | BPF_IMM, 9), BPF_STMT(BPF_ALU | BPF_DIV | BPF_X, 0), BPF_STMT(BPF_RET | BPF_A, 0),
	};
	const struct sock_filter modulo[] = { BPF_STMT(BPF_ALU | BPF_MOD | BPF_K, 3), BPF_STMT(BPF_RET | BPF_A, 0) };
	const struct sock_filter outside[] = { BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 64), BPF_STMT(BPF_RET | BPF_A, 0) };

	EXPECT(run(by_request, COUNT(by_request), &call) == (SECCOMP_RET_ERRNO | 5));
	EXPECT(run(no_end, COUNT(no_end), &call) == SECCOMP_RET_KILL_PROCESS);
	EXPECT(run(too_far, COUNT(too_far), &call) == SECCOMP_RET_KILL_PROCESS);
	EXPECT(run(divided, COUNT(divided), &call) == 0);
	EXPECT(run(modulo, COUNT(modulo), &call) == SECCOMP_RET_KILL_PROCESS); /* seccomp knows no remainders */
	EXPECT(run(outside, COUNT(outside), &call) == SECCOMP_RET_KILL_PROCESS);
	EXPECT(run(NULL, 0, &call) == SECCOMP_RET_KILL_PROCESS);
}

static void the_strictest_of_all_filters_decides(void)
{
	struct sock_filter rets[] = {
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, 0x12340000), /* unknown: the kernel kills */
	};
	struct sk_seccomp_filter filters[] = { { &rets[0], 1 }, { &rets[1], 1 }, { &rets[2], 1 }, { &rets[0], 1 } };
	struct sk_seccomp all = { .filters = filters, .nfilters = 0 };
	const struct seccomp_data call = { 0 };
	const uint64_t args[6] = { 0 };
	struct sk_error err;

	EXPECT(sk_seccomp_action(&all, &call) == SECCOMP_RET_ALLOW);
	EXPECT(sk_seccomp_check(&all, 0, 1, args, true, &err) == SK_OK);
	all.nfilters = 2;
	EXPECT(sk_seccomp_action(&all, &call) == SECCOMP_RET_ERRNO);
	EXPECT(sk_seccomp_check(&all, 0, 1, args, true, &err) == SK_ERR_SANDBOX);
	EXPECT(sk_seccomp_check(&all, 0, 1, args, false, &err) == SK_OK);
	all.nfilters = 4;
	EXPECT(sk_seccomp_action(&all, &call) == SECCOMP_RET_KILL_PROCESS);
	EXPECT(sk_seccomp_check(&all, 0, 1, args, false, &err) == SK_ERR_SANDBOX);
	filters[0].code = &rets[3];
	all.nfilters = 1;
	EXPECT(sk_seccomp_check(&all, 0, 1, args, false, &err) == SK_ERR_SANDBOX);
}

/* ---- against the kernel ---- */

static const uint16_t alu_ops[] = { BPF_ADD, BPF_SUB, BPF_MUL, BPF_DIV, BPF_OR, BPF_AND, BPF_XOR, BPF_LSH, BPF_RSH, BPF_NEG };
static const uint16_t jumps[] = { BPF_JEQ, BPF_JGT, BPF_JGE, BPF_JSET };

static uint32_t dice(uint32_t *seed, uint32_t below)
{
	*seed = *seed * 1664525u + 1013904223u;
	return (*seed >> 8) % below;
}

static struct sock_filter random_insn(uint32_t *seed, uint32_t left)
{
	const uint32_t operand = dice(seed, 2) ? dice(seed, 40) : dice(seed, 0xffffff) << 8;
	const uint16_t source = dice(seed, 2) ? BPF_X : BPF_K;

	switch (dice(seed, 8)) {
	case 0:
		return (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 4 * dice(seed, sizeof(struct seccomp_data) / 4));
	case 1:
		return (struct sock_filter)BPF_STMT((dice(seed, 2) ? BPF_LD : BPF_LDX) | BPF_IMM, operand);
	case 2:
		return (struct sock_filter)BPF_STMT((dice(seed, 2) ? BPF_LD : BPF_LDX) | BPF_MEM, dice(seed, BPF_MEMWORDS));
	case 3:
		return (struct sock_filter)BPF_STMT(dice(seed, 2) ? BPF_ST : BPF_STX, dice(seed, BPF_MEMWORDS));
	case 4: {
		const uint16_t op = alu_ops[dice(seed, COUNT(alu_ops))];
		uint32_t k = operand;

		if (op == BPF_LSH || op == BPF_RSH)
			k %= 32; /* the kernel takes no other constant */
		if (op == BPF_DIV && !k)
			k = 1;
		return (struct sock_filter)BPF_STMT(BPF_ALU | op | (op == BPF_NEG ? 0 : source), op == BPF_NEG ? 0 : k);
	}
	case 5:
		return (struct sock_filter)BPF_STMT(BPF_MISC | (dice(seed, 2) ? BPF_TAX : BPF_TXA), 0);
	case 6:
		return (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_LEN, 0);
	default:
		return (struct sock_filter)BPF_JUMP(BPF_JMP | jumps[dice(seed, COUNT(jumps))] | source, operand,
		                                    (uint8_t)dice(seed, left), (uint8_t)dice(seed, left));
	}
}

/*
 * Everything but getpid is let pass; getpid fails with the low bits of what the body computed. Memory words are
 * written first: the kernel refuses programs that might read one before.
 */
static size_t random_program(uint32_t seed, struct sock_filter *code)
{
	size_t n = 0, end, nbody = 4 + dice(&seed, 16);

	for (uint32_t word = 0; word < BPF_MEMWORDS; word++)
		code[n++] = (struct sock_filter)BPF_STMT(BPF_ST, word);
	for (end = n + nbody; n < end; n++)
		code[n] = random_insn(&seed, (uint32_t)(end - n));
	code[n++] = (struct sock_filter)BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0x7ff);
	code[n++] = (struct sock_filter)BPF_STMT(BPF_ALU | BPF_OR | BPF_K, SECCOMP_RET_ERRNO);
	code[n++] = (struct sock_filter)BPF_STMT(BPF_ST, 0);
	code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, OFFSET(nr));
	code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getpid, 1, 0);
	code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_MEM, 0);
	code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_A, 0);
	EXPECT(n <= MAX_INSNS + BPF_MEMWORDS);
	return n;
}

/* The child answers with what the kernel made of getpid; 2: it would not take the program. */
static int asked_of_kernel(const struct sock_filter *code, size_t ninsns, long *failed_with)
{
	int ends[2], status;
	pid_t child;

	EXPECT(pipe(ends) == 0);
	child = fork();
	if (child == 0) {
		const struct sock_fprog program = { (unsigned short)ninsns, (struct sock_filter *)code };
		long answer;

		if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
			_exit(2);
		answer = syscall(SYS_getpid, 1, 2, 3, 4, 5, 6) < 0 ? errno : 0;
		_exit(write(ends[1], &answer, sizeof answer) != sizeof answer);
	}
	EXPECT(waitpid(child, &status, 0) == child);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		EXPECT(read(ends[0], failed_with, sizeof *failed_with) == sizeof *failed_with);
	close(ends[0]);
	close(ends[1]);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static bool reads_what_differs(const struct sock_filter *code, size_t ninsns)
{
	for (size_t i = 0; i < ninsns; i++)
		if (code[i].code == (BPF_LD | BPF_W | BPF_ABS) && code[i].k / 8 == OFFSET(instruction_pointer) / 8)
			return true;
	return false;
}

static void the_kernel_agrees(void)
{
	const struct seccomp_data call = {
		.nr = SYS_getpid, .arch = AUDIT_ARCH_X86_64, .args = { 1, 2, 3, 4, 5, 6 },
	};
	unsigned compared = 0, different = 0;

	for (uint32_t seed = 0; seed < NPROGRAMS; seed++) {
		struct sock_filter code[MAX_INSNS + BPF_MEMWORDS];
		size_t ninsns = random_program(seed, code);
		uint32_t ours = run(code, ninsns, &call);
		long theirs = -1;

		/* where our code stands differs; 0, from a division by zero, kills */
		if (reads_what_differs(code, ninsns) || asked_of_kernel(code, ninsns, &theirs) != 0)
			continue;
		compared++;
		different += (ours & SECCOMP_RET_ACTION_FULL) != SECCOMP_RET_ERRNO ||
		             (long)(ours & SECCOMP_RET_DATA) != theirs;
	}
	EXPECT(different == 0);
	EXPECT(compared > NPROGRAMS / 4); /* else this proves little */
}

int main(void)
{
	programs_are_run();
	the_strictest_of_all_filters_decides();
	the_kernel_agrees();
	return 0;
}
