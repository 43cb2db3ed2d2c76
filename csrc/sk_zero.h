/* Pages that are all zero. */
#ifndef SK_ZERO_H
#define SK_ZERO_H

#include <stddef.h>
#include <stdint.h>

#define SK_ZERO_PAGE 4096

/*
 * How many of npages belong together, and so on: runs[0] pages with data, runs[1] of zeros, runs[2] with data ...
 * The first may be 0, no other is. runs has room for npages + 1. Returns how many there are.
 */
size_t sk_zero_runs(const void *pages, size_t npages, uint32_t *runs);

#endif
