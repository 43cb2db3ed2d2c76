#include "sk_zero.h"

#include <stdbool.h>
#include <string.h>

static bool is_zero(const char *page)
{
	uint64_t first;

	memcpy(&first, page, sizeof first);
	/* all words are equal if each equals the one before */
	return first == 0 && memcmp(page, page + sizeof first, SK_ZERO_PAGE - sizeof first) == 0;
}

size_t sk_zero_runs(const void *pages, size_t npages, uint32_t *runs)
{
	const char *page = pages;
	bool zeros = false;
	size_t nruns = 0;
	uint32_t length = 0;

	for (; npages; npages--, page += SK_ZERO_PAGE) {
		if (is_zero(page) != zeros) {
			runs[nruns++] = length;
			length = 0;
			zeros = !zeros;
		}
		length++;
	}
	if (length)
		runs[nruns++] = length;
	return nruns;
}
