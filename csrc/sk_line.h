/* Lines of QEMU's monitor, byte for byte as its version 7.2 prints them: `info tlb` and `info mem`. */
#ifndef SK_LINE_H
#define SK_LINE_H

#include <stddef.h>
#include <stdint.h>

#define SK_LINE_LEAF_NBYTES 45 /* newline included, no 0 after it */
#define SK_LINE_RUN_NBYTES 55

/* gva, gpa and the entry's own bits. large: its bit 7 says so; in an entry of level 1 that bit means something else. */
void sk_line_leaf(char out[SK_LINE_LEAF_NBYTES], uint64_t gva, uint64_t gpa, uint64_t entry, int large);

/* flags: SK_USER and SK_WRITABLE count. */
void sk_line_run(char out[SK_LINE_RUN_NBYTES], uint64_t start, uint64_t end, uint64_t nbytes, uint32_t flags);

#endif
