/*
 * A target to attach to. Its main thread does one thing over and over and counts what should never happen
 * (a changed register, a changed signal mask, a system call that was not restarted); another thread answers
 * each line on stdin with "rounds surprises".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static _Atomic unsigned long rounds, surprises;

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
	while (fgets(line, sizeof line, stdin)) {
		printf("%lu %lu\n", (unsigned long)rounds, (unsigned long)surprises);
		fflush(stdout);
	}
	_exit(0);
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
