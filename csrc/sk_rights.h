/*
 * A page table (level 1, entries of 8 bytes) as runs of equal rights, wherever their pages are: what sk_walk_table
 * gives but for the gpas, and several times as fast.
 */
#ifndef SK_RIGHTS_H
#define SK_RIGHTS_H

#include <stdint.h>

#include "sk_walk.h"

/* The bits of an entry, always a leaf, that make a difference to its flags; 0 if entries are not of 8 bytes. */
uint64_t sk_rights_bits(const struct sk_paging *paging);

/* bits: as above, not 0. table is aligned to 16 bytes. runs has room for SK_MAX_ENTRIES; how many were written. */
uint32_t sk_rights_runs(const struct sk_paging *paging, uint64_t bits, const void *table, struct sk_run *runs);

#endif
