"""Files of the lab's cache: private to the user, complete under their final name."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_directory() -> Path:
    """``$XDG_CACHE_HOME/sevkvm``, else ``~/.cache/sevkvm`` (XDG Base Directory Specification 0.8)."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(home) if home.startswith("/") else Path.home() / ".cache"
    return base / "sevkvm"


def write_private(path: Path, data: bytes) -> Path:
    """Write a file of mode 0600 under a temporary name and rename it; returns ``path``."""
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with open(fd, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Wait until no other process makes anything where ``path`` is: what takes a minute is not made twice at once.

    Must not be nested for one directory.
    """
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)  # the kernel ends it with us
        yield
    finally:
        os.close(directory)


@contextmanager
def publish(final: Path) -> Iterator[Path]:
    """A new directory (mode 0700) that becomes ``final`` at the end of the ``with``, or vanishes on an error.

    If somebody else was faster, theirs stays.
    """
    directory = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}-"))
    try:
        yield directory
        try:
            directory.rename(final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def prune(cache: Path, pattern: str, seconds: float) -> None:
    """Remove the directories of the cache that nobody has touched for so long."""
    for path in cache.glob(pattern):
        if path.is_dir() and time.time() - path.stat().st_mtime > seconds:
            shutil.rmtree(path, ignore_errors=True)


def mapped(path: Path, *, writable: bool = False) -> memoryview:
    """The file's bytes as memory, mapped until the last view of them is gone; ``writable`` changes the file."""
    access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
    with path.open("r+b" if writable else "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=access))


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file to a new one of mode 0600, holes as holes: most of a guest's RAM was never touched."""
    with source.open("rb") as reader:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(fd, "wb"):
            nbytes = os.fstat(reader.fileno()).st_size
            os.truncate(fd, nbytes)
            end = 0
            while end < nbytes:
                start = _next_data(reader.fileno(), end)
                if start is None:
                    return
                end = os.lseek(reader.fileno(), start, os.SEEK_HOLE)
                while start < end:
                    start += os.copy_file_range(reader.fileno(), fd, end - start, start, start)


def _next_data(fd: int, offset: int) -> int | None:
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:  # nothing but holes up to the end
            return None
        raise
