"""The notes of a core file: registers of the vCPUs, and the guest kernel's VMCOREINFO."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from sevkvm import errors
from sevkvm.abi import corenotes
from sevkvm.abi.elf import NHDR, NT_PRSTATUS, NT_SEVKVM_LIVE, QEMU_NOTE_VERSION, SEVKVM_NOTE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sevkvm.abi.corenotes import CpuRegisters
    from sevkvm.dumpfile.image import Image

_MOST_NOTES: Final = 3 * 4096  # KVM's most vCPUs, two notes each, and others
NT_AUXV: Final = 6
NT_FILE: Final = 0x46494C45


class Note(NamedTuple):
    """One note."""

    name: bytes
    type: int
    data: bytes


def read_notes(image: Image, path: str, offset: int, nbytes: int) -> Iterator[Note]:
    """The notes in ``[offset, offset + nbytes)`` of a file; BadDump for one that does not fit."""
    at, end = offset, offset + nbytes
    for _ in range(_MOST_NOTES):
        if at + NHDR.size > end:
            return
        name_nbytes, data_nbytes, note_type = NHDR.unpack(image.take(at, NHDR.size, "a note's header"))
        name_at = at + NHDR.size
        data_at = name_at + (name_nbytes + 3 & ~3)
        if data_at + data_nbytes > end:
            raise errors.BadDump(
                path, f"the note at file offset 0x{at:x} goes on beyond the end of its segment at 0x{end:x}"
            )
        name = bytes(image.take(name_at, name_nbytes, "a note's name")).rstrip(b"\0")
        yield Note(name, note_type, bytes(image.take(data_at, data_nbytes, "a note")))
        at = data_at + (data_nbytes + 3 & ~3)
    raise errors.BadDump(path, f"it has more than {_MOST_NOTES} notes")


def cpus_of(notes: Sequence[Note], path: str) -> list[CpuRegisters]:
    """The vCPUs that have a ``QEMU`` note, with the index that their NT_PRSTATUS tells; ascending."""
    states = [note.data for note in notes if note.name == b"QEMU" and note.type == 0]
    threads = [
        corenotes.thread_of(note.data)
        for note in notes
        if note.name == b"CORE" and note.type == NT_PRSTATUS and len(note.data) >= corenotes.PRSTATUS.size
    ]
    indexes = [thread - 1 for thread in threads]
    if len(set(indexes)) != len(states) or min(indexes, default=0) < 0:
        indexes = list(range(len(states)))
    for data in states:
        version, size = struct.unpack_from("<II", data.ljust(8, b"\0"))
        if version != QEMU_NOTE_VERSION or min(size, len(data)) < corenotes.QEMU_LEAST_NBYTES:
            raise errors.BadDump(
                path, f"a QEMU note of version {version} and {size} bytes is not known: version 1 is"
            )
    return sorted(
        corenotes.unpack_qemu_state(index, data) for index, data in zip(indexes, states, strict=True)
    )


def vmcoreinfo_of(notes: Sequence[Note]) -> bytes | None:
    """The first VMCOREINFO's text."""
    return next((note.data for note in notes if note.name == b"VMCOREINFO"), None)


def is_live(notes: Sequence[Note]) -> bool:
    """Our own mark: the guest ran while this was copied."""
    return any(note.name == SEVKVM_NOTE and note.type == NT_SEVKVM_LIVE for note in notes)


def is_a_process(notes: Sequence[Note]) -> bool:
    """The kernel wrote this core of a process: it has the process's auxiliary vector or its mapped files."""
    return any(note.name == b"CORE" and note.type in (NT_AUXV, NT_FILE) for note in notes)
