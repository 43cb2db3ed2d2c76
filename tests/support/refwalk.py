"""A naive walker for every paging mode, the second judge beside QEMU. Shares no code with sevkvm.

Source: AMD64 Architecture Programmer's Manual, volume 2, chapter 5. No C-bit: hand it plain tables. Reserved bits
are not looked at unless told, as QEMU's monitor does not; all address bits (51:12) are kept, which it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from tests.support.emulated import Mode

P, RW, US, PS, NX = 1, 2, 4, 0x80, 1 << 63
ReadTable = Callable[[int, int], bytes | None]  # (gpa, nbytes); None where there is no RAM
Refuses = Callable[[int, int], bool]  # (depth, entry)


class Level(NamedTuple):
    shift: int  # log2 of the gva bytes one entry spans
    nentries: int
    large: bool  # PS makes a leaf


class Layout(NamedTuple):
    entry_nbytes: int
    levels: tuple[Level, ...]  # the top one first


_LONG = (Level(39, 512, False), Level(30, 512, True), Level(21, 512, True), Level(12, 512, False))
LAYOUTS: dict[Mode, Layout] = {
    "32": Layout(4, (Level(22, 1024, False), Level(12, 1024, False))),
    "pse": Layout(4, (Level(22, 1024, True), Level(12, 1024, False))),
    "pae": Layout(8, (Level(30, 4, False), *_LONG[2:])),
    "4level": Layout(8, _LONG),
    "5level": Layout(8, (Level(48, 512, False), *_LONG)),
}


class RefLeaf(NamedTuple):
    gva: int  # canonical
    gpa: int
    nbytes: int
    entry: int
    writable: bool  # down the walk, as user
    user: bool


def root_of(mode: Mode, cr3: int) -> int:
    """The gpa of the top table: PCID, PWT and PCD taken off."""
    return cr3 & (0xFFFF_FFE0 if mode == "pae" else 0xF_FFFF_FFFF_F000)


def reference_leaves(
    read: ReadTable, mode: Mode, cr3: int, *, sound: bool = False, nx: bool = True
) -> list[RefLeaf]:
    """Every present leaf, ascending in gva; ``sound``: only what a processor maps, with or without EFER.NXE."""

    def refuses(depth: int, entry: int) -> bool:
        return sound and entry & reserved_bits(mode, depth, entry, nx=nx) != 0

    return list(_walk(read, mode, refuses, 0, root_of(mode, cr3), 0, RW | US))


def _walk(
    read: ReadTable, mode: Mode, refuses: Refuses, depth: int, gpa: int, base: int, rights: int
) -> Iterator[RefLeaf]:
    entry_nbytes, levels = LAYOUTS[mode]
    level = levels[depth]
    data = read(gpa, level.nentries * entry_nbytes)
    if data is None:
        return
    for index, entry in enumerate(memoryview(data).cast("Q" if entry_nbytes == 8 else "I")):
        if not entry & P or refuses(depth, entry):
            continue
        gva = base + (index << level.shift)
        lower = rights & entry if has_rights(mode, depth) else rights
        if depth == len(levels) - 1 or (level.large and entry & PS):
            page = leaf_gpa(mode, entry, level.shift)
            yield RefLeaf(
                canonical(mode, gva), page, 1 << level.shift, entry, bool(lower & RW), bool(lower & US)
            )
        else:
            yield from _walk(read, mode, refuses, depth + 1, table_gpa(entry), gva, lower)


def reserved_bits(mode: Mode, depth: int, entry: int, *, nx: bool) -> int:
    """Those of this entry. Physical addresses have 52 bits, or 40 with PSE-36."""
    entry_nbytes, levels = LAYOUTS[mode]
    large = levels[depth].large and bool(entry & PS)
    if entry_nbytes == 4:
        return 1 << 21 if large else 0
    if mode == "pae" and depth == 0:
        return 0xFFF << 52 | 0x1E6
    mask = 0 if nx else NX
    mask |= 0x7FF << 52 if mode == "pae" else 0
    if large:
        return mask | (1 << levels[depth].shift) - (1 << 13)
    return mask | (0 if levels[depth].large or depth == len(levels) - 1 else PS)


def has_rights(mode: Mode, depth: int) -> bool:
    """Do entries at this depth have R/W and U/S? PAE's top table does not."""
    return mode != "pae" or depth > 0


def table_gpa(entry: int) -> int:
    return entry & 0xF_FFFF_FFFF_F000


def leaf_gpa(mode: Mode, entry: int, shift: int) -> int:
    """PSE-36 keeps bits 39:32 of a 4 MiB page's gpa in bits 20:13 of its entry."""
    if mode == "pse" and shift == 22:
        return entry & 0xFFC0_0000 | (entry >> 13 & 0xFF) << 32
    return table_gpa(entry) >> shift << shift


def address_bits(mode: Mode) -> int:
    """How many bits of a gva are translated."""
    levels = LAYOUTS[mode].levels
    return levels[0].shift + levels[0].nentries.bit_length() - 1


def canonical(mode: Mode, gva: int) -> int:
    """Sign-extended in long mode."""
    bits = address_bits(mode)
    return gva | (1 << 64) - (1 << bits) if bits > 32 and gva >> bits - 1 else gva


def reference_tlb(leaves: Iterable[RefLeaf]) -> str:
    """The leaves as ``info tlb`` should print them. P is large page: PAT of a 4 KiB page is not shown."""
    letters = "TCADPG"  # bits 3 to 8
    lines = []
    for leaf in leaves:
        bits = leaf.entry if leaf.nbytes > 4096 else leaf.entry & ~PS
        flags = ["-X"[bits >> 63]]
        flags += [letters[bit - 3] if bits >> bit & 1 else "-" for bit in (8, 7, 6, 5, 4, 3)]
        flags += ["-U"[bits >> 2 & 1], "-W"[bits >> 1 & 1]]
        lines.append(f"{leaf.gva:016x}: {leaf.gpa:016x} {''.join(flags)}\n")
    return "".join(lines)


def reference_mem(leaves: Iterable[RefLeaf]) -> str:
    """The leaves merged as ``info mem`` should print them: neighbours of equal U and W."""
    runs: list[list[int]] = []
    for leaf in leaves:
        rights = leaf.user << 2 | leaf.writable << 1
        if runs and runs[-1][1:] == [leaf.gva, rights]:
            runs[-1][1] += leaf.nbytes
        else:
            runs.append([leaf.gva, leaf.gva + leaf.nbytes, rights])
    return "".join(
        f"{start:016x}-{end:016x} {end - start:016x} {'-u'[rights >> 2]}r{'-w'[rights >> 1 & 1]}\n"
        for start, end, rights in runs
    )
