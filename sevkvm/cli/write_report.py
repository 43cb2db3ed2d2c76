"""What ``sevkvm write`` tells: where each byte went, what was there, how far it came."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sevkvm.abi.x86 import PAGE_MASK
from sevkvm.cli.render import hexadecimal
from sevkvm.errors import WriteFailed

if TYPE_CHECKING:
    from sevkvm.cli.write_target import Planned, Target
    from sevkvm.guest import Guest
    from sevkvm.memory.write import WritePiece

_SHOWN_NBYTES: Final = 256
_LINE_NBYTES: Final = 16


@dataclass
class Outcome:
    """``written``: bytes written and read back, None where the VMM's end leaves that open; ``failed``: why not all."""

    target: Target
    planned: Planned
    encrypted: bool
    dry_run: bool
    written: int | None = 0
    failed: WriteFailed | None = None

    def carry_out(self, guest: Guest) -> None:
        """Write, and remember how far it came; a failure is for the caller to raise once all is told."""
        self.written = None
        try:
            guest.carry_out(self.planned.plan)
        except WriteFailed as error:
            self.written, self.failed = error.written, error
        else:
            self.written = self.planned.plan.nbytes

    def text(self) -> Iterator[str]:
        """Lines for people: a piece of at most a page each, its old bytes above the new ones."""
        for piece in self.planned.plan.pieces:
            words = [f"gva 0x{piece.gva:x}"] if piece.gva is not None else []
            words += [f"gpa 0x{piece.gpa:x}", *(["private" if piece.private else "shared"] * self.encrypted)]
            words += [f"{len(piece.new)} bytes", *(["page table"] * self._is_table(piece))]
            yield ", ".join(words)
            yield from _lines("old", piece.old)
            yield from _lines("new", piece.new)

    def json(self) -> dict[str, Any]:
        """The same for programs (docs/json.md)."""
        plan = self.planned.plan
        return {
            "address_space": self.target.space,
            "address": hexadecimal(self.target.address),
            "size": plan.nbytes,
            "dry_run": self.dry_run,
            "written": self.written,
            "failed_at": hexadecimal(self.failed.address) if self.failed else None,
            "old": plan.old.hex(),
            "new": self.target.data.hex(),
            "pieces": [
                {
                    "gva": hexadecimal(piece.gva),
                    "gpa": hexadecimal(piece.gpa),
                    "size": len(piece.new),
                    "private": piece.private if self.encrypted else None,
                    "page_table": self._is_table(piece),
                }
                for piece in plan.pieces
            ],
        }

    def _is_table(self, piece: WritePiece) -> bool:
        return piece.gpa & ~PAGE_MASK in self.planned.table_gpas


def _lines(name: str, data: bytes) -> Iterator[str]:
    for at in range(0, min(len(data), _SHOWN_NBYTES), _LINE_NBYTES):
        yield f"  {name if not at else '   '}  {data[at : at + _LINE_NBYTES].hex(' ')}"
    if len(data) > _SHOWN_NBYTES:
        yield f"       ... {len(data) - _SHOWN_NBYTES} bytes more (--json has all)"
