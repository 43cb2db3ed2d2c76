"""What goes where in a dump file. Pure: pieces of guest memory in, a layout out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum

from sevkvm import errors
from sevkvm.abi import elf, x86
from sevkvm.dump.pieces import Hole, Piece

SPARE_PHDRS = 2048  # room for segments that unreadable pages split


class DumpFormat(str, Enum):
    """File formats, as ``--format`` spells them."""

    RAW = "raw"
    ELF = "elf"
    KDUMP = "kdump"
    LIME = "lime"
    PADDED = "padded"


@dataclass(frozen=True, slots=True)
class Placed:
    """A piece and its place in the file."""

    piece: Piece
    offset: int


@dataclass(frozen=True)
class Layout:
    """A file: pieces in ascending address and offset, what is missing from the start, the size in the end."""

    placed: tuple[Placed, ...]
    holes: tuple[Hole, ...]
    nbytes: int

    @property
    def copied_nbytes(self) -> int:
        """Guest memory in the file when every byte can be read."""
        return sum(placed.piece.nbytes for placed in self.placed)


def raw_layout(pieces: list[Piece], holes: list[Hole], start: int, end: int) -> Layout:
    """File offset = address - start; what is missing is a hole of the file."""
    placed = tuple(Placed(piece, piece.address - start) for piece in pieces)
    return Layout(placed, tuple(holes), end - start)


def elf_layout(
    pieces: list[Piece],
    holes: list[Hole],
    notes_nbytes: int,
    count: Callable[[list[Placed]], int] = len,
) -> Layout:
    """Headers, spare room for more of them, notes, then pieces one after the other from a page boundary.

    count: how many program headers these ranges, merged, need.
    """
    offset = 0
    placed = []
    for piece in pieces:
        placed.append(Placed(piece, offset))
        offset += piece.nbytes
    nphdrs = 1 + count(merge_placed(placed))
    if nphdrs > elf.MAX_PHDRS:
        raise errors.UsageError(
            f"{nphdrs} separate ranges are more than an ELF file's program headers can describe",
            help="use --format raw, or a smaller range",
        )
    base = round_up(notes_offset(nphdrs) + notes_nbytes)
    shifted = tuple(Placed(part.piece, base + part.offset) for part in placed)
    return Layout(shifted, tuple(holes), base + offset)


def notes_offset(nphdrs: int) -> int:
    """Where the notes start: past the program headers and the spare room."""
    return elf.EHDR.size + elf.PHDR.size * min(nphdrs + SPARE_PHDRS, elf.MAX_PHDRS)


def merge_placed(parts: Iterable[Placed]) -> list[Placed]:
    """Neighbours that continue each other in address, gpa, hva and file, as one; ``private`` is dropped.

    QEMU merges by the same rule, so its cores have the same segments.
    """
    merged: list[Placed] = []
    for part in parts:
        if merged and _continues(merged[-1], part):
            first = merged[-1]
            nbytes = first.piece.nbytes + part.piece.nbytes
            merged[-1] = Placed(replace(first.piece, nbytes=nbytes), first.offset)
        else:
            merged.append(Placed(replace(part.piece, private=None), part.offset))
    return merged


def cut(placed: Iterable[Placed], holes: Iterable[Hole]) -> Iterator[Placed]:
    """The placed pieces without the bytes of ``holes`` (both ascending by address)."""
    pending = iter(holes)
    hole = next(pending, None)
    for part in placed:
        at, end = part.piece.address, part.piece.end
        while hole is not None and hole.address < end:
            hole_end = hole.address + hole.nbytes
            if at < hole.address:
                yield _slice(part, at, hole.address)
            at = max(at, hole_end)
            if hole_end > end:
                break
            hole = next(pending, None)
        if at < end:
            yield _slice(part, at, end)


def round_up(nbytes: int, unit: int = x86.PAGE_NBYTES) -> int:
    """The next multiple of ``unit``."""
    return -(-nbytes // unit) * unit


def _continues(first: Placed, then: Placed) -> bool:
    ahead = first.piece.nbytes
    return (
        first.piece.end == then.piece.address
        and first.piece.gpa + ahead == then.piece.gpa
        and first.offset + ahead == then.offset
        and first.piece.hva + ahead == then.piece.hva
    )


def _slice(part: Placed, start: int, end: int) -> Placed:
    skip = start - part.piece.address
    piece = replace(
        part.piece, address=start, gpa=part.piece.gpa + skip, hva=part.piece.hva + skip, nbytes=end - start
    )
    return Placed(piece, part.offset + skip)
