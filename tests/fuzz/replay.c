/* Run a fuzz target over files, without a fuzzer: replay FILE... */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "../csrc/expect.h"

#define MAX_NBYTES 65536

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		FILE *file = fopen(argv[i], "rb");
		uint8_t *data = malloc(MAX_NBYTES), *exact;
		size_t size;

		EXPECT(file && data);
		size = fread(data, 1, MAX_NBYTES, file);
		fclose(file);
		/* of the exact size, so that a read beyond the end is seen */
		exact = realloc(data, size ? size : 1);
		EXPECT(exact);
		fprintf(stderr, "%s\n", argv[i]);
		LLVMFuzzerTestOneInput(exact, size);
		free(exact);
	}
	printf("%d inputs\n", argc - 1);
	return argc < 2;
}
