#define _GNU_SOURCE
#include "sk_xfer.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/uio.h>

/* The kernel caps one call at MAX_RW_COUNT (2 GiB less a page); stay below it. */
#define SK_XFER_MAX ((size_t)1 << 30)

#define PAGE_NBYTES 4096
#define PAGES_AT_ONCE 256 /* the kernel takes up to 1024 (IOV_MAX) */

static enum sk_status transfer(bool to_target, pid_t pid, uint64_t hva, char *buffer, size_t nbytes,
                               size_t *done, struct sk_error *err)
{
	*done = 0;
	while (*done < nbytes) {
		size_t want = nbytes - *done < SK_XFER_MAX ? nbytes - *done : SK_XFER_MAX;
		struct iovec ours = { buffer + *done, want };
		struct iovec theirs = { (void *)(uintptr_t)(hva + *done), want };
		ssize_t copied = to_target ? process_vm_writev(pid, &ours, 1, &theirs, 1, 0)
		                           : process_vm_readv(pid, &ours, 1, &theirs, 1, 0);

		if (copied > 0) {
			*done += (size_t)copied;
			continue;
		}
		if (copied < 0 && errno == EINTR)
			continue;
		if (copied < 0 && errno != EFAULT)
			return sk_fail_errno(err, errno, "%s memory of process %d", to_target ? "write" : "read",
			                     (int)pid);
		return sk_fail(err, SK_ERR_FAULT, EFAULT, hva + *done, "process %d has no %s byte there",
		               (int)pid, to_target ? "writable" : "readable");
	}
	return SK_OK;
}

enum sk_status sk_read(pid_t pid, uint64_t hva, void *buffer, size_t nbytes, size_t *done,
                       struct sk_error *err)
{
	return transfer(false, pid, hva, buffer, nbytes, done, err);
}

enum sk_status sk_write(pid_t pid, uint64_t hva, const void *buffer, size_t nbytes, size_t *done,
                        struct sk_error *err)
{
	/* transfer() only reads the buffer in this direction */
	return transfer(true, pid, hva, (char *)(uintptr_t)buffer, nbytes, done, err);
}

enum sk_status sk_read_pages(pid_t pid, const uint64_t *hvas, size_t npages, void *out, uint8_t *readable,
                             struct sk_error *err)
{
	size_t at = 0;

	memset(readable, 0, npages);
	while (at < npages) {
		size_t n = npages - at < PAGES_AT_ONCE ? npages - at : PAGES_AT_ONCE;
		struct iovec ours = { (char *)out + at * PAGE_NBYTES, n * PAGE_NBYTES };
		struct iovec theirs[PAGES_AT_ONCE];
		ssize_t copied;

		for (size_t i = 0; i < n; i++)
			theirs[i] = (struct iovec){ (void *)(uintptr_t)hvas[at + i], PAGE_NBYTES };
		copied = process_vm_readv(pid, &ours, 1, theirs, n, 0);
		if (copied < 0 && errno == EINTR)
			continue;
		if (copied < 0 && errno != EFAULT)
			return sk_fail_errno(err, errno, "read memory of process %d", (int)pid);
		/* it stops at the first page that it cannot copy: step over that */
		n = copied > 0 ? (size_t)copied / PAGE_NBYTES : 0;
		memset(readable + at, 1, n);
		at += n;
		if (copied < (ssize_t)ours.iov_len)
			at++;
	}
	return SK_OK;
}
