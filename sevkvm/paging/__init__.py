"""Guest page tables: translate one address, list a whole address space."""
