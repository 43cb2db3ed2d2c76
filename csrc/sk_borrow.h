/*
 * Borrowing a thread of the target for a few system calls, safely.
 *
 * Before anything is changed, a signal-return frame with the thread's own registers is written below its
 * stack's red zone, and while the thread is borrowed its stack pointer stands on a chain of borrowed code
 * that ends in rt_sigreturn(2) from that frame. So if we die at any point, the thread finishes the system
 * call it is in and then puts itself back where it was.
 */
#ifndef SK_BORROW_H
#define SK_BORROW_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/user.h>

#include "sk_gadget.h"
#include "sk_status.h"

struct sk_borrowed {
	pid_t pid;
	pid_t tid;
	uint64_t deadline_ns;
	uint64_t syscall_ret;
	uint64_t chain_sp;             /* stack pointer while borrowed */
	uint64_t sigmask;              /* the thread's own */
	bool signals_blocked;
	struct user_regs_struct regs;  /* the thread's own */
};

/* Set registers for system call number with arguments on a stack that holds a chain to return into. */
void sk_prepare_call(struct user_regs_struct *regs, uint64_t syscall_ret, uint64_t sp, long number,
                     const uint64_t args[6]);

/*
 * Borrow tid, which is seized. On success it is in a ptrace-stop; on failure it has been let go, unless it
 * did not even stop (SK_ERR_TIMEOUT): then it is let go when our process ends.
 */
enum sk_status sk_borrow(pid_t pid, pid_t tid, const struct sk_gadgets *gadgets, uint64_t deadline_ns,
                         struct sk_borrowed *out, struct sk_error *err);

/*
 * Run one system call on it, all signals blocked; *result is the kernel's raw answer. For clone(2), *cloned is
 * the new thread, seized, in our pid namespace (else NULL).
 */
enum sk_status sk_borrowed_call(struct sk_borrowed *borrowed, long number, const uint64_t args[6],
                                int64_t *result, pid_t *cloned, struct sk_error *err);

/* Give it back: registers and signal mask as they were, any interrupted system call restarted. Detaches. */
enum sk_status sk_borrow_return(struct sk_borrowed *borrowed, struct sk_error *err);

#endif
