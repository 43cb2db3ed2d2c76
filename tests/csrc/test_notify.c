/*
 * The filter: which system calls it hands over, which it never sees. A child installs it on itself and makes one
 * call at a time on descriptor -1; whatever is handed over is answered with ANSWER, the rest gets the kernel's EBADF.
 */
#define _GNU_SOURCE
#include "../../csrc/sk_notify.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "expect.h"

#define ANSWER 4321
#define SEV_OP 0xc008aebaUL
#define ENABLE_CAP 0x4068aea3UL
#define GET_TSC_KHZ 0xaea3UL /* shares its low bits with ENABLE_CAP */
#define GET_API_VERSION 0xae00L
#define CHECK_EXTENSION 0xae03L
#define VM_TYPES 235L
#define WILDCARD 0xae00U
#define SEV_ISSUE_CMD 0xc0105300UL
#define SEV_WILDCARD 0x5300U
#define TIMEOUT_MS 10000

struct expectation {
	long number;
	long args[4];
	int trapped;     /* with two requests of KVM's in the filter, and all of /dev/sev */
	int trapped_all; /* with all of both */
};

/* In no directory that exists, so that what the kernel carries out itself does nothing. */
static const char device[] = "nonexistent/device", other[] = "/nonexistent/nowhere/file", link_path[] = "/proc/self/fd/0";

static const struct expectation calls[] = {
	{ SYS_ioctl, { -1, (long)SEV_OP, 0 }, 1, 1 },
	{ SYS_ioctl, { -1, (long)(0xffffffff00000000UL | SEV_OP), 0 }, 1, 1 },
	{ SYS_ioctl, { -1, (long)ENABLE_CAP, 0 }, 1, 1 },
	{ SYS_ioctl, { -1, (long)GET_TSC_KHZ, 0 }, 0, 1 },
	{ SYS_ioctl, { -1, CHECK_EXTENSION, VM_TYPES }, 1, 1 },
	{ SYS_ioctl, { -1, CHECK_EXTENSION, 197 }, 1, 1 },
	{ SYS_ioctl, { -1, CHECK_EXTENSION, 0 }, 0, 1 },
	{ SYS_ioctl, { -1, CHECK_EXTENSION, 234 }, 0, 1 },
	{ SYS_ioctl, { -1, GET_API_VERSION, VM_TYPES }, 0, 1 },
	{ SYS_ioctl, { -1, 0x5401, 0 }, 0, 0 },
	{ SYS_ioctl, { -1, 0x5301, 0 }, 1, 1 },
	{ SYS_ioctl, { -1, (long)SEV_ISSUE_CMD, 0 }, 1, 1 },
	{ SYS_ioctl, { (long)SEV_OP, 0x5401, (long)SEV_OP }, 0, 0 },
	{ SYS_openat, { -1, (long)device, O_RDWR, 0 }, 1, 1 },
	{ SYS_openat, { -1, (long)other, O_RDWR | O_CREAT, 0 }, 0, 0 }, /* not device: it would be created */
	{ SYS_openat, { -1, (long)device, O_DIRECTORY, 0 }, 0, 0 },
	{ SYS_open, { (long)device, O_RDONLY, 0, 0 }, 1, 1 },
	{ SYS_open, { (long)other, O_RDONLY | O_CREAT | O_EXCL, 0, 0 }, 0, 0 },
	{ 437, { -1, (long)device, 0, 0 }, 1, 1 },
	{ SYS_openat, { AT_FDCWD, (long)other, O_RDONLY, 0 }, 0, 0 }, /* seen, and continued in the core */
	{ SYS_readlink, { (long)link_path, 0, 0 }, 0, 1 },
	{ SYS_readlink, { (long)other, 0, 0 }, 0, 0 },
	{ SYS_readlinkat, { -1, (long)"17", 0, 0 }, 0, 1 },
	{ SYS_newfstatat, { AT_FDCWD, (long)device, 0, 0 }, 0, 1 },
	{ SYS_newfstatat, { AT_FDCWD, (long)device, 0, AT_SYMLINK_NOFOLLOW }, 0, 1 },
	{ SYS_newfstatat, { AT_FDCWD, (long)other, 0, 0 }, 0, 0 },
	{ SYS_newfstatat, { -1, (long)device, 0, 0 }, 0, 0 },
	{ SYS_newfstatat, { AT_FDCWD, (long)device, 0, AT_EMPTY_PATH }, 0, 0 },
	{ SYS_statx, { AT_FDCWD, (long)device, 0, 0 }, 0, 1 },
	{ SYS_statx, { AT_FDCWD, (long)device, AT_EMPTY_PATH, 0 }, 0, 0 },
	{ SYS_stat, { (long)device, 0, 0 }, 0, 1 },
	{ SYS_lstat, { (long)device, 0, 0 }, 0, 1 },
	{ SYS_access, { (long)device, R_OK, 0 }, 0, 1 },
	{ SYS_faccessat, { AT_FDCWD, (long)device, R_OK }, 0, 1 },
	{ 439, { AT_FDCWD, (long)device, R_OK, AT_EACCESS }, 0, 1 },
	{ SYS_lgetxattr, { (long)device, (long)"user.x", 0, 0 }, 0, 1 },
	{ SYS_listxattr, { (long)device, 0, 0 }, 0, 1 },
	{ SYS_close, { -1 }, 0, 0 },
};

#define NCALLS (sizeof calls / sizeof calls[0])

static void send_fd(int socket, int fd)
{
	char room[CMSG_SPACE(sizeof fd)] = { 0 }, byte = 'f';
	struct iovec iov = { &byte, 1 };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = room,
		                  .msg_controllen = sizeof room };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof fd);
	memcpy(CMSG_DATA(header), &fd, sizeof fd);
	EXPECT(sendmsg(socket, &message, 0) == 1);
}

static int receive_fd(int socket)
{
	char room[CMSG_SPACE(sizeof(int))], byte;
	struct iovec iov = { &byte, 1 };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = room,
		                  .msg_controllen = sizeof room };
	int fd;

	EXPECT(recvmsg(socket, &message, 0) == 1 && CMSG_FIRSTHDR(&message));
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
	return fd;
}

static void child(int socket, const struct sk_filter *filter, long *results)
{
	struct sk_error err;
	int listener, second;

	EXPECT(sk_notify_install(filter, &listener, &err) == SK_OK);
	EXPECT(sk_notify_install(filter, &second, &err) == SK_ERR_BUSY && second == -1);
	send_fd(socket, listener);
	close(listener);
	for (size_t i = 0; i < NCALLS; i++) {
		const long *a = calls[i].args;

		results[i] = syscall(calls[i].number, a[0], a[1], a[2], a[3]);
	}
	_exit(0);
}

static void serve(int listener)
{
	static const char *const paths[] = { device };
	struct sk_notification call;
	struct sk_error err;

	for (;;) {
		struct pollfd ready = { listener, POLLIN, 0 };
		int valid = 0;

		EXPECT(poll(&ready, 1, TIMEOUT_MS) == 1);
		if (!(ready.revents & POLLIN))
			return;
		EXPECT(sk_notify_receive_ours(listener, paths, 1, &call, &err) == SK_OK);
		if (!call.id)
			continue;
		EXPECT(sk_notify_valid(listener, call.id, &valid, &err) == SK_OK && valid);
		EXPECT(sk_notify_answer(listener, call.id, ANSWER, 0, &err) == SK_OK);
		EXPECT(sk_notify_valid(listener, call.id, &valid, &err) == SK_OK && !valid);
		EXPECT(sk_notify_answer(listener, call.id, ANSWER, 0, &err) != SK_OK);
	}
}

static void check(const struct sk_filter *filter, int all)
{
	long *results = mmap(NULL, sizeof(long) * NCALLS, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int pair[2], listener, status;
	pid_t pid;

	EXPECT(results != MAP_FAILED && socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0);
	pid = fork();
	EXPECT(pid >= 0);
	if (pid == 0)
		child(pair[1], filter, results);
	listener = receive_fd(pair[0]);
	serve(listener);
	EXPECT(waitpid(pid, &status, 0) == pid && status == 0);
	for (size_t i = 0; i < NCALLS; i++) {
		int trapped = all ? calls[i].trapped_all : calls[i].trapped;

		if ((results[i] == ANSWER) != trapped)
			fprintf(stderr, "call %zu (number %ld): %ld\n", i, calls[i].number, results[i]);
		EXPECT((results[i] == ANSWER) == trapped);
	}
	close(listener);
	close(pair[0]);
	close(pair[1]);
	munmap(results, sizeof(long) * NCALLS);
}

int main(void)
{
	static const uint32_t some[] = { SEV_WILDCARD, (uint32_t)SEV_OP, (uint32_t)ENABLE_CAP };
	static const uint32_t every[] = { 7, WILDCARD, SEV_WILDCARD };
	static const uint32_t capabilities[] = { 197, VM_TYPES };
	uint32_t too_many[65] = { 0 };
	struct sk_error err;
	int listener, copy;

	alarm(60);
	EXPECT(sk_notify_install(&(struct sk_filter){ too_many, 65, NULL, 0, 0, 0 }, &listener, &err) == SK_ERR_INVALID &&
	       listener == -1);
	EXPECT(sk_notify_install(&(struct sk_filter){ NULL, 0, too_many, 17, 0, 0 }, &listener, &err) == SK_ERR_INVALID &&
	       listener == -1);
	check(&(struct sk_filter){ some, 3, capabilities, 2, 0, 0 }, 0);
	check(&(struct sk_filter){ every, 3, NULL, 0, 1, 1 }, 1);
	EXPECT(sk_notify_copy_fd(getpid(), 0, &copy, &err) == SK_OK && copy > 0 && close(copy) == 0);
	EXPECT(sk_notify_copy_fd(getpid(), 1 << 20, &copy, &err) != SK_OK && copy == -1);
	EXPECT(sk_notify_copy_fd(INT_MAX, 0, &copy, &err) != SK_OK && copy == -1);
	return 0;
}
