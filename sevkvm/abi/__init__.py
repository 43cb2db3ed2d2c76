"""Numbers and structs of the kernel, the processor and ELF: nothing here does I/O."""
