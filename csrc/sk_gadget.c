#define _GNU_SOURCE
#include "sk_gadget.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sk_xfer.h"

/* Text past this much per mapping is not looked at: the sequences are everywhere in a C library. */
#define TEXT_MAX_NBYTES ((size_t)64 << 20)

static bool complete(const struct sk_gadgets *found)
{
	return found->syscall_ret && found->pop_rax && found->pop_rdi && found->pop_rsi;
}

static void look_for(const unsigned char *text, size_t nbytes, uint64_t hva, const char *code,
                     size_t code_nbytes, uint64_t *slot)
{
	const unsigned char *hit;

	if (*slot)
		return;
	hit = memmem(text, nbytes, code, code_nbytes);
	if (hit)
		*slot = hva + (uint64_t)(hit - text);
}

static enum sk_status search_text(pid_t pid, uint64_t hva, size_t nbytes, struct sk_gadgets *found,
                                  struct sk_error *err)
{
	enum sk_status status;
	unsigned char *text;
	size_t done;

	if (nbytes > TEXT_MAX_NBYTES)
		nbytes = TEXT_MAX_NBYTES;
	text = malloc(nbytes);
	if (!text)
		return sk_fail_errno(err, ENOMEM, "room for %zu bytes of code", nbytes);
	status = sk_read(pid, hva, text, nbytes, &done, err);
	if (status == SK_OK || status == SK_ERR_FAULT) {
		look_for(text, done, hva, "\x0f\x05\xc3", 3, &found->syscall_ret);
		look_for(text, done, hva, "\x58\xc3", 2, &found->pop_rax);
		look_for(text, done, hva, "\x5f\xc3", 2, &found->pop_rdi);
		look_for(text, done, hva, "\x5e\xc3", 2, &found->pop_rsi);
		look_for(text, done, hva, "\xb8\x3c\x00\x00\x00\x0f\x05", 7, &found->exit);
		status = SK_OK;
	}
	free(text);
	return status;
}

/* One pass over the mappings: those of the C library, or all the others. */
static enum sk_status search_mappings(pid_t pid, bool libc, struct sk_gadgets *found, struct sk_error *err)
{
	enum sk_status status = SK_OK;
	char path[64], *line = NULL;
	size_t room = 0;
	FILE *maps;

	snprintf(path, sizeof path, "/proc/%d/maps", (int)pid);
	maps = fopen(path, "re");
	if (!maps)
		return sk_fail_errno(err, errno == ENOENT ? ESRCH : errno, "open %s", path);
	while (!status && getline(&line, &room, maps) > 0) {
		uint64_t start, end;
		char perms[5];
		int name_at = 0;

		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %*s %*s %*s %n", &start, &end, perms, &name_at) < 3)
			continue;
		/* only private, readable and executable text of a file: it cannot change under us */
		if (strcmp(perms, "r-xp") || !name_at || line[name_at] != '/')
			continue;
		if (libc != (strstr(line + name_at, "/libc.so") || strstr(line + name_at, "/libc-")))
			continue;
		status = search_text(pid, start, end - start, found, err);
		if (complete(found) && (found->exit || !libc))
			break;
	}
	free(line);
	fclose(maps);
	return status;
}

enum sk_status sk_gadgets_find(pid_t pid, struct sk_gadgets *out, struct sk_error *err)
{
	enum sk_status status;

	memset(out, 0, sizeof *out);
	status = search_mappings(pid, true, out, err);
	if (status || complete(out))
		return status;
	status = search_mappings(pid, false, out, err);
	if (!status && !complete(out))
		status = sk_fail(err, SK_ERR_NO_GADGET, 0, 0,
		                 "process %d maps no code with the system-call sequences a deputy needs", (int)pid);
	return status;
}
