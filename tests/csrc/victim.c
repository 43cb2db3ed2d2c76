/*
 * A target to attach to. Its main thread does one thing over and over and counts what should never happen
 * (a changed register, a changed signal mask, a system call that was not restarted); another thread answers
 * each line on stdin with "rounds surprises". victim MODE [CALL [REQUEST]]: from then on a seccomp filter kills the
 * process for system call CALL (with a second argument of REQUEST), in the main thread only if CALL is negative.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static _Atomic unsigned long rounds, surprises;
static _Atomic int ready;

/* Registers of every kind hold known values around a stretch of work; the tracer may strike anywhere in it. */
static void spin(void)
{
	uint64_t r12_after, xmm_after[2], xmm_before[2] = { 0x0123456789abcdefu, 0xfedcba9876543210u };
	uint64_t sum_after;

	__asm__ volatile("movdqu %3, %%xmm7\n\t"
	                 "mov $0x5eed5eed5eed5eed, %%r12\n\t"
	                 "xor %%rax, %%rax\n\t"
	                 "mov $2000000, %%rcx\n"
	                 "1:\tadd %%rcx, %%rax\n\t"
	                 "mov %%rax, -64(%%rsp)\n\t" /* the red zone is ours too */
	                 "mov -64(%%rsp), %%rax\n\t"
	                 "dec %%rcx\n\t"
	                 "jnz 1b\n\t"
	                 "mov %%rax, %0\n\t"
	                 "mov %%r12, %1\n\t"
	                 "movdqu %%xmm7, %2\n\t"
	                 : "=&r"(sum_after), "=&r"(r12_after), "=m"(xmm_after)
	                 : "m"(xmm_before)
	                 : "rax", "rcx", "r12", "xmm7", "memory", "cc");
	if (sum_after != 2000001000000u || r12_after != 0x5eed5eed5eed5eedu ||
	    memcmp(xmm_before, xmm_after, sizeof xmm_before))
		surprises++;
}

static void poll_once(void)
{
	struct timespec timeout = { 0, 3000000 };

	/* restarted by the kernel, or ended as by a signal: nothing else may come back */
	if (ppoll(NULL, 0, &timeout, NULL) != 0 && errno != EINTR)
		surprises++;
}

static void sleep_once(void)
{
	struct timespec timeout = { 0, 3000000 };

	if (clock_nanosleep(CLOCK_MONOTONIC, 0, &timeout, NULL) != 0 && errno != EINTR && errno != 0)
		surprises++;
}

static void *serve(void *argument)
{
	char line[16];

	(void)argument;
	while (!ready)
		usleep(100);
	while (fgets(line, sizeof line, stdin)) {
		printf("%lu %lu\n", (unsigned long)rounds, (unsigned long)surprises);
		fflush(stdout);
	}
	_exit(0);
}

static int sandbox(long number, const char *request)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)labs(number), 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, request ? (uint32_t)strtoul(request, NULL, 0) : 0, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	const struct sock_fprog program = { sizeof code / sizeof *code, code };

	if (!request)
		code[2] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_IMM, 0); /* any argument will do */
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	       syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, number < 0 ? 0 : SECCOMP_FILTER_FLAG_TSYNC, &program);
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "poll";
	sigset_t own, now;
	pthread_t thread;

	sigemptyset(&own);
	sigaddset(&own, SIGUSR2);
	pthread_sigmask(SIG_SETMASK, &own, NULL);
	if (pthread_create(&thread, NULL, serve, NULL))
		return 1;
	if (argc > 2 && sandbox(strtol(argv[2], NULL, 0), argc > 3 ? argv[3] : NULL))
		return 1;
	ready = 1;
	for (;; rounds++) {
		if (!strcmp(mode, "spin"))
			spin();
		else if (!strcmp(mode, "sleep"))
			sleep_once();
		else
			poll_once();
		pthread_sigmask(SIG_SETMASK, NULL, &now);
		if (!sigismember(&now, SIGUSR2) || sigismember(&now, SIGINT))
			surprises++;
	}
}
