"""Where a PC's RAM is, when nobody tells: the layouts of QEMU's machines, and what RAM looks like in ``maps``.

Pure. Sources: QEMU hw/i386/pc_piix.c, pc_q35.c and pc.c (7.2). Better no answer than a wrong one: whatever is
unusual is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from sevkvm import errors
from sevkvm.abi import x86
from sevkvm.host.procfs import Mapping
from sevkvm.host.qemuargs import QemuArgs

_GIB: Final = 1 << 30
_HIGH_RAM_GPA: Final = 4 * _GIB
# From here on RAM is moved above the HyperTransport hole at 1012 GiB on AMD hosts, depending on version and CPU.
_HIGH_RAM_LIMIT: Final = 1000 * _GIB
# machine -> (RAM size from which it is split, bytes that then stay below 4 GiB)
_SPLITS: Final = {"q35": (2 * _GIB + 3 * _GIB // 4, 2 * _GIB), "pc": (3 * _GIB + _GIB // 2, 3 * _GIB)}
_MACHINE: Final = re.compile(r"(pc|q35|pc-i440fx-(\d+)\.\d+|pc-q35-(\d+)\.\d+)")
_OLDEST_MAJOR: Final = 3  # older machine types split elsewhere
_HELP: Final = (
    "name the memory with --qmp SOCKET, --libvirt DOMAIN, or --slot GPA:SIZE:HVA (see /proc/PID/maps)"
)


@dataclass(frozen=True, slots=True)
class Piece:
    """``nbytes`` of guest memory at ``gpa``, ``offset`` bytes into the RAM block."""

    gpa: int
    nbytes: int
    offset: int


def layout(args: QemuArgs) -> list[Piece]:
    """Where the machine of this command line puts its RAM. VmNotFound where it is not certain."""
    if args.ram_nbytes is None or args.machine is None:
        _refuse("the VMM's command line does not tell its RAM and its machine")
    match = _MACHINE.fullmatch(args.machine)
    if match is None or int(match[2] or match[3] or _OLDEST_MAJOR) < _OLDEST_MAJOR:
        _refuse(f"the memory layout of machine {args.machine!r} is not known")
    if "max-ram-below-4g" in args.machine_options:
        _refuse("max-ram-below-4g changes the memory layout")
    nbytes = args.ram_nbytes
    if nbytes < 1 << 20 or nbytes & x86.PAGE_MASK or nbytes > _HIGH_RAM_LIMIT - _HIGH_RAM_GPA:
        _refuse(f"0x{nbytes:x} bytes is an unusual RAM size")
    limit, low = _SPLITS["q35" if "q35" in match[1] else "pc"]
    if nbytes < limit:
        return [Piece(0, nbytes, 0)]
    return [Piece(0, low, 0), Piece(_HIGH_RAM_GPA, nbytes - low, low)]


def find_ram(mappings: Sequence[Mapping], nbytes: int) -> int:
    """The hva of the one block of writable memory that is ``nbytes`` long. VmNotFound if there is none, or several.

    A block may be cut into several mappings (by madvise, mbind), and anonymous memory may have grown together with
    what happens to lie below it: QEMU puts an inaccessible guard page above each block, which marks its end.
    """
    starts = {start for run in _runs(mappings) for start in _starts(run, nbytes)}
    guards = {each.start for each in mappings if each.perms.startswith("---")}
    if not starts:
        starts = {
            run[-1].end - nbytes
            for run in _runs(mappings)
            if run[-1].end in guards and run[-1].end - run[0].start > nbytes and run[0].inode == 0
        }
    if len(starts) != 1:
        _refuse(f"{len(starts) or 'no'} mappings look like 0x{nbytes:x} bytes of guest RAM")
    return starts.pop()


def _runs(mappings: Sequence[Mapping]) -> list[list[Mapping]]:
    """Writable mappings that touch and continue one another: of one file, or anonymous."""
    runs: list[list[Mapping]] = []
    for each in mappings:
        if not each.perms.startswith("rw") or each.path.startswith("["):
            continue  # the heap and the stack are not guest RAM
        last = runs[-1][-1] if runs else None
        if (
            last is not None
            and last.end == each.start
            and (last.dev, last.inode, last.perms) == (each.dev, each.inode, each.perms)
            and (each.inode == 0 or last.offset + (last.end - last.start) == each.offset)
        ):
            runs[-1].append(each)
        else:
            runs.append([each])
    return runs


def _starts(run: Sequence[Mapping], nbytes: int) -> list[int]:
    """Where in the run a block of exactly ``nbytes`` can begin and end at the edges of mappings."""
    ends = {each.end for each in run}
    found = [each.start for each in run if each.start + nbytes in ends]
    if run[0].inode:  # RAM is a file's beginning
        found = [each.start for each in run if each.start in found and each.offset == 0]
    return found


def _refuse(why: str) -> NoReturn:
    raise errors.VmNotFound(f"guest memory cannot be found without help: {why}", help=_HELP)
