"""What came of a dump: for people on stderr, for programs as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sevkvm.cli.render import hexadecimal, size
from sevkvm.cli.run import say, warn

if TYPE_CHECKING:
    from sevkvm.dump import CbitOutcome, DumpResult, Hole
    from sevkvm.pages.classify import PageMap

_HOLES_TOLD = 10
_REASONS = {
    "not-mapped": "not mapped",
    "unreadable": "could not be read",
    "unreadable-sampled": "could not be read (samples tried)",
    "skipped": "left out",
}


def tell(result: DumpResult, pages: PageMap, output: str, space: str) -> None:
    """On stderr: how much is in ``output``, and what is missing. ``space`` is ``gpa`` or ``gva``."""
    if pages.conflicts:
        nbytes = sum(nbytes for _, nbytes in pages.conflicts)
        warn(
            f"{size(nbytes)} are mapped both as private and as shared; they were read as the kernel's direct map "
            "has them, or as private where it does not tell"
        )
    if pages.scan and (pages.scan.unreadable_count or pages.scan.limits_hit):
        warn("not all page tables could be read: pages that only they map were read as unmapped ones are")
    if result.registers_missing:
        warn(f"the file holds no registers: {result.registers_missing}")
    if result.vmcoreinfo_missing:
        warn(
            f"the file has no VMCOREINFO note, without which drgn, makedumpfile and libkdumpfile refuse it: "
            f"{result.vmcoreinfo_missing}"
        )
    _tell_cbit(result.cbit)
    lost = _losses(result)
    for hole in lost[:_HOLES_TOLD]:
        zeros = "; the file shows zeros there" if hole.zero_filled else ""
        warn(
            f"{space} 0x{hole.address:x}:+0x{hole.nbytes:x} {_REASONS.get(hole.reason.value, hole.reason.value)}{zeros}"
        )
    if len(lost) > _HOLES_TOLD:
        warn(f"and {len(lost) - _HOLES_TOLD} more holes; --json lists all")
    where = "stdout" if output == "-" else output
    missing = sum(hole.nbytes for hole in lost)
    end = f", {size(missing)} missing" if lost else ""
    left_out = sum(hole.nbytes for hole in result.holes if hole.reason.value == "left-out")
    if left_out:
        zeros = " (the file shows zeros there)" if result.format.value in ("raw", "padded") else ""
        end += f", {size(left_out)} left out that no page table reaches{zeros}"
    if result.excluded:
        named = ", ".join(
            f"{name.replace('_', '-')} {size(nbytes)}" for name, nbytes in result.excluded.items()
        )
        end += f"; excluded: {named}"
    live = ", while the guest ran: not one moment in time" if result.live else ""
    say(f"{where}: {size(result.copied_nbytes)} of guest memory in {len(result.ranges)} ranges{live}{end}")


def _tell_cbit(cbit: CbitOutcome) -> None:
    """What a reader of the file must know of its page tables."""
    if cbit.fallback:
        twice = cbit.mode is not None and cbit.mode.value == "alias"
        so = "; memory is in the file a second time, at gpa | C-bit" if twice else ""
        warn(f"page tables keep the C-bit: {cbit.fallback}{so}")
    for reason in cbit.unknown:
        warn(f"page tables of start-up code or of EFI may keep the C-bit: {reason}")


def _losses(result: DumpResult) -> list[Hole]:
    """Holes that are neither how the machine is laid out nor asked for."""
    return [hole for hole in result.holes if hole.reason.value not in ("not-ram", "left-out")]


def summary(result: DumpResult, pages: PageMap, output: str, space: str) -> dict[str, Any]:
    """The object of ``--json``."""
    return {
        "output": output,
        "format": result.format.value,
        "address_space": space,
        "file_size": result.file_nbytes,
        "copied": result.copied_nbytes,
        "complete": result.complete,
        "live": result.live,
        "vcpus": result.vcpus,
        "registers_missing": result.registers_missing,
        "cbit": result.cbit.mode.value if result.cbit.mode else None,
        "cbit_fallback": result.cbit.fallback,
        "cbit_unknown": list(result.cbit.unknown),
        "stripped_tables": result.cbit.tables,
        "vmcoreinfo": result.osrelease,
        "vmcoreinfo_missing": result.vmcoreinfo_missing,
        "excluded": result.excluded,
        "pages": {kind.name.lower(): nbytes for kind, nbytes in pages.totals().items()}
        if space == "gpa"
        else None,
        "ranges": [
            {
                "address": hexadecimal(placed.piece.address),
                "gpa": hexadecimal(placed.piece.gpa),
                "size": placed.piece.nbytes,
                "offset": placed.offset if result.format.value != "kdump" else None,
            }
            for placed in result.ranges
        ],
        "holes": [
            {
                "address": hexadecimal(hole.address),
                "size": hole.nbytes,
                "reason": hole.reason.value,
                "zero_filled": hole.zero_filled,
            }
            for hole in result.holes
        ],
    }
