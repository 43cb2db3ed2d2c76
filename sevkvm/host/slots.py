"""Guest-physical memory and where the VMM keeps it (GPA -> HVA): from the user, the monitor, or the mappings.

Whatever the source, a slot is believed only when the process has readable memory there.
"""

from __future__ import annotations

import re
import time
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from sevkvm import errors
from sevkvm.abi import x86
from sevkvm.host import mtree, procfs, qemuargs, ramguess
from sevkvm.host.mtree import FlatRange
from sevkvm.host.procfs import PROC, Mapping

_SHIFTS: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_NUMBER: Final = r"0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20}"
_SLOT: Final = re.compile(rf"({_NUMBER}):({_NUMBER})([KMGT]?)(?:i?B)?:({_NUMBER})(:ro)?", re.IGNORECASE)
_SLOT_HELP: Final = (
    "GPA:SIZE:HVA, for example 0x100000000:2G:0x7f0000000000: whole pages; :ro behind it is ROM"
)
_GPA2HVA: Final = re.compile(r"Host virtual address for 0x([0-9a-f]{1,16}) \((.*)\) is 0x([0-9a-f]{1,16})\s*")
_LARGE_NBYTES: Final = 2 << 20  # from here on the last page is asked for, too
_ATTEMPTS: Final = 3  # a running guest may rearrange its memory between two questions
_TOTAL_SECONDS: Final = 60.0


class RawSlot(NamedTuple):
    """``nbytes`` of guest memory at ``gpa``, kept by the VMM at ``hva``; whole pages."""

    gpa: int
    nbytes: int
    hva: int
    name: str = ""
    readonly: bool = False


class SlotGuess(NamedTuple):
    """Slots that nobody told us, and what the user must know about them."""

    slots: tuple[RawSlot, ...]
    warning: str


class HumanMonitor(Protocol):
    """The part of a monitor that is asked here."""

    def hmp(self, command: str) -> str:
        """What the human monitor prints."""
        ...


def parse_slot(text: str) -> RawSlot:
    """One ``--slot GPA:SIZE:HVA[:ro]``: hexadecimal with 0x, or decimal; SIZE may end in K, M, G, T. Or UsageError."""
    match = _SLOT.fullmatch(text)
    if match is None:
        raise errors.UsageError(f"--slot {text!r} is not GPA:SIZE:HVA", help=_SLOT_HELP)
    gpa, size, hva = (
        int(word, 16 if word[1:2] in ("x", "X") else 10) for word in (match[1], match[2], match[4])
    )
    nbytes = size << _SHIFTS[match[3].upper()]
    if nbytes == 0 or (gpa | nbytes | hva) & x86.PAGE_MASK:
        raise errors.UsageError(f"--slot {text!r} is not whole pages", help=_SLOT_HELP)
    if gpa + nbytes > 1 << x86.MAX_PHYS_BIT or hva + nbytes > 1 << 63:
        raise errors.UsageError(f"--slot {text!r} is beyond any address there can be", help=_SLOT_HELP)
    return RawSlot(gpa, nbytes, hva, "slot", match[5] is not None)


def from_user(texts: Iterable[str], pid: int, proc: Path = PROC) -> list[RawSlot]:
    """The user's ``--slot`` options; UsageError unless the process has readable memory at each HVA."""
    slots = sorted(parse_slot(text) for text in texts)
    outside = _first_unmapped(slots, procfs.maps(pid, proc))
    if outside is not None:
        raise errors.UsageError(
            f"--slot for gpa 0x{outside.gpa:x}: process {pid} has no 0x{outside.nbytes:x} readable bytes"
            f" at 0x{outside.hva:x}",
            help=f"HVA is an address of the VMM, as in /proc/{pid}/maps; {_SLOT_HELP}",
        )
    return slots


def from_monitor(monitor: HumanMonitor, pid: int, proc: Path = PROC) -> list[RawSlot]:
    """All memory slots of QEMU's guest, ascending; neighbours that lie together in one block are one slot.

    Device registers that KVM maps through (VFIO) are left out. Raises ProtocolError when the answers make no sense,
    contradict each other, or name memory that process ``pid`` does not have.
    """
    deadline = time.monotonic() + _TOTAL_SECONDS
    for attempt in range(1, _ATTEMPTS + 1):
        ranges = mtree.parse(monitor.hmp("info mtree -f"))
        try:
            slots = merged(_placed(monitor, each, deadline) for each in ranges)
            break
        except errors.ProtocolError:
            if attempt == _ATTEMPTS:
                raise
    outside = _first_unmapped(slots, procfs.maps(pid, proc))
    if outside is not None:
        raise errors.ProtocolError(
            f"the monitor says gpa 0x{outside.gpa:x} ({outside.name}) is at 0x{outside.hva:x},"
            f" where process {pid} has no such memory",
            help=f"is this the monitor of process {pid}? Otherwise name the memory with --slot",
        )
    return slots


def from_maps(pid: int, proc: Path = PROC) -> SlotGuess:
    """A last resort: RAM guessed from the mappings and QEMU's command line.

    Raises VmNotFound where that would be unsure, saying why and what else there is.
    """
    args = qemuargs.parse(procfs.cmdline(pid, proc))
    pieces = ramguess.layout(args)
    hva = ramguess.find_ram(procfs.maps(pid, proc), sum(piece.nbytes for piece in pieces))
    slots = tuple(RawSlot(piece.gpa, piece.nbytes, hva + piece.offset, "ram?") for piece in pieces)
    warning = (
        f"guest memory was guessed from the mappings of process {pid} and its command line: the video window, ROM"
        " and flash below 1 MiB and below 4 GiB are missing or show the RAM behind them;"
        " --qmp, --libvirt or --slot is exact"
    )
    if args.more_ram:
        warning += "; memory devices (DIMMs) are not included"
    return SlotGuess(slots, warning)


def merged(slots: Iterable[RawSlot]) -> list[RawSlot]:
    """Ascending; slots that touch in both address spaces and are of one block become one."""
    done: list[RawSlot] = []
    for slot in sorted(slots):
        last = done[-1] if done else None
        if (
            last is not None
            and (last.gpa + last.nbytes, last.hva + last.nbytes) == (slot.gpa, slot.hva)
            and (last.name, last.readonly) == (slot.name, slot.readonly)
        ):
            done[-1] = last._replace(nbytes=last.nbytes + slot.nbytes)
        else:
            done.append(slot)
    return done


def _placed(monitor: HumanMonitor, piece: FlatRange, deadline: float) -> RawSlot:
    """Every range is asked for: two regions of one name would make a wrong sum of offsets."""
    if time.monotonic() > deadline:
        raise errors.TargetTimeout(
            f"the monitor has not told where guest memory is in {_TOTAL_SECONDS:g} s",
            help="name the memory with --slot",
        )
    hva = _gpa2hva(monitor, piece.gpa, piece.name)
    last = piece.nbytes - x86.PAGE_NBYTES
    if piece.nbytes >= _LARGE_NBYTES and _gpa2hva(monitor, piece.gpa + last, piece.name) != hva + last:
        raise errors.ProtocolError(f"the monitor's answers about gpa 0x{piece.gpa:x} contradict each other")
    return RawSlot(piece.gpa, piece.nbytes, hva, piece.name, piece.readonly)


def _gpa2hva(monitor: HumanMonitor, gpa: int, name: str) -> int:
    answer = monitor.hmp(f"gpa2hva 0x{gpa:x}")
    match = _GPA2HVA.fullmatch(answer) if len(answer) < 1024 else None
    if match is None or int(match[1], 16) != gpa or match[2] != name or int(match[3], 16) & x86.PAGE_MASK:
        raise errors.ProtocolError(
            f"the monitor does not tell where gpa 0x{gpa:x} ({name}) is: {answer[:200]!r}",
            help="name the memory with --slot",
        )
    return int(match[3], 16)


def _first_unmapped(slots: Sequence[RawSlot], mappings: Sequence[Mapping]) -> RawSlot | None:
    """The first slot that is not wholly inside readable mappings (which may lie side by side)."""
    spans: list[tuple[int, int]] = []
    for each in mappings:
        if each.readable and spans and spans[-1][1] == each.start:
            spans[-1] = (spans[-1][0], each.end)
        elif each.readable:
            spans.append((each.start, each.end))
    for slot in slots:
        index = bisect_right(spans, (slot.hva, 1 << 64)) - 1
        if index < 0 or slot.hva + slot.nbytes > spans[index][1]:
            return slot
    return None
