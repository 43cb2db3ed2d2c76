#define _GNU_SOURCE
#include "sk_tasks.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PF_EXITING 0x00000004u
#define PF_USER_WORKER 0x00004000u

bool sk_task_is_worker(const struct sk_task *task)
{
	return (task->flags & PF_USER_WORKER) != 0;
}

bool sk_task_is_dead(const struct sk_task *task)
{
	return task->state == 'Z' || task->state == 'X' || (task->flags & PF_EXITING);
}

enum sk_status sk_task_read(pid_t pid, pid_t tid, struct sk_task *out, struct sk_error *err)
{
	char path[64], text[1024];
	const char *after_name;
	size_t nbytes;
	FILE *file;

	snprintf(path, sizeof path, "/proc/%d/task/%d/stat", (int)pid, (int)tid);
	file = fopen(path, "re");
	if (!file)
		return sk_fail_errno(err, errno == ENOENT ? ESRCH : errno, "thread %d of process %d", (int)tid,
		                     (int)pid);
	nbytes = fread(text, 1, sizeof text - 1, file);
	fclose(file);
	text[nbytes] = 0;
	/* the name may hold anything, so count fields from its closing parenthesis */
	after_name = strrchr(text, ')');
	out->tid = tid;
	if (!after_name ||
	    sscanf(after_name + 1,
	           " %c %*s %*s %*s %*s %*s %" SCNu32 " %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %" SCNu64,
	           &out->state, &out->flags, &out->start) != 3)
		return sk_fail(err, SK_ERR_NO_PROCESS, ESRCH, 0, "thread %d of process %d", (int)tid, (int)pid);
	return SK_OK;
}

static enum sk_status append(struct sk_task **tasks, size_t *count, const struct sk_task *task,
                             struct sk_error *err)
{
	struct sk_task *grown = realloc(*tasks, (*count + 1) * sizeof **tasks);

	if (!grown)
		return sk_fail_errno(err, ENOMEM, "room for %zu threads", *count + 1);
	*tasks = grown;
	grown[(*count)++] = *task;
	return SK_OK;
}

enum sk_status sk_tasks_list(pid_t pid, struct sk_task **tasks, size_t *count, struct sk_error *err)
{
	enum sk_status status = SK_OK;
	struct dirent *entry;
	char path[64];
	DIR *directory;

	*tasks = NULL;
	*count = 0;
	snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
	directory = opendir(path);
	if (!directory)
		return sk_fail_errno(err, errno == ENOENT ? ESRCH : errno, "process %d", (int)pid);
	while (!status && (entry = readdir(directory))) {
		struct sk_task task;
		pid_t tid = (pid_t)strtol(entry->d_name, NULL, 10);

		if (tid <= 0 || sk_task_read(pid, tid, &task, NULL))
			continue; /* "." and "..", or it ended meanwhile */
		status = append(tasks, count, &task, err);
		if (!status && tid == pid && *count > 1) {
			(*tasks)[*count - 1] = (*tasks)[0];
			(*tasks)[0] = task;
		}
	}
	closedir(directory);
	if (!status && *count == 0)
		status = sk_fail(err, SK_ERR_NO_PROCESS, ESRCH, 0, "process %d", (int)pid);
	if (status) {
		free(*tasks);
		*tasks = NULL;
	}
	return status;
}

bool sk_task_status_field(pid_t pid, pid_t tid, const char *name, char *out, size_t room)
{
	size_t name_nbytes = strlen(name), line_room = 0;
	char path[64], *line = NULL;
	bool found = false;
	FILE *file;

	snprintf(path, sizeof path, "/proc/%d/task/%d/status", (int)pid, (int)tid);
	file = fopen(path, "re");
	if (!file)
		return false;
	while (!found && getline(&line, &line_room, file) > 0) {
		if (strncmp(line, name, name_nbytes) || line[name_nbytes] != ':')
			continue;
		line[strcspn(line, "\n")] = 0;
		snprintf(out, room, "%s", line + name_nbytes + 1 + strspn(line + name_nbytes + 1, " \t"));
		found = true;
	}
	free(line);
	fclose(file);
	return found;
}

pid_t sk_task_tracer(pid_t pid, pid_t tid)
{
	char value[32];

	if (!sk_task_status_field(pid, tid, "TracerPid", value, sizeof value))
		return 0;
	return (pid_t)strtol(value, NULL, 10);
}
