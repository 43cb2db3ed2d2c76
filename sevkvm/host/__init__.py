"""The machine we run on: processes, the deputy thread, KVM file descriptors, the monitor of a VMM."""
