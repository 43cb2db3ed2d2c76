"""Other processes' descriptor tables, through /proc.

Plain os calls on strings: this stands in the way of every KVM_RUN, and path objects would cost more than the calls.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

Identity = tuple[int, int]  # (device, inode): tells memfds apart, which have an inode each


def link(tid: int, fd: int) -> str:
    """What a descriptor's link says; empty if there is none, or we may not look."""
    try:
        return os.readlink(f"/proc/{tid}/fd/{fd}")  # noqa: PTH115  see above
    except OSError:
        return ""


def identity(tid: int, fd: int) -> Identity | None:
    """Which file is open there; None if there is none, or we may not look."""
    try:
        stat = os.stat(f"/proc/{tid}/fd/{fd}")  # noqa: PTH116  see above
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def numbers(tid: int) -> list[int]:
    """The descriptors in use, ascending; empty if the table cannot be read."""
    try:
        return sorted(int(name) for name in os.listdir(f"/proc/{tid}/fd"))  # noqa: PTH208  see above
    except OSError:
        return []


def tables(pid: int) -> Iterator[int]:
    """Whose descriptor tables to look at for a process's: its own, then its threads', which may have others."""
    yield pid
    try:
        yield from (int(name) for name in os.listdir(f"/proc/{pid}/task") if name != str(pid))  # noqa: PTH208
    except OSError:
        return
