"""A cpio archive in the ``newc`` format, which Linux unpacks as its initial root file system.

Source: Linux Documentation/driver-api/early-userspace/buffer-format.rst (v6.1).
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_MAGIC: Final = b"070701"
_TRAILER: Final = "TRAILER!!!"


@dataclass(frozen=True)
class Entry:
    """A file, directory or device node. ``path`` has no leading slash; ``mode`` includes the file type."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(path: str) -> Entry:
    """A directory that everybody may search."""
    return Entry(path, stat.S_IFDIR | 0o755)


def program(path: str, data: bytes) -> Entry:
    """An executable file."""
    return Entry(path, stat.S_IFREG | 0o755, data)


def character_device(path: str, major: int, minor: int) -> Entry:
    """A character device node, for root only."""
    return Entry(path, stat.S_IFCHR | 0o600, device=(major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """The archive, its trailer included; parents must come before what they contain."""
    listed = [*entries, Entry(_TRAILER, 0)]
    # Inode 0 would be fine too, but equal inodes of files with two links would be taken for hard links.
    return b"".join(_member(entry, inode) for inode, entry in enumerate(listed, 1))


def _member(entry: Entry, inode: int) -> bytes:
    name = entry.path.encode() + b"\0"
    is_directory = stat.S_ISDIR(entry.mode)
    fields = (
        inode,
        entry.mode,
        0,  # uid
        0,  # gid
        2 if is_directory else 1,  # links
        0,  # mtime: the same input makes the same archive
        len(entry.data),
        0,
        0,  # of the device that holds the file
        *entry.device,
        len(name),
        0,  # no checksum in this format
    )
    header = _MAGIC + b"".join(b"%08X" % value for value in fields)
    return _padded(header + name) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
