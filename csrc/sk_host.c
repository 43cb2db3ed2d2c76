#define _GNU_SOURCE
#include "sk_host.h"

#include <cpuid.h>
#include <errno.h>
#include <linux/kcmp.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static enum sk_status compare(pid_t pid1, pid_t pid2, int type, unsigned long index1, unsigned long index2,
                              int *same, struct sk_error *err)
{
	long order = syscall(SYS_kcmp, pid1, pid2, type, index1, index2);

	*same = order == 0;
	if (order < 0)
		return sk_fail_errno(err, errno, "kcmp(%d, %d)", (int)pid1, (int)pid2);
	return SK_OK;
}

enum sk_status sk_same_file(pid_t pid1, int fd1, pid_t pid2, int fd2, int *same, struct sk_error *err)
{
	return compare(pid1, pid2, KCMP_FILE, (unsigned long)fd1, (unsigned long)fd2, same, err);
}

enum sk_status sk_same_memory(pid_t pid1, pid_t pid2, int *same, struct sk_error *err)
{
	return compare(pid1, pid2, KCMP_VM, 0, 0, same, err);
}

int sk_is_thread_of(pid_t pid, pid_t tid)
{
	/* signal 0 goes to nobody; EPERM: it is there, but not ours to signal */
	return syscall(SYS_tgkill, pid, tid, 0) == 0 || errno == EPERM;
}

void sk_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
	memset(out, 0, 4 * sizeof out[0]);
	__get_cpuid_count(leaf, subleaf, &out[0], &out[1], &out[2], &out[3]);
}

int64_t sk_ioctl(int fd, uint64_t request, uint64_t argument)
{
	long result = syscall(SYS_ioctl, fd, request, argument);

	return result < 0 ? -errno : result;
}
