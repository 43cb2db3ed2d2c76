#define _GNU_SOURCE
#include "sk_notify.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define KVM_WILDCARD 0x0000ae00u
#define X32_BIT 0x40000000u
#define KVM_CHECK_EXTENSION 0xae03u
#define MAX_REQUESTS 64 /* the longest jump, over all of judge_ioctl, must fit a byte */
#define MAX_CAPABILITIES 16
#define MAX_PATH 64
#define ARG(n) ((uint32_t)(offsetof(struct seccomp_data, args) + (n) * sizeof(uint64_t)))

/* Not in the headers of older distributions. */
#ifndef SECCOMP_ADDFD_FLAG_SEND
#define SECCOMP_ADDFD_FLAG_SEND (1UL << 1)
#endif
#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#ifndef SYS_faccessat2
#define SYS_faccessat2 439
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif

struct program {
	struct sock_filter code[128 + 2 * MAX_REQUESTS + 2 * MAX_CAPABILITIES];
	unsigned short length;
};

static void emit(struct program *p, uint16_t code, uint32_t k, uint8_t jt, uint8_t jf)
{
	p->code[p->length++] = (struct sock_filter){ code, jt, jf, k };
}

static void load(struct program *p, uint32_t offset)
{
	emit(p, BPF_LD | BPF_W | BPF_ABS, offset, 0, 0);
}

static void give(struct program *p, uint32_t verdict)
{
	emit(p, BPF_RET | BPF_K, verdict, 0, 0);
}

static void give_if_equal(struct program *p, uint32_t value, uint32_t verdict)
{
	emit(p, BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1);
	give(p, verdict);
}

/* Opens that may create a file or must be a directory are none of ours. */
static void judge_open(struct program *p, uint32_t number, unsigned flags_index)
{
	emit(p, BPF_JMP | BPF_JEQ | BPF_K, number, 0, 4);
	load(p, ARG(flags_index));
	emit(p, BPF_JMP | BPF_JSET | BPF_K, O_CREAT | O_DIRECTORY, 0, 1);
	give(p, SECCOMP_RET_ALLOW);
	give(p, SECCOMP_RET_USER_NOTIF);
}

/* With the path relative to a directory's descriptor, or none (fstat by another name), it is none of ours. */
static void judge_stat(struct program *p, uint32_t number, unsigned flags_index)
{
	emit(p, BPF_JMP | BPF_JEQ | BPF_K, number, 0, 7);
	load(p, ARG(0));
	emit(p, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)AT_FDCWD, 1, 0);
	give(p, SECCOMP_RET_ALLOW);
	load(p, ARG(flags_index));
	emit(p, BPF_JMP | BPF_JSET | BPF_K, AT_EMPTY_PATH, 0, 1);
	give(p, SECCOMP_RET_ALLOW);
	give(p, SECCOMP_RET_USER_NOTIF);
}

/* Leaves the accumulator as it was for requests other than KVM_CHECK_EXTENSION. */
static void judge_capability(struct program *p, const struct sk_filter *filter)
{
	emit(p, BPF_JMP | BPF_JEQ | BPF_K, KVM_CHECK_EXTENSION, 0, (uint8_t)(2 + 2 * filter->ncapabilities));
	load(p, ARG(2));
	for (size_t i = 0; i < filter->ncapabilities; i++)
		give_if_equal(p, filter->capabilities[i], SECCOMP_RET_USER_NOTIF);
	give(p, SECCOMP_RET_ALLOW);
}

static bool is_wildcard(uint32_t request)
{
	return request && !(request & ~0xff00u);
}

/* Request numbers are 32 bits to the kernel, whatever the upper half of the register holds. */
static void judge_ioctl(struct program *p, const struct sk_filter *filter)
{
	bool all_of_kvm = false, masked = false;
	unsigned short jump = p->length;

	emit(p, BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 0);
	load(p, ARG(1));
	for (size_t i = 0; i < filter->nrequests; i++)
		all_of_kvm |= filter->requests[i] == KVM_WILDCARD;
	if (!all_of_kvm)
		judge_capability(p, filter);
	for (size_t i = 0; i < filter->nrequests; i++)
		if (!is_wildcard(filter->requests[i]))
			give_if_equal(p, filter->requests[i], SECCOMP_RET_USER_NOTIF);
	for (size_t i = 0; i < filter->nrequests; i++) {
		if (!is_wildcard(filter->requests[i]))
			continue;
		if (!masked)
			emit(p, BPF_ALU | BPF_AND | BPF_K, 0xff00, 0, 0);
		masked = true;
		give_if_equal(p, filter->requests[i], SECCOMP_RET_USER_NOTIF);
	}
	give(p, SECCOMP_RET_ALLOW);
	p->code[jump].jf = (uint8_t)(p->length - jump - 1);
}

static void build(struct program *p, const struct sk_filter *filter)
{
	p->length = 0;
	load(p, offsetof(struct seccomp_data, arch));
	emit(p, BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0);
	give(p, SECCOMP_RET_ALLOW);
	load(p, offsetof(struct seccomp_data, nr));
	emit(p, BPF_JMP | BPF_JGE | BPF_K, X32_BIT, 0, 1);
	give(p, SECCOMP_RET_ALLOW);

	/* A failed comparison leaves the number in the accumulator. */
	judge_ioctl(p, filter);
	judge_open(p, SYS_openat, 2);
	judge_open(p, SYS_open, 1);
	give_if_equal(p, SYS_openat2, SECCOMP_RET_USER_NOTIF);
	if (filter->readlink) {
		give_if_equal(p, SYS_readlink, SECCOMP_RET_USER_NOTIF);
		give_if_equal(p, SYS_readlinkat, SECCOMP_RET_USER_NOTIF);
	}
	if (filter->stat) {
		judge_stat(p, SYS_newfstatat, 3);
		judge_stat(p, SYS_statx, 2);
		judge_stat(p, SYS_faccessat2, 3);
		give_if_equal(p, SYS_stat, SECCOMP_RET_USER_NOTIF);
		give_if_equal(p, SYS_lstat, SECCOMP_RET_USER_NOTIF);
		give_if_equal(p, SYS_access, SECCOMP_RET_USER_NOTIF);
		give_if_equal(p, SYS_faccessat, SECCOMP_RET_USER_NOTIF);
		/* ls -l looks for access control lists */
		give_if_equal(p, SYS_getxattr, SECCOMP_RET_USER_NOTIF);
		give_if_equal(p, SYS_lgetxattr, SECCOMP_RET_USER_NOTIF);
		give_if_equal(p, SYS_listxattr, SECCOMP_RET_USER_NOTIF);
		give_if_equal(p, SYS_llistxattr, SECCOMP_RET_USER_NOTIF);
	}
	give(p, SECCOMP_RET_ALLOW);
}

enum sk_status sk_notify_install(const struct sk_filter *filter, int *listener, struct sk_error *err)
{
	struct program program;
	struct sock_fprog installed;

	*listener = -1;
	if (filter->nrequests > MAX_REQUESTS || filter->ncapabilities > MAX_CAPABILITIES)
		return sk_fail(err, SK_ERR_INVALID, 0, 0, "more than %d requests or %d capabilities to trap",
		               MAX_REQUESTS, MAX_CAPABILITIES);
	build(&program, filter);
	installed = (struct sock_fprog){ program.length, program.code };
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return sk_fail_errno(err, errno, "prctl(PR_SET_NO_NEW_PRIVS)");
	*listener = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER,
	                         &installed);
	if (*listener < 0 && errno == EBUSY)
		return sk_fail(err, SK_ERR_BUSY, EBUSY, 0, "a seccomp filter with a listener is installed already");
	if (*listener < 0)
		return sk_fail_errno(err, errno, "seccomp(SECCOMP_FILTER_FLAG_NEW_LISTENER)");
	return SK_OK;
}

/* ENOENT means that the caller is no longer waiting. */
static enum sk_status fail_notify(struct sk_error *err, int os_errno, const char *what)
{
	if (os_errno == ENOENT)
		return sk_fail(err, SK_ERR_NO_PROCESS, ENOENT, 0, "%s: the caller has gone", what);
	return sk_fail_errno(err, os_errno, "%s", what);
}

enum sk_status sk_notify_receive(int listener, struct sk_notification *out, struct sk_error *err)
{
	/* The kernel copies a struct of its own size, which may grow; it wants zeros to start with. */
	union {
		struct seccomp_notif notif;
		char room[1024];
	} in;

	memset(out, 0, sizeof *out);
	do {
		memset(&in, 0, sizeof in);
		if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &in.notif) == 0) {
			out->id = in.notif.id;
			out->tid = in.notif.pid;
			out->number = in.notif.data.nr;
			for (int i = 0; i < 6; i++)
				out->args[i] = in.notif.data.args[i];
			return SK_OK;
		}
	} while (errno == EINTR);
	return fail_notify(err, errno, "SECCOMP_IOCTL_NOTIF_RECV");
}

enum sk_status sk_notify_valid(int listener, uint64_t id, int *valid, struct sk_error *err)
{
	*valid = ioctl(listener, SECCOMP_IOCTL_NOTIF_ID_VALID, &id) == 0;
	if (!*valid && errno != ENOENT)
		return sk_fail_errno(err, errno, "SECCOMP_IOCTL_NOTIF_ID_VALID");
	return SK_OK;
}

static enum sk_status respond(int listener, struct seccomp_notif_resp *response, struct sk_error *err)
{
	union {
		struct seccomp_notif_resp response;
		char room[1024];
	} out;

	memset(&out, 0, sizeof out);
	out.response = *response;
	while (ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &out.response) < 0)
		if (errno != EINTR)
			return fail_notify(err, errno, "SECCOMP_IOCTL_NOTIF_SEND");
	return SK_OK;
}

enum sk_status sk_notify_answer(int listener, uint64_t id, int64_t value, int os_errno, struct sk_error *err)
{
	struct seccomp_notif_resp response = { .id = id, .val = os_errno ? 0 : value, .error = -os_errno };

	return respond(listener, &response, err);
}

enum sk_status sk_notify_continue(int listener, uint64_t id, struct sk_error *err)
{
	struct seccomp_notif_resp response = { .id = id, .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE };

	return respond(listener, &response, err);
}

enum sk_status sk_notify_answer_fd(int listener, uint64_t id, int fd, int cloexec, struct sk_error *err)
{
	struct seccomp_notif_addfd add = {
		.id = id,
		.flags = SECCOMP_ADDFD_FLAG_SEND,
		.srcfd = (uint32_t)fd,
		.newfd_flags = cloexec ? O_CLOEXEC : 0,
	};
	int number = ioctl(listener, SECCOMP_IOCTL_NOTIF_ADDFD, &add);

	if (number >= 0)
		return SK_OK;
	if (errno == EINVAL) { /* before Linux 5.14: add it, then answer; a caller that goes in between keeps it */
		add.flags = 0;
		number = ioctl(listener, SECCOMP_IOCTL_NOTIF_ADDFD, &add);
		if (number >= 0)
			return sk_notify_answer(listener, id, number, 0, err);
	}
	return fail_notify(err, errno, "SECCOMP_IOCTL_NOTIF_ADDFD");
}

/* At most MAX_PATH - 1 characters of the path; empty if it cannot be read. */
static void peek_path(uint32_t tid, uint64_t hva, char path[MAX_PATH])
{
	struct iovec ours = { path, MAX_PATH - 1 };
	struct iovec theirs = { (void *)(uintptr_t)hva, MAX_PATH - 1 };
	ssize_t length = process_vm_readv((pid_t)tid, &ours, 1, &theirs, 1, 0);

	path[length > 0 ? length : 0] = '\0';
}

/* The index of the path among a call's arguments: some have the descriptor of a directory before it. */
static int path_index(int number)
{
	switch (number) {
	case SYS_openat:
	case SYS_openat2:
	case SYS_newfstatat:
	case SYS_statx:
	case SYS_faccessat:
	case SYS_faccessat2:
	case SYS_readlinkat:
		return 1;
	default:
		return 0;
	}
}

static bool concerns_us(const struct sk_notification *call, const char *const *paths, size_t npaths)
{
	char path[MAX_PATH];

	switch (call->number) {
	case SYS_ioctl:
		return true;
	case SYS_readlink:
	case SYS_readlinkat:
		/* a descriptor's link: /proc/.../fd/N, or N itself in an open /proc/.../fd */
		peek_path(call->tid, call->args[path_index(call->number)], path);
		if (path[0] == '/')
			return strncmp(path, "/proc/", 6) == 0 && strstr(path, "/fd/");
		return call->number == SYS_readlinkat && path[0] && strspn(path, "0123456789") == strlen(path);
	default:
		peek_path(call->tid, call->args[path_index(call->number)], path);
		for (size_t i = 0; i < npaths; i++)
			if (strcmp(path, paths[i]) == 0)
				return true;
		return false;
	}
}

enum sk_status sk_notify_receive_ours(int listener, const char *const *paths, size_t npaths,
                                      struct sk_notification *out, struct sk_error *err)
{
	enum sk_status status = sk_notify_receive(listener, out, err);

	if (status || concerns_us(out, paths, npaths))
		return status;
	status = sk_notify_continue(listener, out->id, err);
	out->id = 0;
	return status;
}

enum sk_status sk_notify_copy_fd(int32_t pid, int fd, int *copy, struct sk_error *err)
{
	int process = (int)syscall(SYS_pidfd_open, pid, 0);
	int os_errno;

	*copy = -1;
	if (process < 0)
		return sk_fail_errno(err, errno, "pidfd_open(%d)", (int)pid);
	*copy = (int)syscall(SYS_pidfd_getfd, process, fd, 0);
	os_errno = errno;
	close(process);
	return *copy < 0 ? sk_fail_errno(err, os_errno, "pidfd_getfd(%d, %d)", (int)pid, fd) : SK_OK;
}

enum sk_status sk_notify_map(int fd, size_t nbytes, void **out, struct sk_error *err)
{
	*out = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (*out == MAP_FAILED) {
		*out = NULL;
		return sk_fail_errno(err, errno, "mmap of descriptor %d", fd);
	}
	return SK_OK;
}

void sk_notify_unmap(void *mapped, size_t nbytes)
{
	munmap(mapped, nbytes);
}
