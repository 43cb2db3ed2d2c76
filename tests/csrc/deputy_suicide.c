/*
 * deputy_suicide PID N: attach a deputy, use it, hold the target, leave; but die by SIGKILL at the Nth
 * checkpoint (before and after every ptrace request). Prints how many checkpoints there are if N is past them.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static long checkpoint, last_wish;

static void pass_checkpoint(void)
{
	if (++checkpoint == last_wish)
		kill(getpid(), SIGKILL);
}

#define SK_TRACE_CHECKPOINT() pass_checkpoint()
#include "sk_trace.c"

#include "sk_deputy.h"

#define FIONREAD_REQUEST 0x541b

int main(int argc, char **argv)
{
	struct sk_deputy *deputy;
	struct sk_error error = { 0 };
	int64_t result;
	size_t held;
	int call;

	if (argc != 3)
		return 2;
	last_wish = strtol(argv[2], NULL, 10);
	if (sk_deputy_open((pid_t)strtol(argv[1], NULL, 10), 65536, 2000, false, &deputy, &error))
		goto failed;
	for (call = 0; call < 2; call++) {
		struct sk_deputy_info info;

		sk_deputy_info(deputy, &info);
		if (sk_deputy_start(deputy, 0, FIONREAD_REQUEST, info.args_hva, &error) ||
		    sk_deputy_wait(deputy, 2000, &result, &error))
			goto failed;
	}
	if (sk_deputy_hold(deputy, NULL, 0, 2000, &held, &error))
		goto failed;
	sk_deputy_release(deputy);
	sk_deputy_close(deputy, 2000);
	printf("%ld\n", checkpoint);
	return 0;
failed:
	fprintf(stderr, "%s: %s (errno %d)\n", sk_status_name(error.status), error.message, error.os_errno);
	return 1;
}
