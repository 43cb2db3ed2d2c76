"""A canary put into the guest by us, and taken out again: for a guest of which nobody knows what is in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from sevkvm import errors
from sevkvm.abi.x86 import PAGE_MASK, PAGE_NBYTES
from sevkvm.pages.classify import PageKind
from sevkvm.verify.report import Check, Outcome

if TYPE_CHECKING:
    from sevkvm.guest import Guest
    from sevkvm.verify.pagemap import Known

_HELP: Final = "`sevkvm pages --list` shows private memory; take a page that nobody misses for a moment"
_SHOWN_NBYTES: Final = 4096


@contextmanager
def placed(guest: Guest, known: Known, gpa: int, canary: bytes) -> Iterator[None]:
    """Write ``canary`` at ``gpa`` through the debug path; put back what was there, whatever happens meanwhile.

    To be used while the guest is held: it must not see the canary. UsageError where that is no private memory.
    """
    for page in range(gpa & ~PAGE_MASK, gpa + len(canary), PAGE_NBYTES):
        kind = known.pages.kind(page) if known.pages is not None else None
        if kind is not PageKind.PRIVATE:
            told = f"the page at gpa 0x{page:x} is {kind.value if kind else 'no RAM'}"
            raise errors.UsageError(
                f"no canary is placed there: {told if known.pages is not None else known.why}", help=_HELP
            )
    before = guest.memory.read(gpa, len(canary), private=True)
    plan = guest.plan_physical_write(gpa, canary, private=True)  # refuses ROM before anything is changed
    try:
        guest.carry_out(plan)
        yield
    finally:
        _put_back(guest, gpa, before)


def _put_back(guest: Guest, gpa: int, before: bytes) -> None:
    try:
        guest.write_physical(gpa, before, private=True)
    except errors.SevKvmError as error:
        raise errors.SevKvmError(
            f"the canary is still at gpa 0x{gpa:x}: {error.message}",
            help=f"there was: {before[:_SHOWN_NBYTES].hex()}",
        ) from error


def placed_check(gpa: int) -> Check:
    """To be told once it is gone again."""
    told = f"at gpa 0x{gpa:x}; what was there is back"
    return Check("canary-placed", "the canary was placed through the debug path", Outcome.PASS, (told,), True)
