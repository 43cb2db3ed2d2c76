"""The cffi recipe: API mode, one abi3 module. Everything it compiles stands beside it."""

from __future__ import annotations

import os
from pathlib import Path

from cffi import FFI

CSRC = Path(__file__).resolve().parent
SOURCES = sorted(CSRC.glob("sk_*.c"))
HEADERS = [source.with_suffix(".h").name for source in SOURCES]
ABI3_FLOOR = "0x030A0000"  # Python 3.10

ffibuilder = FFI()
ffibuilder.cdef((CSRC / "native.cdef.h").read_text())
ffibuilder.set_source(
    "sevkvm._native",
    "".join(f'#include "{name}"\n' for name in HEADERS),
    # setuptools wants paths relative to setup.py
    sources=[os.path.relpath(source) for source in SOURCES],
    depends=[os.path.relpath(header) for header in CSRC.glob("*.h")],
    include_dirs=[os.path.relpath(CSRC)],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-fno-strict-aliasing"],
    define_macros=[("Py_LIMITED_API", ABI3_FLOOR)],
    py_limited_api=True,
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
