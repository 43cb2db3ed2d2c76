#include "sk_rights.h"

#include <stdbool.h>

#define NENTRIES 512

/* Four entries of 8 bytes, two to a register. */
struct entries {
	uint64_t low __attribute__((vector_size(16)));
	uint64_t high __attribute__((vector_size(16)));
};

uint64_t sk_rights_bits(const struct sk_paging *paging)
{
	struct sk_entry bare, other;
	uint64_t bits = SK_PRESENT;

	if (sk_walk_nentries(paging, 1) != NENTRIES)
		return 0;
	sk_walk_entry(paging, 1, SK_PRESENT, &bare);
	for (uint32_t bit = 1; bit < 64; bit++) {
		sk_walk_entry(paging, 1, SK_PRESENT | 1ULL << bit, &other);
		if (other.flags != bare.flags)
			bits |= 1ULL << bit;
	}
	return bits;
}

/* Are all entries of a page table alike in these bits? Most are, which is seen much faster than they are decoded. */
static bool all_alike(const void *table, uint64_t bits)
{
	const struct entries *entries = table;
	struct entries any = entries[0], all = entries[0];

	for (uint32_t i = 1; i < NENTRIES / 4; i++) {
		any.low |= entries[i].low;
		all.low &= entries[i].low;
		any.high |= entries[i].high;
		all.high &= entries[i].high;
	}
	any.low |= any.high;
	all.low &= all.high;
	return !(((any.low[0] | any.low[1]) ^ (all.low[0] & all.low[1])) & bits);
}

uint32_t sk_rights_runs(const struct sk_paging *paging, uint64_t bits, const void *table, struct sk_run *runs)
{
	const uint64_t *raw = table;
	uint32_t nruns = 0, next = 0;
	struct sk_entry entry;

	for (uint32_t index = 0; index < NENTRIES; index = next) {
		next = index + 1;
		if (!(raw[index] & SK_PRESENT))
			continue;
		if (!index && all_alike(table, bits))
			next = NENTRIES;
		while (next < NENTRIES && !((raw[next] ^ raw[index]) & bits))
			next++;
		sk_walk_entry(paging, 1, raw[index], &entry);
		runs[nruns++] = (struct sk_run){ 0, entry.page_nbytes, entry.flags, (uint16_t)index,
		                                 (uint16_t)(next - index) };
	}
	return nruns;
}
