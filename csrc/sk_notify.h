/*
 * Seccomp user notification: the boundary at which the shim plays the SEV host.
 *
 * The filter passes everything but: openat/open/openat2 (not O_CREAT or O_DIRECTORY where visible), and
 * ioctls by their full 32-bit request number. See seccomp_unotify(2).
 */
#ifndef SK_NOTIFY_H
#define SK_NOTIFY_H

#include <stddef.h>
#include <stdint.h>

#include "sk_status.h"

struct sk_notification {
	uint64_t id;
	uint32_t tid;      /* the calling thread, in our pid namespace */
	int32_t number;    /* of the system call */
	uint64_t args[6];
};

/*
 * What else to trap. requests: ioctl request numbers; 0x0000TT00 means "every ioctl of type 0xTT" (0xAE is KVM's).
 * capabilities: KVM_CHECK_EXTENSION of these only (compared by their lower 32 bits).
 */
struct sk_filter {
	const uint32_t *requests;
	size_t nrequests;
	const uint32_t *capabilities;
	size_t ncapabilities;
	int readlink; /* readlink and readlinkat */
	int stat;     /* stat, lstat, access and their kin, of a path that counts from the root or working directory */
};

/*
 * Set no_new_privs and install the filter on the calling thread; *listener is a new close-on-exec descriptor.
 * EBUSY (SK_ERR_BUSY): a filter with a listener is installed already: shims do not nest.
 */
enum sk_status sk_notify_install(const struct sk_filter *filter, int *listener, struct sk_error *err);

/* Next notification; SK_ERR_NO_PROCESS when the caller vanished meanwhile (ask again). */
enum sk_status sk_notify_receive(int listener, struct sk_notification *out, struct sk_error *err);

/*
 * As sk_notify_receive, for the busy case: an open or stat of a path that is not one of paths (compared as written),
 * and a readlink that is not of a descriptor's link in /proc, is continued right here; then out->id is 0.
 */
enum sk_status sk_notify_receive_ours(int listener, const char *const *paths, size_t npaths,
                                      struct sk_notification *out, struct sk_error *err);

/* *valid is 0 when the call has been given up (signal, death): what was read of its memory is worthless. */
enum sk_status sk_notify_valid(int listener, uint64_t id, int *valid, struct sk_error *err);

/* Answer: the call returns value, or fails with os_errno (positive) if that is not 0. */
enum sk_status sk_notify_answer(int listener, uint64_t id, int64_t value, int os_errno, struct sk_error *err);

/* Let the kernel carry out the call itself. */
enum sk_status sk_notify_continue(int listener, uint64_t id, struct sk_error *err);

/* Give the caller a duplicate of fd as the call's result (close-on-exec if cloexec). */
enum sk_status sk_notify_answer_fd(int listener, uint64_t id, int fd, int cloexec, struct sk_error *err);

/* A duplicate, in our process, of descriptor fd of process pid (pidfd_getfd(2); close-on-exec). */
enum sk_status sk_notify_copy_fd(int32_t pid, int fd, int *copy, struct sk_error *err);

/*
 * Map nbytes of fd, shared, for reading and writing. Unlike Python's mmap this keeps no duplicate of fd, which
 * anybody who searches /proc for the vCPUs of this host would find.
 */
enum sk_status sk_notify_map(int fd, size_t nbytes, void **out, struct sk_error *err);
void sk_notify_unmap(void *mapped, size_t nbytes);

#endif
