/* Memory of the row's process: mapped, not mapped, protected, shared. */
#define _GNU_SOURCE
#include "conformance.h"

#include <sys/mman.h>
#include <unistd.h>

/*
 * Where the kernel places nothing by itself, so that a hole stays one. Addresses here are used once.
 */
static uint8_t *secluded(size_t npages)
{
	static uint8_t *next = (uint8_t *)0x200000000000UL;
	uint8_t *where = next;

	next += (npages + 16) * PAGE;
	return where;
}

static void *map(size_t npages, int protection, int flags, int fd)
{
	void *where = mmap(NULL, npages * PAGE, protection, flags, fd, 0);

	if (where == MAP_FAILED)
		FAIL("could not begin: mmap gives %s", conf_errno(errno));
	return where;
}

void *conf_pages(size_t npages)
{
	return map(npages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

void *conf_shared_pages(size_t npages)
{
	return map(npages, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
}

int conf_memfd(size_t npages)
{
	int fd = memfd_create("conformance", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, (off_t)(npages * PAGE)))
		FAIL("could not begin: no memfd: %s", conf_errno(errno));
	return fd;
}

void *conf_file_pages(int fd, size_t npages)
{
	return map(npages, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
}

void *conf_pages_then_hole(size_t npages)
{
	void *wanted = secluded(npages);
	void *where = mmap(wanted, npages * PAGE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	if (where != wanted)
		FAIL("could not begin: mmap at a fixed address gives %s", conf_errno(errno));
	return where;
}

void *conf_protected(size_t npages, int protection)
{
	void *pages = conf_pages(npages);

	memset(pages, 0, npages * PAGE); /* present, so that only the protection can be in the way */
	if (mprotect(pages, npages * PAGE, protection))
		FAIL("could not begin: mprotect gives %s", conf_errno(errno));
	return pages;
}

void *conf_hole(void)
{
	uint8_t *before = conf_pages_then_hole(1);

	munmap(before, PAGE);
	return before;
}

void conf_fill(void *buffer, size_t nbytes, unsigned int seed)
{
	uint32_t state = seed * 2654435761U + 12345U;
	uint8_t *bytes = buffer;

	for (size_t i = 0; i < nbytes; i++) {
		state = state * 1664525U + 1013904223U;
		bytes[i] = (uint8_t)(state >> 24);
	}
}

bool conf_is_all(const void *buffer, int byte, size_t nbytes)
{
	const uint8_t *bytes = buffer;

	for (size_t i = 0; i < nbytes; i++)
		if (bytes[i] != byte)
			return false;
	return true;
}

size_t conf_diff(const void *a, const void *b, size_t nbytes)
{
	const uint8_t *left = a, *right = b;
	size_t i = 0;

	while (i < nbytes && left[i] == right[i])
		i++;
	return i;
}
