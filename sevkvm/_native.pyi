"""The compiled module as mypy sees it: cffi checks every call at run time."""

from typing import Any

from cffi import FFI

ffi: FFI
lib: Any
