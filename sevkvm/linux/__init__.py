"""What we know of a Linux guest: its VMCOREINFO note, and its page tables where no register leads to them."""
