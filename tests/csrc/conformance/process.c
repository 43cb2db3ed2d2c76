/* Other processes that a row needs: forked, sharing memory, with less privilege. */
#define _GNU_SOURCE
#include "conformance.h"

#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define STACK_PAGES 64

static int wait_for(pid_t child)
{
	int status;

	if (child < 0 || waitpid(child, &status, __WALL) != child || !WIFEXITED(status))
		FAIL("the helper process came to no good end");
	return WEXITSTATUS(status);
}

int conf_in_fork(int (*function)(void *), void *argument)
{
	pid_t child = fork();

	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(function(argument));
	}
	return wait_for(child);
}

int conf_in_clone_vm(int (*function)(void *), void *argument)
{
	uint8_t *stack = conf_pages(STACK_PAGES);

	return wait_for(clone(function, stack + STACK_PAGES * PAGE, CLONE_VM | SIGCHLD, argument));
}

void conf_drop_ipc_lock(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];

	if (syscall(SYS_capget, &header, data))
		FAIL("could not begin: capget gives %s", conf_errno(errno));
	data[0].effective &= ~(1U << CAP_IPC_LOCK);
	data[0].permitted &= ~(1U << CAP_IPC_LOCK);
	if (syscall(SYS_capset, &header, data))
		FAIL("could not begin: capset gives %s", conf_errno(errno));
}
