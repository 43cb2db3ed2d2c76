/*
 * The deputy: one thread that we add to another process, held in ptrace-stop, on which we run system
 * calls. The process's own threads are borrowed once, briefly, to add it. x86-64 Linux only.
 *
 * Everything is built so that our own death at any instruction is harmless; sk_deputy.c says how.
 * All functions but sk_deputy_open must be called on the thread that opened (ptrace belongs to it).
 */
#ifndef SK_DEPUTY_H
#define SK_DEPUTY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "sk_status.h"

struct sk_deputy;

struct sk_deputy_info {
	int32_t pid;             /* the process */
	int32_t tid;             /* of the deputy */
	int32_t borrowed_tid;    /* the thread that was borrowed to add it */
	uint32_t leftovers;      /* areas of dead predecessors that were found and unmapped */
	uint64_t args_hva;       /* room for argument structs, in the target */
	uint64_t args_nbytes;
	uint64_t scratch_hva;    /* page-aligned room for data, in the target */
	uint64_t scratch_nbytes;
	uint64_t borrowed_ns;    /* how long the borrowed thread stood still */
	uint64_t attach_ns;      /* the whole of sk_deputy_open */
	uint64_t calls;          /* system calls run on the deputy so far */
	uint32_t filters;        /* seccomp filters of the target that are asked before each call */
	uint32_t trusted;        /* 1: it has filters that cannot be read, and its user said that they are fine */
};

/*
 * Add a deputy to process pid with scratch_nbytes of scratch (rounded up to pages). Waits are bounded by
 * timeout_ms each. On failure the target is as it was.
 *
 * The target's seccomp filters are run here first: SK_ERR_SANDBOX for a call that they would not let pass, before
 * it is made. Filters that the kernel does not show us are SK_ERR_SANDBOX too, unless trust_sandbox is set.
 */
enum sk_status sk_deputy_open(pid_t pid, size_t scratch_nbytes, uint32_t timeout_ms, bool trust_sandbox,
                              struct sk_deputy **out, struct sk_error *err);

/*
 * What sk_deputy_open would refuse, as far as it shows without stopping or changing anything: rights, the kind
 * of process, another tracer, missing code. Only a 32-bit thread shows no earlier than when it is stopped.
 */
enum sk_status sk_deputy_check(pid_t pid, struct sk_error *err);

void sk_deputy_info(const struct sk_deputy *deputy, struct sk_deputy_info *out);

/*
 * Start ioctl(fd, request, argument) on the deputy, and wait for its end. sk_deputy_wait returns
 * SK_ERR_TIMEOUT while the call is still in flight (wait again, or close); on SK_OK *result is the
 * kernel's raw answer: >= 0, or -errno. SK_ERR_SANDBOX: not started, for the target's filter would harm it.
 */
enum sk_status sk_deputy_start(struct sk_deputy *deputy, int fd, uint64_t request, uint64_t argument,
                               struct sk_error *err);
enum sk_status sk_deputy_wait(struct sk_deputy *deputy, uint32_t timeout_ms, int64_t *result,
                              struct sk_error *err);

/*
 * Hold threads of the target in ptrace-stop: the given ones, or with ntids 0 every thread but the deputy.
 * New threads are looked for until a pass finds none. Kernel-driven tasks never stop and are skipped.
 * On failure whatever was held by this call is released. *held counts the threads now held.
 */
enum sk_status sk_deputy_hold(struct sk_deputy *deputy, const int32_t *tids, size_t ntids,
                              uint32_t timeout_ms, size_t *held, struct sk_error *err);

/* Let all held threads go. Safe to call when none is held. */
void sk_deputy_release(struct sk_deputy *deputy);

/*
 * Unmap what was mapped, end the deputy, release every thread, free the struct. Never fails; if a call is
 * still in flight after timeout_ms the deputy is left to finish it and to clean up and leave by itself.
 */
void sk_deputy_close(struct sk_deputy *deputy, uint32_t timeout_ms);

#endif
