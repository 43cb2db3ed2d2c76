#define _GNU_SOURCE
#include "sk_worker.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_close_range
#define SYS_close_range 436
#endif

enum state { STARTING, IDLE, CALLING, DONE, LEAVING, LEFT };

struct sk_worker {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	enum state state;
	bool abandoned; /* nobody waits for the thread: it frees what is here */
	bool own_table; /* else the thread must close nothing: it would be everybody's */
	bool wanted; /* a call was begun that the thread has not seen yet */
	int start_errno;
	int64_t number;
	uint64_t args[3];
	int64_t result;
	size_t nkeep;
	int32_t keep[]; /* ascending */
};

static int ascending(const void *left, const void *right)
{
	int32_t a = *(const int32_t *)left, b = *(const int32_t *)right;

	return (a > b) - (a < b);
}

static int close_between(uint32_t first, uint32_t last)
{
	return first > last || syscall(SYS_close_range, first, last, 0) == 0 ? 0 : errno;
}

/* The table becomes our own, and everything but keep leaves it; 0 or an errno. */
static int take_table(struct sk_worker *worker)
{
	uint32_t next = 0;
	int failed;

	if (unshare(CLONE_FILES))
		return errno;
	worker->own_table = true;
	for (size_t i = 0; i < worker->nkeep; i++) {
		uint32_t kept = (uint32_t)worker->keep[i];

		failed = kept ? close_between(next, kept - 1) : 0;
		if (failed)
			return failed;
		next = kept + 1;
	}
	return close_between(next, ~0U);
}

static void destroy(struct sk_worker *worker)
{
	pthread_cond_destroy(&worker->changed);
	pthread_mutex_destroy(&worker->lock);
	free(worker);
}

static void call(struct sk_worker *worker)
{
	int64_t number = worker->number;
	uint64_t args[3];
	long result;

	worker->wanted = false;
	memcpy(args, worker->args, sizeof args);
	pthread_mutex_unlock(&worker->lock);
	result = syscall((long)number, args[0], args[1], args[2]);
	if (result < 0)
		result = -errno;
	pthread_mutex_lock(&worker->lock);
	worker->result = result;
	if (worker->state == CALLING)
		worker->state = DONE;
	pthread_cond_broadcast(&worker->changed);
}

static void *work(void *argument)
{
	struct sk_worker *worker = argument;
	bool abandoned;

	pthread_mutex_lock(&worker->lock);
	worker->start_errno = take_table(worker);
	worker->state = worker->start_errno ? LEAVING : IDLE;
	pthread_cond_broadcast(&worker->changed);
	while (worker->wanted || worker->state != LEAVING) {
		if (worker->wanted)
			call(worker);
		else
			pthread_cond_wait(&worker->changed, &worker->lock);
	}
	/* nothing is left open when somebody is told that it is over */
	if (worker->own_table)
		close_between(0, ~0U);
	worker->state = LEFT;
	abandoned = worker->abandoned;
	pthread_cond_broadcast(&worker->changed);
	pthread_mutex_unlock(&worker->lock);
	if (abandoned)
		destroy(worker);
	return NULL;
}

static int start_thread(struct sk_worker *worker, pthread_t *thread)
{
	sigset_t all, before;
	int failed;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	failed = pthread_create(thread, NULL, work, worker);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return failed;
}

static void init(struct sk_worker *worker)
{
	pthread_condattr_t attributes;

	pthread_mutex_init(&worker->lock, NULL);
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&worker->changed, &attributes);
	pthread_condattr_destroy(&attributes);
}

static struct timespec deadline_after(uint32_t timeout_ms)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	at.tv_sec += timeout_ms / 1000;
	at.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
	if (at.tv_nsec >= 1000000000) {
		at.tv_sec++;
		at.tv_nsec -= 1000000000;
	}
	return at;
}

/* With the lock: wait while the state is this one; false if time is over before. */
static bool wait_while(struct sk_worker *worker, enum state state, uint32_t timeout_ms)
{
	struct timespec at = deadline_after(timeout_ms);

	while (worker->state == state)
		if (pthread_cond_timedwait(&worker->changed, &worker->lock, &at))
			return worker->state != state;
	return true;
}

enum sk_status sk_worker_open(const int32_t *keep, size_t nkeep, struct sk_worker **out, struct sk_error *err)
{
	struct sk_worker *worker = calloc(1, sizeof *worker + nkeep * sizeof *keep);
	pthread_t thread;
	int failed;

	*out = NULL;
	if (!worker)
		return sk_fail_errno(err, ENOMEM, "a worker thread");
	init(worker);
	worker->nkeep = nkeep;
	if (nkeep) {
		memcpy(worker->keep, keep, nkeep * sizeof *keep);
		qsort(worker->keep, nkeep, sizeof *keep, ascending);
	}
	if (nkeep && worker->keep[0] < 0) {
		destroy(worker);
		return sk_fail(err, SK_ERR_INVALID, 0, 0, "a descriptor below 0");
	}
	failed = start_thread(worker, &thread);
	if (failed) {
		destroy(worker);
		return sk_fail_errno(err, failed, "a worker thread");
	}
	pthread_detach(thread);
	pthread_mutex_lock(&worker->lock);
	while (worker->state == STARTING)
		pthread_cond_wait(&worker->changed, &worker->lock);
	failed = worker->start_errno;
	pthread_mutex_unlock(&worker->lock);
	if (failed) {
		sk_worker_close(worker, 1000, NULL);
		return sk_fail_errno(err, failed, "a descriptor table of its own (unshare, close_range)");
	}
	*out = worker;
	return SK_OK;
}

enum sk_status sk_worker_start(struct sk_worker *worker, int64_t number, uint64_t arg0, uint64_t arg1,
                               uint64_t arg2, struct sk_error *err)
{
	enum sk_status status = SK_OK;

	pthread_mutex_lock(&worker->lock);
	if (worker->state == IDLE) {
		worker->number = number;
		worker->args[0] = arg0;
		worker->args[1] = arg1;
		worker->args[2] = arg2;
		worker->state = CALLING;
		worker->wanted = true;
		pthread_cond_broadcast(&worker->changed);
	} else {
		status = sk_fail(err, SK_ERR_BUSY, 0, 0, "the worker's last call is still in flight");
	}
	pthread_mutex_unlock(&worker->lock);
	return status;
}

enum sk_status sk_worker_wait(struct sk_worker *worker, uint32_t timeout_ms, int64_t *result,
                              struct sk_error *err)
{
	enum sk_status status = SK_OK;

	pthread_mutex_lock(&worker->lock);
	if (worker->state != CALLING && worker->state != DONE) {
		status = sk_fail(err, SK_ERR_INVALID, 0, 0, "the worker was not asked for anything");
	} else if (wait_while(worker, CALLING, timeout_ms)) {
		*result = worker->result;
		worker->state = IDLE;
	} else {
		status = sk_fail(err, SK_ERR_TIMEOUT, 0, 0, "the worker's call has not returned");
	}
	pthread_mutex_unlock(&worker->lock);
	return status;
}

enum sk_status sk_worker_close(struct sk_worker *worker, uint32_t timeout_ms, struct sk_error *err)
{
	bool left;

	pthread_mutex_lock(&worker->lock);
	if (worker->state != LEFT)
		worker->state = LEAVING;
	pthread_cond_broadcast(&worker->changed);
	left = wait_while(worker, LEAVING, timeout_ms);
	worker->abandoned = !left;
	pthread_mutex_unlock(&worker->lock);
	if (!left)
		return sk_fail(err, SK_ERR_TIMEOUT, 0, 0, "the worker's call has not returned");
	destroy(worker);
	return SK_OK;
}
