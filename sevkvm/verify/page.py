"""One page seen twice, as the host has it and through the debug path, and what that proves.

The host's view is the VMM's own mapping, read without the firmware: of private memory ciphertext, of shared memory
what the guest sees. The debug path decrypts, whatever is there: of shared memory it makes noise.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from sevkvm.abi.sev import BLOCK_NBYTES
from sevkvm.abi.x86 import PAGE_NBYTES
from sevkvm.errors import MemoryFault
from sevkvm.verify.noise import Noise, measure
from sevkvm.verify.report import Outcome

if TYPE_CHECKING:
    from sevkvm.memory.source import PhysicalMemory

_ZEROS = bytes(PAGE_NBYTES)


class Expected(str, Enum):
    """What a page should be. KNOWN: private, and its plaintext is no noise. UNKNOWN: nobody says."""

    PRIVATE = "private"
    KNOWN = "known"
    SHARED = "shared"
    UNKNOWN = "unknown"


class Views(NamedTuple):
    """A page as the host sees it, and as the debug path returns it (None: it was not asked)."""

    host: bytes
    plain: bytes | None

    @property
    def untouched(self) -> bool:
        """The host sees zeros: nobody ever wrote there, or zeros were shared."""
        return self.host == _ZEROS

    @property
    def equal_blocks(self) -> int:
        """16-byte blocks that both views have in common, each at its place."""
        return (
            0
            if self.plain is None
            else sum(
                self.host[at : at + BLOCK_NBYTES] == self.plain[at : at + BLOCK_NBYTES]
                for at in range(0, PAGE_NBYTES, BLOCK_NBYTES)
            )
        )


class PageFinding(NamedTuple):
    """What was found of one page; ``what`` it is in words, ``host`` how its host's view looks (None: unreadable)."""

    gpa: int
    what: str
    outcome: Outcome
    reason: str
    host: Noise | None = None


def look(memory: PhysicalMemory, gpa: int, *, decrypt: bool = True) -> Views:
    """Both views of a page; MemoryFault where one cannot be read. FirmwareError if the firmware refuses."""
    # Plaintext first: for a decryption the kernel flushes the cache lines through which the host would see old data.
    plain = memory.read(gpa, PAGE_NBYTES, private=True) if decrypt else None
    return Views(memory.read(gpa, PAGE_NBYTES, private=False), plain)


def examine(
    memory: PhysicalMemory, gpa: int, what: str, expected: Expected, *, untouched_ok: bool = False
) -> tuple[PageFinding, Views | None]:
    """Look at a page and judge it; no views if it cannot be read."""
    try:
        views = look(memory, gpa)
    except MemoryFault as fault:
        return PageFinding(gpa, what, Outcome.SKIP, f"cannot be read: {fault.reason}"), None
    return judge(gpa, what, views, expected, untouched_ok=untouched_ok), views


def judge(
    gpa: int, what: str, views: Views, expected: Expected, *, untouched_ok: bool = False
) -> PageFinding:
    """What both views of a page prove. ``untouched_ok``: a private page that was never written gives nothing away."""
    assert views.plain is not None
    host, plain = measure(views.host), measure(views.plain)
    outcome, reason = _verdict(views, host, plain, expected, untouched_ok)
    return PageFinding(gpa, what, outcome, reason, host)


def _verdict(
    views: Views, host: Noise, plain: Noise, expected: Expected, untouched_ok: bool
) -> tuple[Outcome, str]:
    shared = expected is Expected.SHARED
    if views.untouched and not shared:
        reason = "never written: the host sees zeros"
        if expected is Expected.UNKNOWN or (untouched_ok and expected is Expected.PRIVATE):
            return Outcome.SKIP, reason
        return Outcome.FAIL, reason
    if equal := views.equal_blocks:
        blocks = f"{equal} of {PAGE_NBYTES // BLOCK_NBYTES} blocks"
        return (
            Outcome.FAIL,
            f"the debug path returns what the host sees ({blocks}): nothing is encrypted there",
        )
    if host.is_noise and plain.is_noise:
        if expected is Expected.KNOWN:
            return Outcome.FAIL, "the debug path returns noise, which this page cannot hold"
        return Outcome.SKIP, "its contents are noise themselves: nothing is shown"
    if not host.is_noise and not plain.is_noise:
        return Outcome.FAIL, f"the host's view is not noise ({host.entropy:.2f} bits a byte)"
    if host.is_noise:
        if shared:
            return Outcome.FAIL, "encrypted: the host sees noise, and the debug path returns data"
        return Outcome.PASS, f"the host sees noise ({host.entropy:.2f} bits a byte), the debug path plaintext"
    seen = "zeros" if views.untouched else "data"
    if shared:
        return Outcome.PASS, f"the host sees {seen}, which decryption makes noise"
    if expected is Expected.UNKNOWN:
        return Outcome.SKIP, "shared, by its contents: the host sees data, which decryption makes noise"
    return Outcome.FAIL, "not encrypted: the host sees data, which decryption makes noise"
