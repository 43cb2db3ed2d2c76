/*
 * What we map into a target: two areas of shared anonymous memory (never merged with a neighbour, shown as
 * "/dev/zero (deleted)"), each opening with a mark by which a later attach finds what a killed one left.
 *
 *   control  one page: mark, thread-local storage, and the deputy's stack with its exit chains
 *   arena    mark page, argument structs, scratch data
 */
#ifndef SK_AREA_H
#define SK_AREA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "sk_gadget.h"
#include "sk_status.h"

#define SK_CONTROL_NBYTES 4096u
#define SK_ARENA_HEAD_NBYTES 4096u
#define SK_ARGS_NBYTES (16u << 10)
#define SK_SCRATCH_MAX_NBYTES ((size_t)64 << 20)

struct sk_area {
	uint64_t hva;
	uint64_t nbytes;
};

/*
 * Where the areas of this process are asked for: addresses that nothing else is put at, which name the
 * owner. Should we die between mapping an area and marking it, its place gives it away.
 */
uint64_t sk_control_place(void);
struct sk_area sk_arena_place(size_t scratch_nbytes);

/* Stack pointers inside a control page: each stands on a chain of borrowed code. */
uint64_t sk_control_exit_sp(uint64_t control_hva);  /* ... that ends the thread */
uint64_t sk_control_clean_sp(uint64_t control_hva); /* ... that unmaps the arena first */
uint64_t sk_control_tls(uint64_t control_hva);
uint64_t sk_control_tid_slot(uint64_t control_hva);

/* Write mark (which names the arena to come), thread-local storage and the exit chain into a fresh page. */
enum sk_status sk_control_write(pid_t pid, uint64_t hva, struct sk_area arena, const struct sk_gadgets *gadgets,
                                struct sk_error *err);

/* Write the mark of an arena, and the chain that unmaps it into the control page. */
enum sk_status sk_arena_write(pid_t pid, struct sk_area arena, uint64_t control_hva,
                              const struct sk_gadgets *gadgets, struct sk_error *err);

/* Record which thread an area belongs to, so that other deputies leave it alone. */
enum sk_status sk_control_set_tid(pid_t pid, uint64_t hva, pid_t tid, struct sk_error *err);

#define SK_LEFTOVERS_MAX 64
#define SK_PEERS_MAX 16

struct sk_found_areas {
	struct sk_area leftovers[SK_LEFTOVERS_MAX]; /* of owners that are dead */
	size_t nleftovers;
	pid_t peers[SK_PEERS_MAX];                  /* deputies that live; their owners may not */
	size_t npeers;
};

/* Look through the mappings of pid. A mark is believed only where it knows its own address and size. */
enum sk_status sk_areas_find(pid_t pid, struct sk_found_areas *out, struct sk_error *err);

#endif
