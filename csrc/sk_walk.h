/*
 * Page-table decoding: pure functions over bytes somebody else has fetched and decrypted.
 *
 * Source of the entry layouts: AMD64 Architecture Programmer's Manual, volume 2, chapter 5 (long-mode
 * page translation) and section 15.34.5 (the C-bit). The paging form is data: levels and masks.
 */
#ifndef SK_WALK_H
#define SK_WALK_H

#include <stddef.h>
#include <stdint.h>

#define SK_TABLE_ENTRIES 512

/* How a guest's tables are to be read. */
struct sk_paging {
	uint32_t levels;      /* 4 or 5 */
	uint32_t nx;          /* EFER.NXE: bit 63 means no-execute; otherwise it is reserved */
	uint64_t cbit_mask;   /* 1 << C-bit position; 0 for a guest without encryption */
	uint64_t address_mask; /* bits of an entry that are address, C-bit excluded, for a 4 KiB page */
};

/* Bits of sk_entry.flags and sk_run.flags; the order is the program's own, not the processor's. */
enum {
	SK_PRESENT = 1 << 0,
	SK_WRITABLE = 1 << 1,
	SK_USER = 1 << 2,
	SK_NX = 1 << 3,
	SK_LEAF = 1 << 4,
	SK_PRIVATE = 1 << 5,  /* the C-bit was set */
	SK_RESERVED = 1 << 6, /* a reserved bit was set: the processor would fault */
};

struct sk_entry {
	uint64_t gpa;         /* of the next table, or of the page; C-bit and flags taken off */
	uint64_t page_nbytes; /* of a leaf: 4 KiB, 2 MiB, 1 GiB; 0 for a table */
	uint32_t flags;       /* this entry's own bits, nothing inherited */
	uint32_t reserved;
};

/* Index of gva in the table of this level (1 = PT ... 5 = PML5). */
uint32_t sk_walk_index(uint64_t gva, uint32_t level);

/* Is gva canonical for this number of levels? */
int sk_walk_canonical(const struct sk_paging *paging, uint64_t gva);

/* Decode one entry of a table of this level. */
void sk_walk_entry(const struct sk_paging *paging, uint32_t level, uint64_t raw, struct sk_entry *out);

/*
 * One table as runs: neighbouring present entries that are leaves of equal flags and touching addresses
 * become one run; an entry that leads to a table is a run of its own (not SK_LEAF). SK_RESERVED runs agree
 * in their reserved bits too.
 * out has room for SK_TABLE_ENTRIES; returns how many were written.
 */
struct sk_run {
	uint64_t gpa;
	uint64_t page_nbytes; /* size of each page; 0 for a table */
	uint32_t flags;
	uint16_t first;       /* index of the first entry */
	uint16_t count;       /* entries in the run */
};

size_t sk_walk_table(const struct sk_paging *paging, uint32_t level, const uint64_t *table,
                     struct sk_run *out);

#endif
