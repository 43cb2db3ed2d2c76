/* Copying another process's memory, with exact partial counts. */
#ifndef SK_XFER_H
#define SK_XFER_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "sk_status.h"

/*
 * Copy nbytes between hva in the address space of pid and our buffer. *done is always set: it counts the
 * bytes copied before the first one that could not be (to page granularity). All copied is SK_OK; less is
 * SK_ERR_FAULT with the address, and a dead target SK_ERR_NO_PROCESS.
 * The write respects the target's page protection.
 */
enum sk_status sk_read(pid_t pid, uint64_t hva, void *buffer, size_t nbytes, size_t *done,
                       struct sk_error *err);
enum sk_status sk_write(pid_t pid, uint64_t hva, const void *buffer, size_t nbytes, size_t *done,
                        struct sk_error *err);

#endif
