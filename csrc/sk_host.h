/* Small questions to this machine that Python has no call for. */
#ifndef SK_HOST_H
#define SK_HOST_H

#include <stdint.h>
#include <sys/types.h>

#include "sk_status.h"

/*
 * kcmp(2) KCMP_FILE: *same is 1 when descriptor fd1 of pid1 and fd2 of pid2 are the same open file, else 0.
 */
enum sk_status sk_same_file(pid_t pid1, int fd1, pid_t pid2, int fd2, int *same, struct sk_error *err);

/* kcmp(2) KCMP_VM: *same is 1 when the two tasks share one address space. */
enum sk_status sk_same_memory(pid_t pid1, pid_t pid2, int *same, struct sk_error *err);

/* Does thread tid belong to process pid? (0 as well if there is no such thread) */
int sk_is_thread_of(pid_t pid, pid_t tid);

/* CPUID of the processor we run on: out = eax, ebx, ecx, edx; all zero for a leaf past the last one. */
void sk_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4]);

/* ioctl(2) on this thread with a raw argument: the kernel's result, or -errno. */
int64_t sk_ioctl(int fd, uint64_t request, uint64_t argument);

#endif
