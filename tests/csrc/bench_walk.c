/*
 * How fast page tables are decoded, beside a plain read of the same pages. For each kind of table and each way:
 * "KIND WAY ENTRIES NS NS ..." with the time of each run.
 *
 *     bench_walk NTABLES RUNS
 *
 * Ways: sum (64-bit words added up: a plain read), decode (sk_walk_table), list (the engine that `sevkvm mem` uses,
 * from tables that lie in memory to runs, each table copied once).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../../csrc/sk_list.h"
#include "../../csrc/sk_walk.h"
#include "expect.h"

#define NENTRIES 512
#define PAGE 4096ULL
#define LEAF 0x8000000000000063ULL
#define TABLE 0x67ULL
#define NUPPER 34 /* tables above: 1, 1 and up to 32 */

enum kind { CONTIGUOUS, EVERY_8TH, ANYWHERE, EMPTY };

static const char *const kinds[] = { "contiguous", "every-8th", "anywhere", "empty" };
static const struct sk_paging paging = { SK_PAGING_4LEVEL, 1, 0, 0x000ffffffffff000ULL };

/* At gpa 0: the root, the table below it, those below that, then the page tables. */
static uint64_t (*tables)[NENTRIES];
static size_t ntables;
static volatile uint64_t sink;

static uint64_t leaf(enum kind kind, uint64_t nth)
{
	switch (kind) {
	case CONTIGUOUS:
		return nth * PAGE | LEAF;
	case EVERY_8TH:
		return nth % 8 ? 0 : nth * PAGE | LEAF;
	case ANYWHERE:
		return (nth * 0x9e3779b1ULL & 0xfffffff) * PAGE | LEAF;
	case EMPTY:
		break;
	}
	return 0;
}

static void fill(enum kind kind)
{
	memset(tables, 0, NUPPER * PAGE);
	tables[0][0] = PAGE | TABLE;
	for (uint64_t i = 0; i < NUPPER - 2; i++)
		tables[1][i] = (i + 2) * PAGE | TABLE;
	for (uint64_t i = 0; i < ntables; i++)
		tables[2 + i / NENTRIES][i % NENTRIES] = (i + NUPPER) * PAGE | TABLE;
	for (uint64_t i = 0; i < ntables * NENTRIES; i++)
		tables[NUPPER + i / NENTRIES][i % NENTRIES] = leaf(kind, i);
}

static void sum(void)
{
	const uint64_t *entries = tables[NUPPER];
	uint64_t total = 0;

	for (size_t i = 0; i < ntables * NENTRIES; i++)
		total += entries[i];
	sink = total;
}

static void decode(void)
{
	static struct sk_run runs[SK_MAX_ENTRIES];
	uint64_t total = 0;

	for (size_t i = 0; i < ntables; i++)
		total += sk_walk_table(&paging, 1, tables[NUPPER + i], runs);
	sink = total;
}

static void list(void)
{
	static char buffer[1 << 16];
	const struct sk_list_options options = { .kind = SK_LIST_RUNS, .tell_apart = SK_WRITABLE | SK_USER,
		                                 .cache_pages = 8192, .summaries = 1 << 21 };
	const struct sk_list_range all = { 0, UINT64_MAX };
	enum sk_list_state state;
	struct sk_list *listing;
	uint64_t total = 0;
	size_t used;

	EXPECT(sk_list_create(&paging, &options, &all, 1, &listing, NULL) == SK_OK);
	while ((state = sk_list_step(listing, buffer, sizeof buffer, &used)) != SK_LIST_DONE) {
		const uint64_t *gpas;
		size_t nwanted = sk_list_wanted(listing, &gpas);

		total += used;
		for (size_t i = 0; state == SK_LIST_TABLES && i < nwanted; i++)
			sk_list_supply(listing, tables[gpas[i] / PAGE]);
	}
	sink = total + used;
	sk_list_destroy(listing);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000ULL + (uint64_t)now.tv_nsec;
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} ways[] = { { "sum", sum }, { "decode", decode }, { "list", list } };
	int runs;

	EXPECT(argc == 3);
	ntables = (size_t)atol(argv[1]);
	runs = atoi(argv[2]);
	EXPECT(ntables && ntables <= (NUPPER - 2) * NENTRIES && runs > 0);
	tables = aligned_alloc(PAGE, (NUPPER + ntables) * PAGE);
	EXPECT(tables);
	for (size_t kind = 0; kind < sizeof kinds / sizeof kinds[0]; kind++) {
		fill((enum kind)kind);
		for (size_t way = 0; way < sizeof ways / sizeof ways[0]; way++) {
			ways[way].run(); /* warms up */
			printf("%s %s %zu", kinds[kind], ways[way].name, ntables * NENTRIES);
			for (int i = 0; i < runs; i++) {
				uint64_t began = now_ns();

				ways[way].run();
				printf(" %llu", (unsigned long long)(now_ns() - began));
			}
			putchar('\n');
		}
	}
	free(tables);
	return 0;
}
