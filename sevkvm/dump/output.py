"""Dump targets: checked before anything is attached, opened late, complete under the final name or not there."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from sevkvm import errors
from sevkvm.dump.remote import RemoteTarget, is_url
from sevkvm.dump.sink import STALL_SECONDS, FdSink, Sink, write_error

STDOUT = "-"
_TEMPORARY_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Target(Protocol):
    """A place for a dump that passed its checks; nothing exists there before ``open``."""

    seekable: bool

    def open(self, nbytes: int) -> AbstractContextManager[Sink]:
        """A sink for at most ``nbytes``; leaving it by an exception leaves nothing under the final name."""
        ...


def prepare(name: str, *, force: bool = False, check_space: bool = True) -> Target:
    """Check where ``-o NAME`` would go, creating nothing; ``-`` is stdout, ``PROTOCOL://...`` a remote store.

    check_space: let ``open`` refuse a file system without room for a dump that neither shrinks nor has holes.
    Raises UsageError for a terminal, a directory, a block device, and an existing file without ``force``.
    """
    if name == STDOUT:
        return _stream_target(1, "stdout")
    name = name.removeprefix("file://")  # a local file is ours to write: mode 0600, sparse, seekable
    if is_url(name):
        return RemoteTarget(name, force=force)
    path = Path(name)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = 0
    except OSError as error:
        raise write_error(error, name) from error
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        return SpecialFileTarget(path)
    if mode and not stat.S_ISREG(mode):
        raise errors.UsageError(f"{name} is not a regular file", help="name a file, a pipe, or - for stdout")
    if not path.parent.is_dir():
        raise errors.UsageError(f"{path.parent} is not a directory", help="create it first")
    if not force:
        free_name(path)
    return FileTarget(path, force=force, check_space=check_space)


def free_name(path: Path) -> None:
    """UsageError if there is something of that name."""
    if os.path.lexists(path):
        raise _exists(path)


def check_room(directory: Path, nbytes: int) -> None:
    """SevKvmError unless the file system of ``directory`` has ``nbytes`` left for us."""
    info = os.statvfs(directory)
    free = info.f_bavail * info.f_frsize
    if free < nbytes:
        raise errors.SevKvmError(
            f"{directory} has {free >> 20} MiB left, the dump may need {-(-nbytes >> 20)} MiB: "
            f"{-(-(nbytes - free) >> 20)} MiB are missing",
            help="write to another file system, dump less with --gpa START:END, or compress with --format kdump and "
            "begin nevertheless with --no-space-check",
        )


class FileTarget:
    """A regular file: written under a temporary name beside it, mode 0600, renamed when it is complete."""

    seekable = True

    def __init__(self, path: Path, *, force: bool, check_space: bool = True) -> None:
        self.path = path
        self._force = force
        self._check_space = check_space

    @contextmanager
    def open(self, nbytes: int) -> Iterator[Sink]:
        """Yield the sink; on a clean exit the file gets its name, on any exception it is removed."""
        if self._check_space:
            check_room(self.path.parent, nbytes)
        temporary = self.path.with_name(f".{self.path.name[:200]}.{secrets.token_hex(4)}.part")
        try:
            fd = os.open(temporary, _TEMPORARY_FLAGS, 0o600)
        except OSError as error:
            raise write_error(error, str(self.path)) from error
        try:
            try:
                sink = FdSink(fd, str(self.path), seekable=True)
                yield sink
                sink.finish()
            finally:
                _close(fd, str(self.path))
            self._commit(temporary)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()

    def _commit(self, temporary: Path) -> None:
        if self._force:
            temporary.replace(self.path)
            return
        try:
            os.link(temporary, self.path)  # unlike rename(2), never replaces a file that appeared meanwhile
        except FileExistsError as error:
            raise _exists(self.path) from error
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise write_error(error, str(self.path)) from error
            # A file system without hard links: the check cannot be one step with the rename.
            if os.path.lexists(self.path):
                raise _exists(self.path) from error
            temporary.rename(self.path)


class StreamTarget:
    """A descriptor that others own, stdout for one; it is not closed."""

    seekable = False

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self._name = name

    @contextmanager
    def open(self, nbytes: int) -> Iterator[Sink]:
        """Yield a sink that never seeks."""
        yield FdSink(self._fd, self._name, seekable=False)


class SpecialFileTarget:
    """A named pipe or a character device: written in place."""

    seekable = False

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def open(self, nbytes: int) -> Iterator[Sink]:
        """Open it for writing (a named pipe waits a while for its reader) and yield a sink that never seeks."""
        fd = self._open_bounded(time.monotonic() + STALL_SECONDS)
        try:
            yield FdSink(fd, str(self.path), seekable=False)
        finally:
            _close(fd, str(self.path))

    def _open_bounded(self, deadline: float) -> int:
        """Non-blocking, because open(2) would wait for a pipe's reader without end while a guest stands still."""
        while True:
            try:
                return os.open(self.path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise write_error(error, str(self.path)) from error
            if time.monotonic() > deadline:
                raise errors.SevKvmError(
                    f"{self.path}: nobody reads this pipe", help="start its reader first"
                )
            time.sleep(0.05)


def _stream_target(fd: int, name: str) -> StreamTarget:
    if os.isatty(fd):
        raise errors.UsageError(
            "a dump would garble the terminal", help="redirect stdout, or name a file with -o FILE"
        )
    return StreamTarget(fd, name)


def _exists(path: Path) -> errors.UsageError:
    return errors.UsageError(f"{path} exists", help="choose another name, or overwrite it with --force")


def _close(fd: int, name: str) -> None:
    try:
        os.close(fd)  # some file systems say only here that they ran out of space
    except OSError as error:
        raise write_error(error, name) from error
