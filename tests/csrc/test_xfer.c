/* Copying memory: counts are exact up to the first byte that cannot be reached. */
#define _GNU_SOURCE
#include "../../csrc/sk_xfer.h"

#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "expect.h"

#define PAGE 4096

/* Four pages of 0xa5; the third is unreadable. */
static unsigned char *pages_with_a_hole(void)
{
	unsigned char *area = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	EXPECT(area != MAP_FAILED);
	memset(area, 0xa5, 4 * PAGE);
	EXPECT(mprotect(area + 2 * PAGE, PAGE, PROT_NONE) == 0);
	return area;
}

/* In any order, one of them twice, more than are read at once; the third page of the area and page 0 are missed. */
static void test_pages(const unsigned char *area)
{
	enum { NPAGES = 600 };
	static unsigned char out[NPAGES][PAGE], readable[NPAGES];
	uint64_t hvas[NPAGES], hva = (uint64_t)(uintptr_t)area;
	struct sk_error err;

	for (size_t i = 0; i < NPAGES; i++)
		hvas[i] = hva + (i % 7 == 3 ? 2 : i % 2) * PAGE;
	hvas[0] = 0;
	hvas[1] = 0;
	hvas[NPAGES - 1] = hva + 2 * PAGE;
	memset(readable, 7, sizeof readable);
	EXPECT(sk_read_pages(getpid(), hvas, NPAGES, out, readable, &err) == SK_OK);
	for (size_t i = 0; i < NPAGES; i++) {
		bool missed = i < 2 || i % 7 == 3 || i == NPAGES - 1;

		EXPECT(readable[i] == !missed);
		EXPECT(missed || (out[i][0] == 0xa5 && out[i][PAGE - 1] == 0xa5));
	}
	EXPECT(sk_read_pages(getpid(), hvas, 0, out, readable, &err) == SK_OK);
}

int main(void)
{
	unsigned char *area = pages_with_a_hole();
	uint64_t hva = (uint64_t)(uintptr_t)area;
	unsigned char buffer[4 * PAGE] = { 0 };
	struct sk_error err;
	size_t done = 99;
	pid_t child;

	EXPECT(sk_read(getpid(), hva + 16, buffer, sizeof buffer - 16, &done, &err) == SK_ERR_FAULT);
	EXPECT(done == 2 * PAGE - 16 && err.address == hva + 2 * PAGE);
	EXPECT(buffer[done - 1] == 0xa5 && buffer[done] == 0);

	EXPECT(sk_read(getpid(), hva, buffer, 2 * PAGE, &done, &err) == SK_OK && done == 2 * PAGE);
	EXPECT(sk_read(getpid(), hva + 2 * PAGE, buffer, 1, &done, NULL) == SK_ERR_FAULT && done == 0);
	EXPECT(sk_read(getpid(), hva, buffer, 0, &done, &err) == SK_OK && done == 0);

	test_pages(area);

	EXPECT(sk_write(getpid(), hva, "abc", 3, &done, &err) == SK_OK && memcmp(area, "abc", 3) == 0);
	EXPECT(mprotect(area, PAGE, PROT_READ) == 0);
	EXPECT(sk_write(getpid(), hva, "xyz", 3, &done, &err) == SK_ERR_FAULT && area[0] == 'a');

	child = fork();
	EXPECT(child >= 0);
	if (child == 0)
		_exit(0);
	EXPECT(waitpid(child, NULL, 0) == child);
	EXPECT(sk_read_pages(child, &hva, 1, buffer, buffer, &err) == SK_ERR_NO_PROCESS);
	EXPECT(sk_read(child, hva, buffer, 1, &done, &err) == SK_ERR_NO_PROCESS && done == 0);
	munmap(area, 4 * PAGE);
	return 0;
}
