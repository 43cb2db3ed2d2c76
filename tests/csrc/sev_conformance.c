/*
 * Does this host's KVM answer SEV ioctls as Linux does, check by check?
 *
 *   cc -o sev_conformance sev_conformance.c conformance/?*.c -lpthread
 *   ./sev_conformance [--generation old|new|auto] [--only ROW]... [--destructive] [--broken HOW] [--sev PATH]
 *   ./sev_conformance --list [--generation old|new]
 *
 * Prints TAP: "ok N - row", "not ok N - row" with a diagnostic line, "ok N - row # SKIP reason". Ends with 0 if no row
 * failed. Raw ioctls only; needs /dev/kvm and /dev/sev, real or pretended, and nothing else.
 *
 * The generations: "old" is Linux 5.11 to 7.1, "new" has the rewrite of the debug commands of May 2026. "auto" asks the
 * kernel for the difference. Rows that differ between them come in two, and only those of one run. Rows that could
 * harm a real host (a kernel of the old generation writes outside of the page that it was given) are left out unless
 * --destructive is given, which is meant for pretended hosts. --broken: this host is made to fail (rows_broken.c).
 */
#include "conformance/harness.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

#define MAX_ONLY 64

static const struct row *const tables[] = {
	rows_order,    rows_debug_errors, rows_debug_pins, rows_debug_data, rows_debug_old, rows_fd,
	rows_firmware, rows_broken,	  rows_launch,	   rows_measure,    rows_secret,    rows_regions,
	rows_mirror,   rows_vcpu,	  rows_types,	   rows_device,	    rows_platform,
};

struct options {
	unsigned int generations; /* ON_OLD, ON_NEW, both if there was no choice yet */
	bool list, destructive;
	const char *only[MAX_ONLY];
	int only_count;
};

static void usage(const char *program)
{
	fprintf(stderr,
		"usage: %s [--generation old|new|auto] [--list] [--only ROW]... [--destructive] [--broken HOW]\n"
		"       [--sev PATH]\n",
		program);
	exit(2);
}

static bool is_chosen(const struct options *options, const struct row *row)
{
	if (!(row->when & options->generations))
		return false;
	for (int i = 0; i < options->only_count; i++)
		if (strcmp(options->only[i], row->name) == 0)
			return true;
	return options->only_count == 0;
}

static const struct row *find(const char *name)
{
	for (size_t i = 0; i < sizeof(tables) / sizeof(tables[0]); i++)
		for (const struct row *row = tables[i]; row->name; row++)
			if (strcmp(row->name, name) == 0)
				return row;
	return NULL;
}

static int run_one(const struct options *options, const struct row *row, int number)
{
	char message[MESSAGE_NBYTES] = "it may harm a real host; --destructive runs it";
	enum verdict verdict = ROW_SKIPPED;

	if (!(row->when & DESTRUCTIVE) || options->destructive)
		verdict = run_row(row, message);
	printf("%s %d - %s", verdict == ROW_FAILED ? "not ok" : "ok", number, row->name);
	if (verdict == ROW_SKIPPED)
		printf(" # SKIP %s", message);
	printf("\n");
	if (verdict == ROW_FAILED)
		printf("# %s\n# %s\n", row->what, message);
	fflush(stdout);
	return verdict == ROW_FAILED;
}

/* Every chosen row, or only their names; the number of failures. */
static int walk(const struct options *options)
{
	int number = 0, failures = 0;

	for (size_t i = 0; i < sizeof(tables) / sizeof(tables[0]); i++) {
		for (const struct row *row = tables[i]; row->name; row++) {
			if (!is_chosen(options, row))
				continue;
			number++;
			if (options->list)
				printf("%-40s %s\n", row->name, row->what);
			else
				failures += run_one(options, row, number);
		}
	}
	if (!options->list)
		printf("1..%d\n", number);
	return failures;
}

static unsigned int generation_named(const char *name)
{
	if (strcmp(name, "old") == 0)
		return ON_OLD;
	if (strcmp(name, "new") == 0)
		return ON_NEW;
	return strcmp(name, "auto") == 0 ? ON_ANY : 0;
}

static void parse(int argc, char **argv, struct options *options)
{
	static const struct option longs[] = {
		{"generation", required_argument, NULL, 'g'}, {"list", no_argument, NULL, 'l'},
		{"only", required_argument, NULL, 'o'},	      {"destructive", no_argument, NULL, 'd'},
		{"sev", required_argument, NULL, 's'},	      {"after-exec", required_argument, NULL, 'x'},
		{"broken", required_argument, NULL, 'b'},     {NULL, 0, NULL, 0},
	};
	int choice;

	while ((choice = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		if (choice == 'g')
			options->generations = generation_named(optarg);
		else if (choice == 'l')
			options->list = true;
		else if (choice == 'd')
			options->destructive = true;
		else if (choice == 'b')
			conf.broken = optarg;
		else if (choice == 's')
			conf.sev_path = optarg;
		else if (choice == 'x')
			exit(after_exec(optarg));
		else if (choice == 'o' && options->only_count < MAX_ONLY && find(optarg))
			options->only[options->only_count++] = optarg;
		else
			usage(argv[0]);
	}
	if (optind != argc || !options->generations)
		usage(argv[0]);
}

int main(int argc, char **argv)
{
	struct options options = {.generations = ON_ANY};
	char reason[MESSAGE_NBYTES];

	conf.sev_path = "/dev/sev";
	conf.program = "/proc/self/exe";
	parse(argc, argv, &options);
	if (options.list)
		return walk(&options) != 0;
	if (options.generations == ON_ANY) {
		enum generation found = probe_generation(reason);

		if (!found) {
			printf("Bail out! %s\n", reason);
			return 1;
		}
		options.generations = found == KERNEL_NEW ? ON_NEW : ON_OLD;
	}
	conf.generation = options.generations == ON_NEW ? KERNEL_NEW : KERNEL_OLD;
	printf("# generation: %s\n", conf.generation == KERNEL_NEW ? "new" : "old");
	return walk(&options) != 0;
}
