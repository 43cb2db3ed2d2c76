/*
 * Borrowed code: short instruction sequences that the target has mapped already. Nothing executable is
 * ever added (SELinux may deny it, and a patch would be a breakpoint by another name).
 */
#ifndef SK_GADGET_H
#define SK_GADGET_H

#include <stdint.h>
#include <sys/types.h>

#include "sk_status.h"

struct sk_gadgets {
	uint64_t syscall_ret; /* syscall; ret */
	uint64_t pop_rax;     /* pop %rax; ret */
	uint64_t pop_rdi;     /* pop %rdi; ret */
	uint64_t pop_rsi;     /* pop %rsi; ret */
	uint64_t exit;        /* mov $60, %eax; syscall -- needs no stack; 0 where there is none */
};

/*
 * Find them in the executable file mappings of pid (never vdso or vsyscall), the C library first.
 * SK_ERR_NO_GADGET if one that cannot be missed is missing.
 */
enum sk_status sk_gadgets_find(pid_t pid, struct sk_gadgets *out, struct sk_error *err);

#endif
