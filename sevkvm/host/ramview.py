"""Guest memory that a VMM maps from files, mapped into our own process as well: the same pages, at addresses of ours.

Only what is shared can be: a memfd, a file, huge pages (MAP_SHARED). It is mapped read-only until somebody writes.
Source: Linux Documentation/filesystems/proc.rst (map_files), mmap(2), man 7 shmem_overview (v6.18).
"""

from __future__ import annotations

import mmap
import os
import stat
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from sevkvm import errors, native
from sevkvm.host import procfs
from sevkvm.host.procfs import PROC, Mapping


class _Run(NamedTuple):
    """Mappings of a VMM that continue one another in one file."""

    start: int
    end: int
    offset: int
    mapping: Mapping


class _Piece(NamedTuple):
    """A run that is mapped here, too; ``start`` and ``end`` are the VMM's addresses."""

    start: int
    end: int
    ours: int
    held: mmap.mmap


class RamView:
    """What of a VMM's memory is mapped here. Addresses that it is asked for are the VMM's (hva)."""

    def __init__(self, pid: int, proc: Path = PROC) -> None:
        self._pid = pid
        self._proc = proc
        self._pieces: list[_Piece] = []
        self._writable: list[_Piece] = []

    def add(self, hva: int, nbytes: int) -> str | None:
        """Map what holds ``[hva, hva + nbytes)``, as one piece; None, or why that cannot be. Raises as procfs does."""
        if self._find(self._pieces, hva, nbytes):
            return None
        run = self._run(hva, nbytes)
        if isinstance(run, str):
            return run
        try:
            self._insert(self._pieces, self._mapped(run, write=False))
        except OSError as error:
            return f"its file cannot be opened ({error.strerror or error})"
        except ValueError:
            return "its file is shorter than the mapping"
        return None

    def why_not(self, hva: int, nbytes: int) -> str | None:
        """Why that cannot be mapped, as far as it shows without opening anything; else None."""
        run = self._run(hva, nbytes)
        return run if isinstance(run, str) else None

    def at(self, hva: int, *, write: bool = False) -> int | None:
        """Where that byte is in our process, or None. To write it, its file is mapped a second time, if it can be."""
        piece = self._find(self._pieces, hva, 1)
        if piece is None:
            return None
        if write:
            piece = self._find(self._writable, hva, 1) or self._remapped(hva)
        return None if piece is None else piece.ours + (hva - piece.start)

    def copy(self, hva: int, buffer: memoryview) -> bool:
        """Fill ``buffer`` from ``hva`` on, without a system call; False if that is not mapped here in one piece.

        For files that nobody makes shorter: SIGBUS ends us where there is no page any more.
        """
        piece = self._find(self._pieces, hva, len(buffer))
        if piece is None:
            return False
        offset = hva - piece.start
        with memoryview(piece.held) as held, held[offset : offset + len(buffer)] as part:
            buffer[:] = part
        return True

    def extent(self, hva: int) -> int:
        """How many bytes from ``hva`` on are mapped here in one piece."""
        piece = self._find(self._pieces, hva, 1)
        return 0 if piece is None else piece.end - hva

    def close(self) -> None:
        """Unmap everything."""
        for piece in (*self._pieces, *self._writable):
            piece.held.close()
        self._pieces, self._writable = [], []

    def _remapped(self, hva: int) -> _Piece | None:
        run = self._run(hva, 1)
        if isinstance(run, str):
            return None
        try:
            piece = self._mapped(run, write=True)
        except (OSError, ValueError):
            return None
        self._insert(self._writable, piece)
        return piece

    def _run(self, hva: int, nbytes: int) -> _Run | str:
        """All of the mappings around it that continue one another, or why there is no such run."""
        run: _Run | None = None
        for each in procfs.maps(self._pid, self._proc):
            if run is not None and _continues(run, each):
                run = run._replace(end=each.end)
            elif run is not None and run.end > hva:
                break
            else:
                run = _Run(each.start, each.end, each.offset, each)
        if run is None or not run.start <= hva < run.end:
            return "the VMM has no memory there"
        if not run.mapping.inode:
            return "it is anonymous memory"
        if "s" not in run.mapping.perms:
            return "it is a private mapping of a file (share=off)"
        if hva + nbytes > run.end:
            return "it is not one mapping of one file"
        return run

    def _mapped(self, run: _Run, *, write: bool) -> _Piece:
        fd = self._open(run.mapping, os.O_RDWR if write else os.O_RDONLY)
        try:
            prot = mmap.PROT_READ | (mmap.PROT_WRITE if write else 0)
            held = mmap.mmap(fd, run.end - run.start, mmap.MAP_SHARED, prot, offset=run.offset)
        finally:
            os.close(fd)
        with suppress(OSError):
            held.madvise(mmap.MADV_DONTDUMP)  # guest memory is not for a core file of ours
        return _Piece(run.start, run.end, native.address_of(held), held)

    def _open(self, mapping: Mapping, flags: int) -> int:
        """Through the mapping's own link (needs CAP_CHECKPOINT_RESTORE), or a descriptor that the VMM has kept."""
        refusal: OSError = FileNotFoundError(2, "the VMM has no descriptor of it open")
        for link, devices in self._links(mapping):
            try:
                # opening a device could do something to it
                if not _is_file(link.stat(), mapping, devices):
                    continue
                fd = os.open(link, flags | os.O_CLOEXEC | os.O_NONBLOCK)
            except OSError as error:
                if not isinstance(error, FileNotFoundError):
                    refusal = error
                continue
            if _is_file(os.fstat(fd), mapping, devices):
                return fd
            os.close(fd)
        raise refusal

    def _links(self, mapping: Mapping) -> Iterator[tuple[Path, bool]]:
        """Where it may be opened; True: only its device tells it from another file with the same inode number."""
        process = self._proc / str(self._pid)
        # some file systems tell stat(2) another device than ``maps``
        yield process / "map_files" / f"{mapping.start:x}-{mapping.end:x}", False
        with suppress(errors.SevKvmError):
            for fd in procfs.fd_links(self._pid, self._proc):
                yield process / "fd" / str(fd), True

    @staticmethod
    def _find(pieces: list[_Piece], hva: int, nbytes: int) -> _Piece | None:
        index = bisect_right(pieces, hva, key=lambda piece: piece.start) - 1
        if index < 0 or hva + nbytes > pieces[index].end:
            return None
        return pieces[index]

    @staticmethod
    def _insert(pieces: list[_Piece], piece: _Piece) -> None:
        pieces.insert(bisect_right(pieces, piece.start, key=lambda other: other.start), piece)


def _continues(run: _Run, each: Mapping) -> bool:
    return (
        each.inode != 0
        and each.start == run.end
        and (each.dev, each.inode) == (run.mapping.dev, run.mapping.inode)
        and "s" in each.perms
        and "s" in run.mapping.perms
        and each.offset == run.offset + (run.end - run.start)
    )


def _is_file(found: os.stat_result, mapping: Mapping, devices: bool) -> bool:
    """Is it the regular file that is mapped?"""
    if not stat.S_ISREG(found.st_mode) or found.st_ino != mapping.inode:
        return False
    major, _, minor = mapping.dev.partition(":")
    return not devices or found.st_dev == os.makedev(int(major, 16), int(minor, 16))
