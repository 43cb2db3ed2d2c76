"""QEMU's ``info mtree -f``: which guest-physical ranges are memory that KVM knows.

Pure. The text is hostile input: its size and the number of ranges are bounded, and nothing in it is believed before
``slots`` has checked it against the process's mappings. Format as QEMU 7.2 prints it; written down in the tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from sevkvm import errors
from sevkvm.abi import x86

MAX_RANGES: Final = 4096
_MAX_LINE: Final = 512  # keeps matching cheap whatever a line holds
_VIEW: Final = re.compile(r"FlatView #\d+\s*")
_MEMORY_SPACE: Final = ' AS "memory", root: '
_RANGE: Final = re.compile(
    r"\s+(?P<start>[0-9a-f]{16})-(?P<last>[0-9a-f]{16}) \(prio -?\d+, (?:nv-)?(?P<kind>[a-z/]+)\): "
    r"(?P<name>.+?)(?: @(?P<offset>[0-9a-f]{16}))?(?: owner:\S.*?)?(?P<kvm> KVM)?\s*"
)
# A "ramd" is a device's registers mapped through (VFIO): KVM has a slot for it, but reading it may act on hardware.
_MEMORY_KINDS: Final = ("ram", "rom", "romd")
_DEVICE_KINDS: Final = ("i/o", "ramd")


@dataclass(frozen=True, slots=True)
class FlatRange:
    """``nbytes`` of guest memory at ``gpa``: ``offset`` bytes into the memory region ``name``. Whole pages.

    ``readonly``: ROM, or flash whose reads are plain memory and whose writes are commands.
    """

    gpa: int
    nbytes: int
    name: str
    offset: int
    readonly: bool


@dataclass(frozen=True, slots=True)
class Region:
    """What the guest finds from ``gpa`` to ``end`` (exclusive): memory, KVM's or not, or a device's registers."""

    gpa: int
    end: int
    name: str
    is_device: bool

    @property
    def shown_name(self) -> str:
        """The name, which the other side gave, fit to print."""
        return repr(self.name[:60])


def parse(text: str) -> list[FlatRange]:
    """The ranges of guest memory that are KVM slots, ascending; ProtocolError if the text is not what it must be."""
    ranges: list[FlatRange] = []
    for match in _memory_view(text):
        each = _range(match) if match["kvm"] else None
        if each is None:
            continue
        if (ranges and each.gpa < ranges[-1].gpa + ranges[-1].nbytes) or len(ranges) == MAX_RANGES:
            raise errors.ProtocolError(f"the monitor's `info mtree -f` is out of order at gpa 0x{each.gpa:x}")
        ranges.append(each)
    if not ranges:
        raise errors.ProtocolError(
            "the monitor knows no guest memory that KVM uses",
            help="does the guest run under KVM? An emulated guest (TCG) has no KVM memory slots",
        )
    return ranges


def regions(text: str) -> list[Region]:
    """All that the guest has at its physical addresses, devices too; ProtocolError as above."""
    found: list[Region] = []
    for match in _memory_view(text):
        kind = match["kind"]
        if kind in (*_MEMORY_KINDS, *_DEVICE_KINDS):
            start, end = int(match["start"], 16), int(match["last"], 16) + 1
            if start < end:
                found.append(Region(start, end, match["name"], kind in _DEVICE_KINDS))
        if len(found) > MAX_RANGES:
            raise errors.ProtocolError(f"the monitor's `info mtree -f` has more than {MAX_RANGES} ranges")
    return found


def _memory_view(text: str) -> Iterator[re.Match[str]]:
    """The lines with ranges of the one view of guest memory."""
    views = [view for view in _views(text) if any(line.startswith(_MEMORY_SPACE) for line in view)]
    if len(views) != 1:
        raise errors.ProtocolError(
            f"the monitor's `info mtree -f` shows {len(views)} views of guest memory instead of one",
            help="is this QEMU's monitor, and an x86 guest? Otherwise name the memory with --slot",
        )
    for line in views[0]:
        match = _RANGE.fullmatch(line) if len(line) <= _MAX_LINE else None
        if match is not None:
            yield match


def _views(text: str) -> list[list[str]]:
    """The lines of each flat view, without its heading."""
    views: list[list[str]] = []
    for line in text.split("\n"):
        if len(line) <= _MAX_LINE and _VIEW.fullmatch(line):
            views.append([])
        elif views:
            views[-1].append(line)
    return views


def _range(match: re.Match[str]) -> FlatRange | None:
    """None for what is not memory, and for less than a page: KVM's slots are whole pages."""
    if match["kind"] not in _MEMORY_KINDS:
        return None
    first, end = int(match["start"], 16), int(match["last"], 16) + 1
    gpa = -(-first // x86.PAGE_NBYTES) * x86.PAGE_NBYTES
    nbytes = (end & ~x86.PAGE_MASK) - gpa
    if nbytes <= 0:
        return None
    if end > 1 << x86.MAX_PHYS_BIT:
        raise errors.ProtocolError(f"the monitor names memory at the impossible gpa 0x{first:x}")
    offset = int(match["offset"] or "0", 16) + (gpa - first)
    return FlatRange(gpa, nbytes, match["name"], offset, match["kind"] != "ram")
