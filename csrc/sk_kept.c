#define _GNU_SOURCE
#include "sk_kept.h"

#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "sk_host.h"

/* A duplicate of the file; the message stays where it is. */
static int peek(int socket)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	char byte;
	struct iovec iov = { &byte, 1 };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.room,
		                  .msg_controllen = sizeof control.room };
	struct cmsghdr *header;
	int fd;

	if (recvmsg(socket, &message, MSG_PEEK | MSG_CMSG_CLOEXEC | MSG_DONTWAIT) < 0)
		return -1;
	header = CMSG_FIRSTHDR(&message);
	if (!header || header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
		return -1;
	memcpy(&fd, CMSG_DATA(header), sizeof fd);
	return fd;
}

int sk_kept_is_at(int socket, int32_t tid, int fd)
{
	int ours = peek(socket);
	int same = 0;

	if (ours < 0)
		return 0;
	if (sk_same_file(getpid(), ours, tid, fd, &same, NULL) != SK_OK)
		same = 0;
	close(ours);
	return same;
}
