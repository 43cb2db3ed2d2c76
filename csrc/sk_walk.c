#include "sk_walk.h"

#include <stdbool.h>
#include <string.h>

/* Bits of an entry as stored. */
#define ENTRY_PRESENT (1ULL << 0)
#define ENTRY_PS (1ULL << 7)
#define ENTRY_NX (1ULL << 63)
#define ENTRY_LOW_FLAGS 7ULL /* P, R/W, U/S: SK_PRESENT, SK_WRITABLE, SK_USER */
#define ENTRY_ADDRESS 0x000ffffffffff000ULL
#define LARGE_PAGE_PAT (1ULL << 12)
#define PAE_RESERVED 0x7ff0000000000000ULL     /* 62:52, which long mode ignores */
#define PAE_TOP_RESERVED 0xfff00000000001e6ULL /* 63:52, 8:5, 2:1 */
#define PSE_HIGH 0x001fe000ULL                 /* 20:13 of a 4 MiB page's entry: bits 39:32 of its gpa */
#define PSE_HIGH_SHIFT 19

#define MAX_LEVEL 5
#define PAGE_SHIFT 12
#define GROUP 8 /* of entries that are skipped together when all are empty */

_Static_assert(SK_PRESENT == 1 && SK_WRITABLE == 2 && SK_USER == 4, "decode() copies these three as they are");
_Static_assert(sizeof(struct sk_run) == 24 && offsetof(struct sk_run, page_nbytes) == 8 &&
               offsetof(struct sk_run, flags) == 16 && offsetof(struct sk_run, first) == 20 &&
               offsetof(struct sk_run, count) == 22, "Python unpacks arrays of struct sk_run");

struct shape {
	uint32_t levels;
	uint32_t index_bits;
	uint32_t entry_nbytes;
	uint32_t top_nentries;
	/* An entry is a leaf when any of these bits is set in it: at level 1 every present one. */
	uint64_t leaf_bits[MAX_LEVEL + 1];
};

static const struct shape shapes[] = {
	[SK_PAGING_OFF] = { 0 },
	[SK_PAGING_32] = { 2, 10, 4, 1024, { [1] = ENTRY_PRESENT } },
	[SK_PAGING_PSE] = { 2, 10, 4, 1024, { [1] = ENTRY_PRESENT, [2] = ENTRY_PS } },
	[SK_PAGING_PAE] = { 3, 9, 8, 4, { [1] = ENTRY_PRESENT, [2] = ENTRY_PS } },
	[SK_PAGING_4LEVEL] = { 4, 9, 8, 512, { [1] = ENTRY_PRESENT, [2] = ENTRY_PS, [3] = ENTRY_PS } },
	[SK_PAGING_5LEVEL] = { 5, 9, 8, 512, { [1] = ENTRY_PRESENT, [2] = ENTRY_PS, [3] = ENTRY_PS } },
};

/* What decoding the entries of one level takes, worked out once a table. */
struct masks {
	uint64_t leaf_if;
	uint64_t pse_high;
	uint64_t cbit;
	uint64_t nx;
	uint64_t page_nbytes;
	uint64_t table_address;
	uint64_t leaf_address;
	uint64_t table_reserved;
	uint64_t leaf_reserved;
	uint32_t own_flags;    /* those of ENTRY_LOW_FLAGS that the entry has */
	uint32_t given_flags;  /* those that every present entry has */
};

static const struct shape *shape_of(const struct sk_paging *paging)
{
	return &shapes[paging->mode < sizeof shapes / sizeof shapes[0] ? paging->mode : SK_PAGING_OFF];
}

static bool has_level(const struct shape *shape, uint32_t level)
{
	return level >= 1 && level <= shape->levels;
}

static uint32_t level_shift(const struct shape *shape, uint32_t level)
{
	return PAGE_SHIFT + shape->index_bits * (level - 1);
}

static bool masks_init(struct masks *masks, const struct sk_paging *paging, uint32_t level)
{
	const struct shape *shape = shape_of(paging);
	bool legacy = shape->entry_nbytes == sizeof(uint32_t);
	bool pae_top = paging->mode == SK_PAGING_PAE && level == shape->levels;
	uint64_t reserved, offset_mask;

	if (!has_level(shape, level))
		return false;
	memset(masks, 0, sizeof *masks);
	masks->own_flags = ENTRY_LOW_FLAGS;
	masks->leaf_if = shape->leaf_bits[level];
	masks->page_nbytes = 1ULL << level_shift(shape, level);
	masks->table_address = paging->address_mask & ENTRY_ADDRESS & ~paging->cbit_mask;
	if (legacy) {
		/* no bit for it: all that an encrypted guest reaches this way is private */
		masks->given_flags = paging->cbit_mask ? SK_PRIVATE : 0;
		masks->pse_high = masks->leaf_if & ENTRY_PS ? PSE_HIGH : 0;
	} else {
		masks->cbit = paging->cbit_mask;
		masks->nx = paging->nx && !pae_top ? ENTRY_NX : 0;
	}
	reserved = ENTRY_ADDRESS & ~(masks->table_address | masks->cbit);
	if (!legacy && !paging->nx)
		reserved |= ENTRY_NX;
	if (paging->mode == SK_PAGING_PAE)
		reserved |= PAE_RESERVED;
	if (pae_top) {
		reserved |= PAE_TOP_RESERVED;
		masks->own_flags = SK_PRESENT;
		masks->given_flags = SK_WRITABLE | SK_USER;
	}
	offset_mask = masks->page_nbytes - 1;
	masks->leaf_address = masks->table_address & ~offset_mask;
	/* where long mode has no leaf, the bit that would make one is reserved; CR4.PSE clear ignores it */
	masks->table_reserved = reserved | (masks->leaf_if || legacy ? 0 : ENTRY_PS);
	/* a large page's unused low address bits are reserved, but bit 12 is PAT */
	masks->leaf_reserved = reserved | (ENTRY_ADDRESS & offset_mask & ~(LARGE_PAGE_PAT | masks->cbit));
	return true;
}

/* Bring a 4 MiB page's high address bits where those of every other entry are. */
static inline uint64_t widen(uint64_t raw, uint64_t pse_high)
{
	uint64_t high = raw & ENTRY_PS ? raw & pse_high : 0;

	return (raw ^ high) | high << PSE_HIGH_SHIFT;
}

/* Flags and address of a present entry that was widened. */
static inline uint32_t decode(const struct masks *masks, uint64_t raw, bool leaf, uint64_t *gpa)
{
	uint32_t flags = ((uint32_t)raw & masks->own_flags) | masks->given_flags;

	flags |= raw & masks->nx ? SK_NX : 0;
	flags |= raw & masks->cbit ? SK_PRIVATE : 0;
	flags |= leaf ? SK_LEAF : 0;
	flags |= raw & (leaf ? masks->leaf_reserved : masks->table_reserved) ? SK_RESERVED : 0;
	*gpa = raw & (leaf ? masks->leaf_address : masks->table_address);
	return flags;
}

/* The bytes come from anywhere, aligned or not. */
static inline uint64_t load(const void *table, uint32_t index, uint32_t entry_nbytes)
{
	const char *entry = (const char *)table + (size_t)index * entry_nbytes;
	uint64_t wide;
	uint32_t narrow;

	if (entry_nbytes == sizeof wide) {
		memcpy(&wide, entry, sizeof wide);
		return wide;
	}
	memcpy(&narrow, entry, sizeof narrow);
	return narrow;
}

uint32_t sk_walk_levels(const struct sk_paging *paging)
{
	return shape_of(paging)->levels;
}

uint32_t sk_walk_nentries(const struct sk_paging *paging, uint32_t level)
{
	const struct shape *shape = shape_of(paging);

	if (!has_level(shape, level))
		return 0;
	return level == shape->levels ? shape->top_nentries : 1U << shape->index_bits;
}

uint32_t sk_walk_shift(const struct sk_paging *paging, uint32_t level)
{
	const struct shape *shape = shape_of(paging);

	return has_level(shape, level) ? level_shift(shape, level) : 0;
}

uint32_t sk_walk_table_nbytes(const struct sk_paging *paging, uint32_t level)
{
	return sk_walk_nentries(paging, level) * shape_of(paging)->entry_nbytes;
}

uint64_t sk_walk_raw(const struct sk_paging *paging, uint32_t level, const void *table, uint32_t index)
{
	return index < sk_walk_nentries(paging, level) ? load(table, index, shape_of(paging)->entry_nbytes) : 0;
}

uint32_t sk_walk_index(const struct sk_paging *paging, uint64_t gva, uint32_t level)
{
	const struct shape *shape = shape_of(paging);

	if (!has_level(shape, level))
		return 0;
	return (uint32_t)(gva >> level_shift(shape, level)) & (sk_walk_nentries(paging, level) - 1);
}

int sk_walk_canonical(const struct sk_paging *paging, uint64_t gva)
{
	uint32_t top_bit;
	uint64_t upper;

	if (paging->mode <= SK_PAGING_PAE)
		return gva <= UINT32_MAX;
	if (paging->mode > SK_PAGING_5LEVEL)
		return 0;
	/* the highest translated bit and all above it are equal */
	top_bit = level_shift(shape_of(paging), paging->mode + 1) - 1;
	upper = gva >> top_bit;
	return upper == 0 || upper == UINT64_MAX >> top_bit;
}

void sk_walk_entry(const struct sk_paging *paging, uint32_t level, uint64_t raw, struct sk_entry *out)
{
	struct masks masks;

	memset(out, 0, sizeof *out);
	if (!(raw & ENTRY_PRESENT) || !masks_init(&masks, paging, level))
		return;
	out->flags = decode(&masks, widen(raw, masks.pse_high), raw & masks.leaf_if, &out->gpa);
	if (out->flags & SK_LEAF)
		out->page_nbytes = masks.page_nbytes;
}

static inline bool all_empty(const void *table, uint32_t first, uint32_t entry_nbytes)
{
	uint64_t any = 0;

	for (uint32_t i = first; i < first + GROUP; i++)
		any |= load(table, i, entry_nbytes);
	return !(any & ENTRY_PRESENT);
}

/*
 * For sk_walk_table, which calls it with constants, so that the compiler makes code for each width of entry and for
 * level 1 (all_leaves), where most entries are.
 */
static inline __attribute__((always_inline)) size_t table_runs(const struct masks *masks, const void *table,
                                                               uint32_t nentries, uint32_t entry_nbytes,
                                                               uint64_t pse_high, bool all_leaves,
                                                               struct sk_run *out)
{
	const uint64_t run_bits = ENTRY_LOW_FLAGS | masks->leaf_if | masks->cbit | masks->nx | masks->leaf_reserved;
	const uint64_t leaf_address = masks->leaf_address, page_nbytes = masks->page_nbytes;
	uint32_t index = 0;
	const struct sk_run *begin = out;

	while (index < nentries) {
		uint64_t raw = widen(load(table, index, entry_nbytes), pse_high), gpa;
		uint32_t first = index++, flags;
		bool leaf = all_leaves || raw & masks->leaf_if;

		if (!(raw & ENTRY_PRESENT)) {
			while (index % GROUP == 0 && index + GROUP <= nentries && all_empty(table, index, entry_nbytes))
				index += GROUP;
			continue;
		}
		flags = decode(masks, raw, leaf, &gpa);
		if (leaf) {
			uint64_t same_bits = raw & run_bits, next_gpa = gpa + page_nbytes;

			for (; index < nentries; index++, next_gpa += page_nbytes) {
				raw = widen(load(table, index, entry_nbytes), pse_high);
				if ((raw & leaf_address) != next_gpa || (raw & run_bits) != same_bits)
					break;
			}
		}
		out->gpa = gpa;
		out->page_nbytes = leaf ? page_nbytes : 0;
		out->flags = flags;
		out->first = (uint16_t)first;
		out->count = (uint16_t)(index - first);
		out++;
	}
	return (size_t)(out - begin);
}

size_t sk_walk_table(const struct sk_paging *paging, uint32_t level, const void *table, struct sk_run *out)
{
	const uint32_t nentries = sk_walk_nentries(paging, level);
	struct masks masks;

	if (!masks_init(&masks, paging, level))
		return 0;
	if (shape_of(paging)->entry_nbytes != sizeof(uint64_t))
		return table_runs(&masks, table, nentries, sizeof(uint32_t), masks.pse_high, false, out);
	if (level == 1)
		return table_runs(&masks, table, nentries, sizeof(uint64_t), 0, true, out);
	return table_runs(&masks, table, nentries, sizeof(uint64_t), 0, false, out);
}
