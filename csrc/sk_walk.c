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

#define MIN_LEVEL 1
#define MAX_LEVEL 5
#define PAGE_SHIFT 12
#define INDEX_BITS 9

_Static_assert(SK_PRESENT == 1 && SK_WRITABLE == 2 && SK_USER == 4, "decode() copies these three as they are");
_Static_assert(sizeof(struct sk_run) == 24 && offsetof(struct sk_run, page_nbytes) == 8 &&
               offsetof(struct sk_run, flags) == 16 && offsetof(struct sk_run, first) == 20 &&
               offsetof(struct sk_run, count) == 22, "Python unpacks arrays of struct sk_run");

/* An entry is a leaf when any of these bits is set in it: at level 1 every present one, at 4 and 5 none. */
static const uint64_t leaf_bits[MAX_LEVEL + 1] = {
	[1] = ENTRY_PRESENT,
	[2] = ENTRY_PS,
	[3] = ENTRY_PS,
};

/* What decoding the entries of one level takes, worked out once a table. */
struct masks {
	uint64_t leaf_if;
	uint64_t cbit;
	uint64_t nx;
	uint64_t page_nbytes;
	uint64_t table_address;
	uint64_t leaf_address;
	uint64_t table_reserved;
	uint64_t leaf_reserved;
};

static uint32_t level_shift(uint32_t level)
{
	return PAGE_SHIFT + INDEX_BITS * (level - 1);
}

static bool masks_init(struct masks *masks, const struct sk_paging *paging, uint32_t level)
{
	uint64_t reserved = ENTRY_ADDRESS & ~(paging->address_mask | paging->cbit_mask);
	uint64_t offset_mask;

	if (level < MIN_LEVEL || level > MAX_LEVEL)
		return false;
	masks->page_nbytes = 1ULL << level_shift(level);
	offset_mask = masks->page_nbytes - 1;
	masks->leaf_if = leaf_bits[level];
	masks->cbit = paging->cbit_mask;
	masks->nx = paging->nx ? ENTRY_NX : 0;
	if (!paging->nx)
		reserved |= ENTRY_NX;
	masks->table_address = paging->address_mask & ENTRY_ADDRESS & ~paging->cbit_mask;
	masks->leaf_address = masks->table_address & ~offset_mask;
	/* where no leaf can be, the bit that would make one is reserved */
	masks->table_reserved = reserved | (masks->leaf_if ? 0 : ENTRY_PS);
	/* a large page's unused low address bits are reserved, but bit 12 is PAT */
	masks->leaf_reserved = reserved | (ENTRY_ADDRESS & offset_mask & ~(LARGE_PAGE_PAT | paging->cbit_mask));
	return true;
}

/* Flags and address of a present entry. */
static inline uint32_t decode(const struct masks *masks, uint64_t raw, uint64_t *gpa)
{
	bool leaf = raw & masks->leaf_if;
	uint32_t flags = (uint32_t)(raw & ENTRY_LOW_FLAGS);

	flags |= raw & masks->nx ? SK_NX : 0;
	flags |= raw & masks->cbit ? SK_PRIVATE : 0;
	flags |= leaf ? SK_LEAF : 0;
	flags |= raw & (leaf ? masks->leaf_reserved : masks->table_reserved) ? SK_RESERVED : 0;
	*gpa = raw & (leaf ? masks->leaf_address : masks->table_address);
	return flags;
}

uint32_t sk_walk_index(uint64_t gva, uint32_t level)
{
	if (level < MIN_LEVEL || level > MAX_LEVEL)
		return 0;
	return (uint32_t)(gva >> level_shift(level)) & (SK_TABLE_ENTRIES - 1);
}

int sk_walk_canonical(const struct sk_paging *paging, uint64_t gva)
{
	uint64_t upper;

	if (paging->levels < MIN_LEVEL || paging->levels > MAX_LEVEL)
		return 0;
	/* the highest translated bit and all above it are equal */
	upper = gva >> (level_shift(paging->levels + 1) - 1);
	return upper == 0 || upper == UINT64_MAX >> (level_shift(paging->levels + 1) - 1);
}

void sk_walk_entry(const struct sk_paging *paging, uint32_t level, uint64_t raw, struct sk_entry *out)
{
	struct masks masks;

	memset(out, 0, sizeof *out);
	if (!(raw & ENTRY_PRESENT) || !masks_init(&masks, paging, level))
		return;
	out->flags = decode(&masks, raw, &out->gpa);
	if (out->flags & SK_LEAF)
		out->page_nbytes = masks.page_nbytes;
}

size_t sk_walk_table(const struct sk_paging *paging, uint32_t level, const uint64_t *table,
                     struct sk_run *out)
{
	const uint64_t no_gpa = 1; /* no entry's address */
	uint64_t next_gpa = no_gpa; /* what the next entry would continue the last run with: this address, */
	uint64_t same_bits = 0;     /* and these of run_bits */
	uint64_t run_bits;
	struct masks masks;
	size_t nruns = 0;

	if (!masks_init(&masks, paging, level))
		return 0;
	run_bits = ENTRY_LOW_FLAGS | masks.leaf_if | masks.cbit | masks.nx | masks.leaf_reserved;
	for (uint32_t index = 0; index < SK_TABLE_ENTRIES; index++) {
		struct sk_run *run;
		uint64_t raw, gpa;
		uint32_t flags;

		/* the bytes come from anywhere, aligned or not */
		memcpy(&raw, (const char *)table + index * sizeof raw, sizeof raw);
		if ((raw & masks.leaf_address) == next_gpa && (raw & run_bits) == same_bits) {
			out[nruns - 1].count++;
			next_gpa += masks.page_nbytes;
			continue;
		}
		next_gpa = no_gpa;
		if (!(raw & ENTRY_PRESENT))
			continue;
		flags = decode(&masks, raw, &gpa);
		run = &out[nruns++];
		run->gpa = gpa;
		run->page_nbytes = 0;
		run->flags = flags;
		run->first = (uint16_t)index;
		run->count = 1;
		if (flags & SK_LEAF) {
			run->page_nbytes = masks.page_nbytes;
			next_gpa = gpa + masks.page_nbytes;
			same_bits = raw & run_bits;
		}
	}
	return nruns;
}
