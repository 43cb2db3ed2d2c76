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

/*
 * Copy npages pages of 4096 bytes, at any addresses, into out, in their order; many at a time. *readable has a byte
 * for each: 1, or 0 if it could not be copied whole (what out has of it then means nothing). Fails only where
 * nothing of the process can be read.
 */
enum sk_status sk_read_pages(pid_t pid, const uint64_t *hvas, size_t npages, void *out, uint8_t *readable,
                             struct sk_error *err);

#endif
