#define _GNU_SOURCE
#include "sk_area.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sk_tasks.h"
#include "sk_xfer.h"

static const char magic[16] = "sevkvm-deputy-1";

struct mark {
	char magic[16];
	uint64_t hva;
	uint64_t nbytes;
	int32_t owner_pid; /* the sevkvm process */
	int32_t deputy_tid;
	uint64_t owner_start;
	struct sk_area arena; /* of a control page: where its arena was asked for */
};

/* Far from everything that the kernel or a program places by itself. */
#define CONTROL_PLACE 0x200000000000u /* | owner's pid << 12 (a pid has 22 bits) */
#define ARENA_PLACE 0x300000000000u   /* | low bits of the owner's pid << 28 */
#define PID_BITS 22
#define ARENA_PID_BITS 16
#define ARENA_SHIFT 28

uint64_t sk_control_place(void)
{
	return CONTROL_PLACE | (uint64_t)getpid() << 12;
}

struct sk_area sk_arena_place(size_t scratch_nbytes)
{
	uint64_t slot = (uint64_t)getpid() & ((1u << ARENA_PID_BITS) - 1);

	return (struct sk_area){
		ARENA_PLACE | slot << ARENA_SHIFT,
		SK_ARENA_HEAD_NBYTES + SK_ARGS_NBYTES + scratch_nbytes,
	};
}

#define TID_SLOT_OFFSET 256
#define TLS_OFFSET 512
#define CLEAN_CHAIN_OFFSET 3072
#define EXIT_CHAIN_OFFSET 3584

uint64_t sk_control_exit_sp(uint64_t control_hva)
{
	return control_hva + EXIT_CHAIN_OFFSET;
}

uint64_t sk_control_clean_sp(uint64_t control_hva)
{
	return control_hva + CLEAN_CHAIN_OFFSET;
}

uint64_t sk_control_tls(uint64_t control_hva)
{
	return control_hva + TLS_OFFSET;
}

uint64_t sk_control_tid_slot(uint64_t control_hva)
{
	return control_hva + TID_SLOT_OFFSET;
}

static enum sk_status put(pid_t pid, uint64_t hva, const void *data, size_t nbytes, struct sk_error *err)
{
	size_t done;

	return sk_write(pid, hva, data, nbytes, &done, err);
}

static enum sk_status write_mark(pid_t pid, struct sk_area area, struct sk_area arena, struct sk_error *err)
{
	struct mark mark = { .hva = area.hva, .nbytes = area.nbytes, .owner_pid = getpid(), .arena = arena };
	struct sk_task self;
	enum sk_status status = sk_task_read(mark.owner_pid, mark.owner_pid, &self, err);

	if (status)
		return status;
	memcpy(mark.magic, magic, sizeof magic);
	mark.owner_start = self.start;
	return put(pid, area.hva, &mark, sizeof mark, err);
}

enum sk_status sk_control_write(pid_t pid, uint64_t hva, struct sk_area arena, const struct sk_gadgets *gadgets,
                                struct sk_error *err)
{
	/* exit(2) takes whatever is in rdi: nobody waits for the deputy's exit status */
	const uint64_t chain[] = { gadgets->pop_rax, SYS_exit, gadgets->syscall_ret };
	const uint64_t tls = sk_control_tls(hva);
	enum sk_status status = write_mark(pid, (struct sk_area){ hva, SK_CONTROL_NBYTES }, arena, err);

	if (!status)
		status = put(pid, tls, &tls, sizeof tls, err); /* the thread control block points to itself */
	if (!status)
		status = put(pid, sk_control_exit_sp(hva), chain, sizeof chain, err);
	return status;
}

enum sk_status sk_arena_write(pid_t pid, struct sk_area arena, uint64_t control_hva,
                              const struct sk_gadgets *gadgets, struct sk_error *err)
{
	const uint64_t chain[] = {
		gadgets->pop_rdi, arena.hva,
		gadgets->pop_rsi, arena.nbytes,
		gadgets->pop_rax, SYS_munmap,
		gadgets->syscall_ret,
		gadgets->pop_rax, SYS_exit,
		gadgets->syscall_ret,
	};
	enum sk_status status = write_mark(pid, arena, (struct sk_area){ 0, 0 }, err);

	if (!status)
		status = put(pid, sk_control_clean_sp(control_hva), chain, sizeof chain, err);
	return status;
}

enum sk_status sk_control_set_tid(pid_t pid, uint64_t hva, pid_t tid, struct sk_error *err)
{
	const int32_t value = tid;

	return put(pid, hva + offsetof(struct mark, deputy_tid), &value, sizeof value, err);
}

static bool owner_lives(const struct mark *mark)
{
	struct sk_task owner;

	return mark->owner_pid > 0 && !sk_task_read(mark->owner_pid, mark->owner_pid, &owner, NULL) &&
	       owner.start == mark->owner_start && !sk_task_is_dead(&owner);
}

/* A deputy outlives its owner while it is in a call, and will return to its page. */
static bool deputy_lives(pid_t pid, const struct mark *mark)
{
	struct sk_task deputy;

	return mark->deputy_tid > 0 && !sk_task_read(pid, mark->deputy_tid, &deputy, NULL) &&
	       !sk_task_is_dead(&deputy);
}

static void add_leftover(struct sk_found_areas *out, struct sk_area area)
{
	size_t i;

	for (i = 0; i < out->nleftovers; i++)
		if (out->leftovers[i].hva == area.hva)
			return;
	if (out->nleftovers < SK_LEFTOVERS_MAX)
		out->leftovers[out->nleftovers++] = area;
}

/* A page that its owner had no time to mark: it lies where only that owner would have put it. */
static void consider_unmarked(struct sk_area area, struct sk_found_areas *out)
{
	pid_t owner_pid = (pid_t)(area.hva >> 12 & ((1u << PID_BITS) - 1));
	struct sk_task owner;

	if (area.nbytes == SK_CONTROL_NBYTES && area.hva == (CONTROL_PLACE | (uint64_t)owner_pid << 12) &&
	    sk_task_read(owner_pid, owner_pid, &owner, NULL) == SK_ERR_NO_PROCESS)
		add_leftover(out, area);
}

struct area_list {
	struct sk_area areas[SK_LEFTOVERS_MAX];
	size_t count;
};

static bool lists(const struct area_list *list, struct sk_area area)
{
	size_t i;

	for (i = 0; i < list->count; i++)
		if (list->areas[i].hva == area.hva && list->areas[i].nbytes == area.nbytes)
			return true;
	return false;
}

static void list(struct area_list *list, struct sk_area area)
{
	if (area.nbytes && list->count < SK_LEFTOVERS_MAX)
		list->areas[list->count++] = area;
}

static bool all_zero(const struct mark *mark)
{
	static const struct mark zero;

	return !memcmp(mark, &zero, sizeof zero);
}

struct search {
	pid_t pid;
	struct area_list of_dead; /* arenas named by a control page: their owners may have had no time to mark them */
	struct area_list in_use; /* the same of a deputy that is still there */
};

static void consider(struct search *search, struct sk_area area, struct sk_found_areas *out)
{
	struct mark mark;
	size_t done;

	if (area.nbytes > SK_ARENA_HEAD_NBYTES + SK_ARGS_NBYTES + SK_SCRATCH_MAX_NBYTES)
		return;
	if (lists(&search->in_use, area))
		return;
	if (sk_read(search->pid, area.hva, &mark, sizeof mark, &done, NULL))
		return;
	if (all_zero(&mark)) {
		consider_unmarked(area, out);
		if (lists(&search->of_dead, area))
			add_leftover(out, area);
		return;
	}
	/* guest RAM may look like this too, but a guest cannot know where its VMM keeps it */
	if (memcmp(mark.magic, magic, sizeof magic) || mark.hva != area.hva || mark.nbytes != area.nbytes)
		return;
	if (!owner_lives(&mark) && !deputy_lives(search->pid, &mark)) {
		add_leftover(out, area);
		list(&search->of_dead, mark.arena);
		return;
	}
	list(&search->in_use, mark.arena);
	if (mark.deputy_tid && out->npeers < SK_PEERS_MAX)
		out->peers[out->npeers++] = mark.deputy_tid;
}

enum sk_status sk_areas_find(pid_t pid, struct sk_found_areas *out, struct sk_error *err)
{
	struct search search = { .pid = pid };
	char path[64], *line = NULL;
	size_t room = 0;
	FILE *maps;

	memset(out, 0, sizeof *out);
	snprintf(path, sizeof path, "/proc/%d/maps", (int)pid);
	maps = fopen(path, "re");
	if (!maps)
		return sk_fail_errno(err, errno == ENOENT ? ESRCH : errno, "open %s", path);
	/* addresses ascend, so a control page comes before its arena */
	while (getline(&line, &room, maps) > 0) {
		uint64_t start, end;
		char perms[5];

		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s", &start, &end, perms) == 3 &&
		    !strcmp(perms, "rw-s") && strstr(line, " /dev/zero (deleted)"))
			consider(&search, (struct sk_area){ start, end - start }, out);
	}
	free(line);
	fclose(maps);
	return SK_OK;
}
