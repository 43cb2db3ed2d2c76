"""The one real attach of ``--attach``: what it takes, and whether registers and memory come."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sevkvm import errors
from sevkvm.doctor.finding import Finding, passed, refused, skipped, warned
from sevkvm.memory.policy import require_debug

if TYPE_CHECKING:
    from sevkvm.doctor.guest import Opener
    from sevkvm.guest import Guest
    from sevkvm.memory.policy import SevInfo

_PROBE_NBYTES = 16  # one block of the cipher: one firmware command


def measure(attach: Opener) -> tuple[SevInfo | None, list[Finding]]:
    """What the kernel says of the guest, and what was measured; a failure in the words of the error."""
    found: list[Finding] = []
    info: SevInfo | None = None
    try:
        with attach() as guest:
            info = guest.sev
            found += _look(guest)
            stats = guest.stats()
    except errors.SevKvmError as error:
        return info, [*found, refused("attach", error)]
    entered = "nothing had to be entered" if "attach_ns" not in stats else _times(stats)
    held = stats["held_ns"]
    vcpus = f"; the vCPUs for {held / 1e6:.2f} ms" if held else ""
    return info, [passed("attach", f"{entered}{vcpus}"), *found]


def _times(stats: dict[str, int]) -> str:
    attach_ms, borrowed_ms = stats["attach_ns"] / 1e6, stats.get("borrowed_ns", 0) / 1e6
    if "borrowed_ns" not in stats:
        return f"took {attach_ms:.2f} ms; the VMM was not entered"
    return f"took {attach_ms:.2f} ms; one thread of the VMM stood still for {borrowed_ms:.2f} ms"


def _look(guest: Guest) -> Iterator[Finding]:
    try:
        states = guest.registers()
        yield passed("registers", f"read, of {len(states)} vCPU{'' if len(states) == 1 else 's'}")
    except errors.RegistersUnavailable as error:
        yield warned("registers", str(error), error.help)
    yield _memory(guest)


def _memory(guest: Guest) -> Finding:
    try:
        require_debug(guest.sev)
    except errors.SevKvmError as error:
        return skipped("memory", f"not read: {error}")
    if not len(guest.slots):
        return skipped("memory", "not read: its place is not known")
    gpa = next(iter(guest.slots)).gpa
    try:
        guest.memory.read(gpa, _PROBE_NBYTES, guest.sev.encrypted)
    except errors.SevKvmError as error:
        return refused("memory", error)
    how = "decrypted" if guest.sev.encrypted else "read"
    return passed("memory", f"{_PROBE_NBYTES} bytes at gpa 0x{gpa:x} {how}")
