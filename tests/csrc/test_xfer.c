/* Copying memory: counts are exact up to the first byte that cannot be reached. */
#define _GNU_SOURCE
#include "../../csrc/sk_xfer.h"

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

	EXPECT(sk_write(getpid(), hva, "abc", 3, &done, &err) == SK_OK && memcmp(area, "abc", 3) == 0);
	EXPECT(mprotect(area, PAGE, PROT_READ) == 0);
	EXPECT(sk_write(getpid(), hva, "xyz", 3, &done, &err) == SK_ERR_FAULT && area[0] == 'a');

	child = fork();
	EXPECT(child >= 0);
	if (child == 0)
		_exit(0);
	EXPECT(waitpid(child, NULL, 0) == child);
	EXPECT(sk_read(child, hva, buffer, 1, &done, &err) == SK_ERR_NO_PROCESS && done == 0);
	munmap(area, 4 * PAGE);
	return 0;
}
