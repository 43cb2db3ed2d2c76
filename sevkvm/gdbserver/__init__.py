"""gdb's remote protocol over a Guest: packets without I/O, then commands, then sockets."""
