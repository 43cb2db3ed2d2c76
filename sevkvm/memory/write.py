"""Writing guest memory: all of it checked and read before the first byte changes, then page by page, each read back.

Private memory is ciphertext in blocks of 16 bytes, so a write there is: decrypt the blocks it touches, change the
bytes, encrypt the blocks. Kernels up to 7.1 get requests for parts of blocks wrong, silently; they are never asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

from sevkvm import errors
from sevkvm.abi.sev import BLOCK_NBYTES
from sevkvm.abi.x86 import PAGE_MASK, PAGE_NBYTES
from sevkvm.memory.source import MemorySource, Span

if TYPE_CHECKING:
    from sevkvm.memory.source import SlotMap

_BLOCK_MASK: Final = BLOCK_NBYTES - 1
# Video memory and ROMs of a PC: RAM that was guessed to be there is not what the guest has there.
_LEGACY_WINDOW: Final = range(0xA0000, 0x100000)


class MemoryStore(MemorySource, Protocol):
    """A source that can be written as well."""

    reason: str
    """Why the last short read was short."""

    def write(self, hva: int, data: bytes) -> None:
        """Write ``data`` inside one page; of private memory whole blocks."""
        ...


@dataclass(frozen=True, slots=True)
class WritePiece:
    """What a write does inside one page: ``old`` becomes ``new`` at ``gpa``.

    To that end ``before`` becomes ``after`` at ``first_gpa``, ``first_hva`` in the VMM: of private memory the whole
    blocks around it. They show what other pieces of the same write do there, too.
    """

    gpa: int
    gva: int | None
    private: bool
    new: bytes
    first_gpa: int
    first_hva: int
    before: bytes
    after: bytes

    @property
    def old(self) -> bytes:
        """What is at ``gpa`` until then."""
        start = self.gpa - self.first_gpa
        return self.before[start : start + len(self.new)]

    def place(self, gpa: int) -> tuple[str, int]:
        """A gpa of this page as the user's kind of address: its space, and the address."""
        return ("gpa", gpa) if self.gva is None else ("gva", self.gva + gpa - self.gpa)


@dataclass(frozen=True, slots=True)
class WritePlan:
    """A write that was found possible, in the order in which it is carried out; right while the guest stands still."""

    pieces: tuple[WritePiece, ...]

    @property
    def nbytes(self) -> int:
        """How much it writes."""
        return sum(len(piece.new) for piece in self.pieces)

    @property
    def old(self) -> bytes:
        """All bytes that it overwrites; to write them back is to undo it."""
        return b"".join(piece.old for piece in self.pieces)


class MemoryWriter:
    """Plans writes and carries them out. ``private`` is None for a guest without encryption.

    ``forget`` is told the gpa of every page whose bytes may have changed.
    """

    def __init__(
        self, slots: SlotMap, shared: MemoryStore, private: MemoryStore | None, forget: Callable[[int], None]
    ) -> None:
        self._slots = slots
        self._shared = shared
        self._private = private
        self._forget = forget

    def plan(self, spans: Iterable[Span]) -> WritePlan:
        """Check every byte's place, and then read what is there; nothing is written.

        Raises MemoryFault for the first byte that is no RAM, read-only to the guest, or cannot be read, and
        BadGuestData where two spans want one page both private and shared.
        """
        wanted = [part for span in spans for part in self._parts(span)]
        ways: dict[int, bool] = {}
        for span in wanted:
            if ways.setdefault(span.gpa & ~PAGE_MASK, span.private) != span.private:
                raise errors.BadGuestData(
                    f"the page of gpa 0x{span.gpa:x} is mapped as private and as shared in one write"
                )
        return WritePlan(_merged([self._read(span) for span in wanted]))

    def carry_out(self, plan: WritePlan) -> None:
        """Write, page by page in the plan's order, and read each page back before the next one is touched.

        Raises WriteFailed, or TargetGone where there is nothing left to write to.
        """
        done = 0
        for piece in plan.pieces:
            try:
                self._store(piece.private).write(piece.first_hva, piece.after)
                wrong = self._first_difference(piece)
            except errors.TargetGone:
                raise
            except errors.SevKvmError as error:
                where = piece.place(piece.gpa)
                raise errors.WriteFailed(*where, error.message, written=done, cause=error) from error
            finally:
                self._forget(piece.gpa & ~PAGE_MASK)
            if wrong is not None:
                where = piece.place(piece.first_gpa + wrong)
                raise errors.WriteFailed(*where, "what was written does not read back", written=done)
            done += len(piece.new)

    def _parts(self, span: Span) -> Iterable[Span]:
        """The span cut at page borders, each part in RAM that the guest could write."""
        private = span.private and self._private is not None
        start = 0
        while start < len(span.data):
            gpa = span.gpa + start
            nbytes = min(len(span.data) - start, PAGE_NBYTES - (gpa & PAGE_MASK))
            gva = None if span.gva is None else span.gva + start
            part = Span(gpa, private, span.data[start : start + nbytes], gva)
            self._require_writable(part)
            yield part
            start += nbytes

    def _require_writable(self, part: Span) -> None:
        slot = self._slots.find(part.gpa)
        if slot is None:
            raise _fault(part, "not guest RAM, but MMIO or a hole")
        if slot.readonly:
            raise _fault(part, "the guest has ROM or flash there" + (f" ({slot.name})" if slot.name else ""))
        if slot.guessed and part.gpa in _LEGACY_WINDOW:
            raise _fault(
                part,
                "it may be ROM or video memory: where the guest has RAM was guessed",
                help="--qmp or --slot tells it exactly",
            )

    def _read(self, span: Span) -> WritePiece:
        """The piece as if it were the only one."""
        mask = _BLOCK_MASK if span.private else 0
        first, end = span.gpa & ~mask, (span.gpa + len(span.data) + mask) & ~mask
        hva = self._slots.hva(first)
        before = bytearray(end - first)
        store = self._store(span.private)
        if hva is None or store.readinto(first, hva, memoryview(before)) < len(before):
            raise _fault(span, f"what is there cannot be read: {store.reason}")
        start = span.gpa - first
        after = before[:start] + span.data + before[start + len(span.data) :]
        return WritePiece(
            span.gpa, span.gva, span.private, span.data, first, hva, bytes(before), bytes(after)
        )

    def _first_difference(self, piece: WritePiece) -> int | None:
        """Where what is there now is not what was written; an offset from ``first_gpa``."""
        found = bytearray(len(piece.after))
        store = self._store(piece.private)
        nbytes = store.readinto(piece.first_gpa, piece.first_hva, memoryview(found))
        if nbytes == len(found) and found == piece.after:
            return None
        return next((at for at in range(nbytes) if found[at] != piece.after[at]), nbytes)

    def _store(self, private: bool) -> MemoryStore:
        return self._private if private and self._private is not None else self._shared


def _merged(pieces: Sequence[WritePiece]) -> tuple[WritePiece, ...]:
    """The pieces with what all of them together leave in a page: addresses of one write may lead to one page twice."""
    by_page: dict[int, list[WritePiece]] = {}
    for piece in pieces:
        by_page.setdefault(piece.gpa & ~PAGE_MASK, []).append(piece)
    if len(by_page) == len(pieces):
        return tuple(pieces)
    images: dict[int, bytearray] = {}
    for page_gpa, own in by_page.items():
        image = images[page_gpa] = bytearray(PAGE_NBYTES)
        for piece in own:
            start = piece.first_gpa - page_gpa
            image[start : start + len(piece.before)] = piece.before
        for piece in own:
            start = piece.gpa - page_gpa
            image[start : start + len(piece.new)] = piece.new
    done = []
    for piece in pieces:
        image = images[piece.gpa & ~PAGE_MASK]
        start = piece.first_gpa & PAGE_MASK
        after = bytes(image[start : start + len(piece.before)])
        done.append(replace(piece, after=after))
    return tuple(done)


def _fault(part: Span, reason: str, help: str | None = None) -> errors.MemoryFault:
    if part.gva is None:
        return errors.MemoryFault("gpa", part.gpa, reason=reason, help=help)
    return errors.MemoryFault("gva", part.gva, reason=f"at gpa 0x{part.gpa:x}: {reason}", help=help)
