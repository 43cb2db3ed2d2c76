"""The questions an engineer knows from QEMU's monitor, and its answers' exact shape."""
