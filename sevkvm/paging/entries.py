"""What one entry says by itself: where it leads, and which of its bits must not be set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sevkvm.abi.x86 import PTE_P, PTE_PS
from sevkvm.native import EntryFlag
from sevkvm.paging.decoder import decoder_for

if TYPE_CHECKING:
    from sevkvm.paging.form import PagingForm

_RESERVED: Final = int(EntryFlag.RESERVED)


def leads_to(form: PagingForm, level: int, raw: int) -> int:
    """The gpa of the table or page that a present entry of this level points to; the C-bit is taken off."""
    return decoder_for(form).entry(level, raw)[0]


def reserved_bits(form: PagingForm, level: int, raw: int) -> int:
    """A mask of those bits set in a present entry at which the processor would fault; 0 if there are none.

    The decoder knows the rules and is asked bit by bit, so that no second list of them stands here.
    """
    decoder = decoder_for(form)

    def refused(entry: int) -> bool:
        return bool(decoder.entry(level, entry)[2] & _RESERVED)

    kept, found = PTE_P, 0
    if raw & PTE_PS:
        if refused(PTE_P | PTE_PS):
            found = PTE_PS
        else:
            kept |= PTE_PS  # a large page's address has reserved bits of its own
    for bit in range(64):
        mask = 1 << bit
        if raw & mask and not kept & mask and mask != PTE_PS and refused(kept | mask):
            found |= mask
    return found


def entry_nbytes(form: PagingForm, level: int) -> int:
    """How much guest-virtual memory one entry of a table of this level spans: the page size, if it is a leaf."""
    return 1 << decoder_for(form).levels[level].shift
