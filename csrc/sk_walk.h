/*
 * Page-table decoding: pure functions over bytes somebody else has fetched and decrypted.
 *
 * Source of the entry layouts: AMD64 Architecture Programmer's Manual, volume 2, chapter 5 (page translation:
 * 5.2 legacy mode, 5.3 long mode) and section 15.34.5 (the C-bit). The paging form is data: mode and masks.
 */
#ifndef SK_WALK_H
#define SK_WALK_H

#include <stddef.h>
#include <stdint.h>

#define SK_TABLE_NBYTES 4096
#define SK_MAX_ENTRIES 1024 /* of one table: those of the 32-bit modes have the most */

enum sk_paging_mode {
	SK_PAGING_OFF = 0,
	SK_PAGING_32 = 1,     /* CR4.PSE clear: 4 KiB pages only */
	SK_PAGING_PSE = 2,    /* 4 MiB pages, which may lie above 4 GiB */
	SK_PAGING_PAE = 3,
	SK_PAGING_4LEVEL = 4,
	SK_PAGING_5LEVEL = 5,
};

/* How a guest's tables are to be read. */
struct sk_paging {
	uint32_t mode;        /* enum sk_paging_mode */
	uint32_t nx;          /* EFER.NXE: bit 63 means no-execute; otherwise it is reserved. Not for 32-bit entries */
	uint64_t cbit_mask;   /* 1 << C-bit position; 0 for a guest without encryption */
	uint64_t address_mask; /* bits of a page's gpa (C-bit excluded) that exist; 32-bit entries use what they have of it */
};

/* Bits of sk_entry.flags and sk_run.flags; the order is the program's own, not the processor's. */
enum {
	SK_PRESENT = 1 << 0,
	SK_WRITABLE = 1 << 1,
	SK_USER = 1 << 2,
	SK_NX = 1 << 3,
	SK_LEAF = 1 << 4,
	SK_PRIVATE = 1 << 5,  /* the C-bit was set; of 32-bit entries, which have none: the guest is encrypted */
	SK_RESERVED = 1 << 6, /* a reserved bit was set: the processor would fault */
};

struct sk_entry {
	uint64_t gpa;         /* of the next table, or of the page; C-bit and flags taken off */
	uint64_t page_nbytes; /* of a leaf: 4 KiB, 2 MiB, 4 MiB, 1 GiB; 0 for a table */
	uint32_t flags;       /* this entry's own bits, nothing inherited; PAE's top entries forbid nothing */
	uint32_t reserved;
};

/* How many levels of tables there are: 0, 2, 2, 3, 4, 5; 0 for a mode that does not exist. */
uint32_t sk_walk_levels(const struct sk_paging *paging);

/*
 * Of the tables of a level (1 = PT ... 5 = PML5): how many entries, and log2 of the gva bytes that one spans.
 * 0 for a level that the mode does not have.
 */
uint32_t sk_walk_nentries(const struct sk_paging *paging, uint32_t level);
uint32_t sk_walk_shift(const struct sk_paging *paging, uint32_t level);

/* Bytes of a table of this level: SK_TABLE_NBYTES, or the 32 of PAE's top table, which may start at any 32nd byte. */
uint32_t sk_walk_table_nbytes(const struct sk_paging *paging, uint32_t level);

/* The entry as stored, zero-extended; 0 beyond the table's end. */
uint64_t sk_walk_raw(const struct sk_paging *paging, uint32_t level, const void *table, uint32_t index);

/* Index of gva in the table of this level; 0 for a level that the mode does not have. */
uint32_t sk_walk_index(const struct sk_paging *paging, uint64_t gva, uint32_t level);

/* Can gva be translated at all: canonical in long mode, below 4 GiB in the others? */
int sk_walk_canonical(const struct sk_paging *paging, uint64_t gva);

/* Decode one entry of a table of this level, as sk_walk_raw gives it. */
void sk_walk_entry(const struct sk_paging *paging, uint32_t level, uint64_t raw, struct sk_entry *out);

/*
 * One table as runs: neighbouring present entries that are leaves of equal flags and touching addresses
 * become one run; an entry that leads to a table is a run of its own (not SK_LEAF). SK_RESERVED runs agree
 * in their reserved bits too.
 * out has room for SK_MAX_ENTRIES (or sk_walk_nentries); returns how many were written.
 */
struct sk_run {
	uint64_t gpa;
	uint64_t page_nbytes; /* size of each page; 0 for a table */
	uint32_t flags;
	uint16_t first;       /* index of the first entry */
	uint16_t count;       /* entries in the run */
};

size_t sk_walk_table(const struct sk_paging *paging, uint32_t level, const void *table, struct sk_run *out);

#endif
