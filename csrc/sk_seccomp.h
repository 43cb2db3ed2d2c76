/*
 * What a process's seccomp filters would do with a system call, told before the call is made: a filter of a VMM
 * usually kills the whole process for a call that it does not know.
 */
#ifndef SK_SECCOMP_H
#define SK_SECCOMP_H

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "sk_status.h"

struct sk_seccomp_filter {
	struct sock_filter *code;
	size_t ninsns;
};

struct sk_seccomp {
	struct sk_seccomp_filter *filters;
	size_t nfilters;
	bool unreadable; /* there are some, and the kernel does not show them */
};

/*
 * The filters of a thread that we hold in a ptrace-stop. They are shown to CAP_SYS_ADMIN, if we run under no filter
 * ourselves and the kernel has CONFIG_CHECKPOINT_RESTORE; else out->unreadable. SK_ERR_SANDBOX under strict mode.
 */
enum sk_status sk_seccomp_read(pid_t pid, pid_t tid, struct sk_seccomp *out, struct sk_error *err);

void sk_seccomp_forget(struct sk_seccomp *seccomp);

/* The action (SECCOMP_RET_..., without its data) that all of them together take. ALLOW without a filter. */
uint32_t sk_seccomp_action(const struct sk_seccomp *seccomp, const struct seccomp_data *call);

/* What one program returns for a call, as the kernel runs it (kernel/seccomp.c, net/core/filter.c, v6.18). */
uint32_t sk_seccomp_run(const struct sk_seccomp_filter *filter, const struct seccomp_data *call);

/*
 * SK_ERR_SANDBOX if a system call, made by the code at syscall_hva, would not be carried out (must_run), or would
 * harm the process (else: it may be refused with an error, or be answered by a supervisor).
 */
enum sk_status sk_seccomp_check(const struct sk_seccomp *seccomp, uint64_t syscall_hva, long number,
                                const uint64_t args[6], bool must_run, struct sk_error *err);

#endif
