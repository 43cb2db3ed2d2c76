/* Runs of zero pages against a byte-wise look, for every pattern of up to ten pages and every byte of one. */
#include "../../csrc/sk_zero.h"

#include <string.h>

#include "expect.h"

#define PAGES 10

static uint8_t memory[PAGES * SK_ZERO_PAGE + 3];

static void check(unsigned pattern, size_t npages, size_t misalignment)
{
	uint8_t *pages = memory + misalignment;
	uint32_t runs[PAGES + 2];
	size_t nruns, at = 0;

	memset(pages, 0, npages * SK_ZERO_PAGE);
	for (size_t i = 0; i < npages; i++)
		if (pattern >> i & 1)
			pages[i * SK_ZERO_PAGE + i * 400] = 1;
	runs[npages + 1] = 0xeeeeeeee;
	nruns = sk_zero_runs(pages, npages, runs);
	EXPECT(nruns <= npages + 1 && runs[npages + 1] == 0xeeeeeeee);
	for (size_t run = 0; run < nruns; run++) {
		EXPECT(run == 0 || runs[run] > 0);
		for (uint32_t i = 0; i < runs[run]; i++, at++)
			EXPECT((pattern >> at & 1) == (run % 2 == 0));
	}
	EXPECT(at == npages);
}

int main(void)
{
	uint32_t runs[2];

	for (size_t npages = 0; npages <= PAGES; npages++)
		for (unsigned pattern = 0; pattern < 1u << npages; pattern++)
			check(pattern, npages, pattern % 4);
	memset(memory, 0, sizeof memory);
	for (size_t byte = 0; byte < SK_ZERO_PAGE; byte++) {
		memory[byte] = 0x80;
		EXPECT(sk_zero_runs(memory, 1, runs) == 1 && runs[0] == 1);
		memory[byte] = 0;
	}
	EXPECT(sk_zero_runs(memory, 1, runs) == 2 && runs[0] == 0 && runs[1] == 1);
	return 0;
}
