/* The one vocabulary of failure: every function here returns enum sk_status and fills struct sk_error. */
#ifndef SK_STATUS_H
#define SK_STATUS_H

#include <stdint.h>

enum sk_status {
	SK_OK = 0,
	SK_ERR_OS,           /* a system call of our own failed: os_errno */
	SK_ERR_NO_PROCESS,   /* the target is gone, or never was */
	SK_ERR_PERMISSION,   /* the kernel refused ptrace or memory access */
	SK_ERR_TRACED,       /* another tracer holds the target */
	SK_ERR_TIMEOUT,      /* a bounded wait ran out */
	SK_ERR_NO_GADGET,    /* the target maps no code we can borrow */
	SK_ERR_UNSUPPORTED,  /* a target we must not touch (shadow stack, 32-bit, ...) */
	SK_ERR_WRONG_THREAD, /* ptrace belongs to the thread that attached */
	SK_ERR_BUSY,         /* a call is still in flight */
	SK_ERR_LOST,         /* our thread in the target has vanished */
	SK_ERR_FAULT,        /* address: the first byte that could not be reached */
	SK_ERR_INVALID,      /* a bad argument */
	SK_ERR_SANDBOX,      /* the target's seccomp filter forbids a call that we need, or cannot be read */
	SK_STATUS_COUNT
};

struct sk_error {
	uint32_t status;   /* enum sk_status */
	int32_t os_errno;  /* 0 where no system call failed */
	uint64_t address;  /* the address at fault, 0 where there is none */
	char message[160]; /* what was being done, for people; never matched on */
};

/* Fill err (which may be NULL) and return status. */
enum sk_status sk_fail(struct sk_error *err, enum sk_status status, int os_errno, uint64_t address,
                       const char *format, ...) __attribute__((format(printf, 5, 6)));

/* The usual translation of errno: ESRCH is SK_ERR_NO_PROCESS, EPERM and EACCES are SK_ERR_PERMISSION. */
enum sk_status sk_fail_errno(struct sk_error *err, int os_errno, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The enumerator's name, for example "SK_ERR_TIMEOUT"; "?" for a number that is none. */
const char *sk_status_name(uint32_t status);

#endif
