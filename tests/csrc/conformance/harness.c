/* Rows in processes of their own, and how they end. */
#define _GNU_SOURCE
#include "harness.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define ROW_SECONDS 60
#define EXIT_FAILED 1
#define EXIT_SKIPPED 77

struct conformance conf;
static int message_fd = -1;

static void __attribute__((noreturn)) end_row(int status, const char *text)
{
	ssize_t written = write(message_fd, text, strlen(text));

	_exit(written < 0 ? EXIT_FAILED : status);
}

void conf_fail(const char *file, int line, const char *format, ...)
{
	char text[MESSAGE_NBYTES], what[MESSAGE_NBYTES - 128];
	const char *slash = strrchr(file, '/');
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(what, sizeof(what), format, arguments);
	va_end(arguments);
	snprintf(text, sizeof(text), "%.64s:%d: %s", slash ? slash + 1 : file, line, what);
	end_row(EXIT_FAILED, text);
}

void conf_skip(const char *format, ...)
{
	char text[MESSAGE_NBYTES];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	end_row(EXIT_SKIPPED, text);
}

const char *conf_errno(int error)
{
	static const struct {
		int number;
		const char *name;
	} names[] = {
		{0, "success"},	    {EPERM, "EPERM"},	  {ENXIO, "ENXIO"},   {E2BIG, "E2BIG"},	  {EBADF, "EBADF"},
		{EINTR, "EINTR"},   {EIO, "EIO"},	  {ENOMEM, "ENOMEM"}, {EACCES, "EACCES"}, {EFAULT, "EFAULT"},
		{EBUSY, "EBUSY"},   {EEXIST, "EEXIST"},	  {ENODEV, "ENODEV"}, {EINVAL, "EINVAL"}, {ENOTTY, "ENOTTY"},
		{ENOSPC, "ENOSPC"}, {ENOSYS, "ENOSYS"},	  {524, "ENOTSUPP"},  {ETIMEDOUT, "ETIMEDOUT"},
	};
	static char number[16];

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (names[i].number == error)
			return names[i].name;
	snprintf(number, sizeof(number), "errno %d", error);
	return number;
}

static void __attribute__((noreturn)) become_row(const struct row *row, pid_t parent)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(EXIT_FAILED);
	alarm(ROW_SECONDS);
	row->run();
	_exit(0);
}

static void collect(int fd, char *message)
{
	size_t length = 0;
	ssize_t count;

	while (length < MESSAGE_NBYTES - 1 && (count = read(fd, message + length, MESSAGE_NBYTES - 1 - length)) > 0)
		length += (size_t)count;
	message[length] = '\0';
}

enum verdict run_row(const struct row *row, char *message)
{
	pid_t child, parent = getpid();
	int status, ends[2];

	if (pipe(ends))
		return ROW_FAILED;
	fflush(stdout);
	child = fork();
	if (child == 0) {
		close(ends[0]);
		message_fd = ends[1];
		become_row(row, parent);
	}
	close(ends[1]);
	/* helpers that a row leaves behind hold the pipe open, and end with it */
	waitpid(child, &status, 0);
	collect(ends[0], message);
	close(ends[0]);
	if (WIFSIGNALED(status)) {
		snprintf(message, MESSAGE_NBYTES, "ended by signal %d%s", WTERMSIG(status),
			 WTERMSIG(status) == SIGALRM ? " (it took too long)" : "");
		return ROW_FAILED;
	}
	if (WEXITSTATUS(status) == EXIT_SKIPPED)
		return ROW_SKIPPED;
	return WEXITSTATUS(status) == 0 ? ROW_PASSED : ROW_FAILED;
}
