/*
 * An ioctl whose argument is changed on its way in, and the death of whoever changes it at every ptrace request.
 *
 * A supervisor traps FIONBIO of its child, which asks for blocking (a pointer to 0), and lets it have nonblocking (a
 * pointer to 1). The child must find its own pointer in its register afterwards, and its signals unblocked. In round N
 * the supervisor dies by SIGKILL at its Nth checkpoint: the child must get its result, or ENOSYS, and end.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static long checkpoint, last_wish;

static void pass_checkpoint(void)
{
	if (++checkpoint == last_wish)
		kill(getpid(), SIGKILL);
}

#define SK_TRACE_CHECKPOINT() pass_checkpoint()
#include "../../csrc/sk_trace.c"

#include "../../csrc/sk_notify.h"
#include "../../csrc/sk_retype.h"
#include "expect.h"

#define TIMEOUT_MS 5000

/* What the child found, where everybody sees it. */
struct found {
	int done;
	long result;
	int argument_is_back, nonblocking, signals_blocked, alarms;
	long checkpoints;
};

static struct found *found;
static int zero, one = 1;

static void count_alarm(int signal)
{
	(void)signal;
	found->alarms++;
}

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

static void child(int socket)
{
	static const uint32_t requests[] = { FIONBIO };
	struct sk_filter filter = { .requests = requests, .nrequests = 1 };
	struct sigaction action = { .sa_handler = count_alarm, .sa_flags = SA_RESTART };
	struct sk_error err;
	sigset_t blocked;
	long result;
	void *argument = &zero;
	int listener, pair[2];

	EXPECT(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	sigaction(SIGALRM, &action, NULL);
	EXPECT(sk_notify_install(&filter, &listener, &err) == SK_OK);
	send_fd(socket, listener);
	close(listener);
	close(socket);
	__asm__ volatile("syscall"
	                 : "=a"(result), "+d"(argument)
	                 : "0"(SYS_ioctl), "D"(pair[0]), "S"(FIONBIO)
	                 : "rcx", "r11", "memory");
	found->result = result;
	found->argument_is_back = argument == &zero;
	found->nonblocking = (fcntl(pair[0], F_GETFL) & O_NONBLOCK) != 0;
	sigprocmask(SIG_BLOCK, NULL, &blocked);
	found->signals_blocked = sigismember(&blocked, SIGALRM);
	found->done = 1;
	_exit(0);
}

static void next_call(int listener, struct sk_notification *call)
{
	static const char *const no_paths[] = { NULL };
	struct pollfd ready = { listener, POLLIN, 0 };
	struct sk_error err;

	EXPECT(poll(&ready, 1, TIMEOUT_MS) == 1);
	EXPECT(sk_notify_receive_ours(listener, no_paths, 0, call, &err) == SK_OK && call->id);
}

static void supervise(int alarm_comes)
{
	struct sk_notification call;
	struct sk_retype retype;
	struct sk_error err = { 0 };
	int64_t result = -1;
	int pair[2], listener, status;
	pid_t pid;

	EXPECT(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0);
	pid = fork();
	EXPECT(pid >= 0);
	if (pid == 0)
		child(pair[1]);
	listener = receive_fd(pair[0]);
	next_call(listener, &call);
	EXPECT(sk_retype_begin((int32_t)call.tid, TIOCSTI, 0, TIMEOUT_MS, &retype, &err) == SK_ERR_NO_PROCESS);
	next_call(listener, &call); /* another ioctl was meant: it comes again as it was */
	EXPECT(call.args[2] == (uintptr_t)&zero);
	EXPECT(sk_retype_begin((int32_t)call.tid, FIONBIO, (uintptr_t)&one, TIMEOUT_MS, &retype, &err) == SK_OK);
	EXPECT(sk_retype_wait(&retype, 0, &result, &err) == SK_ERR_TIMEOUT);
	if (alarm_comes)
		kill(pid, SIGALRM);
	next_call(listener, &call);
	EXPECT(call.tid == (uint32_t)pid && call.args[2] == (uintptr_t)&one);
	EXPECT(sk_notify_continue(listener, call.id, &err) == SK_OK);
	EXPECT(sk_retype_wait(&retype, TIMEOUT_MS, &result, &err) == SK_OK && result == 0);
	sk_retype_end(&retype);
	EXPECT(sk_retype_begin(getpid(), FIONBIO, 0, TIMEOUT_MS, &retype, &err) == SK_ERR_PERMISSION);
	EXPECT(waitpid(pid, &status, 0) == pid && status == 0);
	found->checkpoints = checkpoint;
	_exit(0);
}

/* True if the supervisor lived to the end. */
static int round_of(long wish, int alarm_comes)
{
	int status, lived = 0;
	pid_t pid, ended;

	memset(found, 0, sizeof *found);
	last_wish = wish;
	pid = fork();
	EXPECT(pid >= 0);
	if (pid == 0)
		supervise(alarm_comes);
	while ((ended = wait(&status)) > 0) { /* the supervisor, and the child that it may have left to us */
		if (ended == pid) {
			lived = WIFEXITED(status);
			EXPECT(!lived || WEXITSTATUS(status) == 0);
			EXPECT(lived || WTERMSIG(status) == SIGKILL);
		} else {
			EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
		}
	}
	EXPECT(found->done);
	return lived;
}

int main(void)
{
	long wish = 1;

	alarm(100);
	found = mmap(NULL, sizeof *found, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	EXPECT(found != MAP_FAILED && prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0);
	for (int alarm_comes = 0; alarm_comes < 2; alarm_comes++) {
		EXPECT(round_of(0, alarm_comes));
		EXPECT(found->result == 0 && found->nonblocking && found->argument_is_back);
		EXPECT(!found->signals_blocked && found->alarms == alarm_comes);
	}
	EXPECT(found->checkpoints > 20);
	for (; !round_of(wish, 0); wish++)
		EXPECT(found->result == -ENOSYS || (found->result == 0 && found->nonblocking));
	EXPECT(wish == found->checkpoints + 1);
	return 0;
}
