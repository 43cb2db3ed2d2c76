/* The worker thread: its own descriptor table, one call at a time, an end even while a call does not come back. */
#define _GNU_SOURCE
#include "../../csrc/sk_worker.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "expect.h"

static int64_t run(struct sk_worker *worker, long number, uint64_t a, uint64_t b, uint64_t c)
{
	int64_t result;

	EXPECT(sk_worker_start(worker, number, a, b, c, NULL) == SK_OK);
	EXPECT(sk_worker_wait(worker, 10000, &result, NULL) == SK_OK);
	return result;
}

static void test_table_of_its_own(void)
{
	int ours[2], other[2];
	int32_t keep[2];
	struct sk_worker *worker;
	char byte;

	EXPECT(pipe(ours) == 0 && pipe(other) == 0);
	keep[0] = ours[1];
	keep[1] = ours[0];
	EXPECT(sk_worker_open(keep, 2, &worker, NULL) == SK_OK);
	EXPECT(run(worker, SYS_fcntl, (uint64_t)other[0], F_GETFD, 0) == -EBADF);
	EXPECT(run(worker, SYS_fcntl, 0, F_GETFD, 0) == -EBADF);
	EXPECT(run(worker, SYS_write, (uint64_t)ours[1], (uint64_t)(uintptr_t) "x", 1) == 1);
	EXPECT(read(ours[0], &byte, 1) == 1 && byte == 'x');
	/* what it does to its table is nothing to ours, and the other way round */
	EXPECT(run(worker, SYS_dup3, (uint64_t)ours[0], (uint64_t)other[0], O_CLOEXEC) == other[0]);
	EXPECT(run(worker, SYS_close, (uint64_t)ours[1], 0, 0) == 0);
	EXPECT(fcntl(ours[1], F_GETFD) >= 0);
	close(other[1]);
	EXPECT(read(other[0], &byte, 1) == 0);
	EXPECT(run(worker, SYS_gettid, 0, 0, 0) != getpid());
	EXPECT(sk_worker_close(worker, 10000, NULL) == SK_OK);
	/* the reading ends that it had are closed: nobody is left to read */
	close(ours[0]);
	EXPECT(fcntl(ours[1], F_SETFL, O_NONBLOCK) == 0);
	EXPECT(write(ours[1], "y", 1) == -1 && errno == EPIPE);
	close(ours[1]);
	close(other[0]);
}

static void test_one_call_at_a_time(void)
{
	int ends[2];
	int32_t keep[1];
	struct sk_worker *worker;
	struct sk_error err;
	int64_t result = 7;
	char byte;

	EXPECT(pipe(ends) == 0);
	keep[0] = ends[0];
	EXPECT(sk_worker_open(keep, 1, &worker, &err) == SK_OK);
	EXPECT(sk_worker_wait(worker, 0, &result, &err) == SK_ERR_INVALID && result == 7);
	EXPECT(sk_worker_start(worker, SYS_read, (uint64_t)ends[0], (uint64_t)(uintptr_t)&byte, 1, &err) == SK_OK);
	EXPECT(sk_worker_wait(worker, 1, &result, &err) == SK_ERR_TIMEOUT && result == 7);
	EXPECT(sk_worker_start(worker, SYS_gettid, 0, 0, 0, &err) == SK_ERR_BUSY);
	EXPECT(write(ends[1], "z", 1) == 1);
	EXPECT(sk_worker_wait(worker, 10000, &result, &err) == SK_OK && result == 1 && byte == 'z');
	EXPECT(sk_worker_wait(worker, 0, &result, &err) == SK_ERR_INVALID);
	EXPECT(sk_worker_close(worker, 10000, &err) == SK_OK);
	close(ends[0]);
	close(ends[1]);
}

static void test_left_with_a_call_in_flight(void)
{
	int ends[2];
	int32_t keep[1];
	struct sk_worker *worker;
	struct sk_error err;
	static char byte;
	int tries = 0;

	EXPECT(pipe(ends) == 0);
	keep[0] = ends[0];
	EXPECT(sk_worker_open(keep, 1, &worker, &err) == SK_OK);
	EXPECT(sk_worker_start(worker, SYS_read, (uint64_t)ends[0], (uint64_t)(uintptr_t)&byte, 1, &err) == SK_OK);
	EXPECT(sk_worker_close(worker, 10, &err) == SK_ERR_TIMEOUT && err.status == SK_ERR_TIMEOUT);
	close(ends[0]);
	EXPECT(write(ends[1], "w", 1) == 1); /* its copy is still there to be read */
	/* and goes with the thread */
	EXPECT(fcntl(ends[1], F_SETFL, O_NONBLOCK) == 0);
	while (write(ends[1], "v", 1) == 1 && ++tries < 10000)
		usleep(1000);
	EXPECT(errno == EPIPE && byte == 'w');
	close(ends[1]);
}

static void test_refused(void)
{
	int32_t keep[1] = { -1 };
	struct sk_worker *worker = (struct sk_worker *)keep;
	struct sk_error err;

	EXPECT(sk_worker_open(keep, 1, &worker, &err) == SK_ERR_INVALID && !worker);
	EXPECT(sk_worker_open(NULL, 0, &worker, &err) == SK_OK);
	EXPECT(run(worker, SYS_ioctl, 0, 0, 0) == -EBADF);
	EXPECT(sk_worker_close(worker, 10000, &err) == SK_OK);
}

int main(void)
{
	signal(SIGPIPE, SIG_IGN);
	test_table_of_its_own();
	test_one_call_at_a_time();
	test_left_with_a_call_in_flight();
	test_refused();
	return 0;
}
