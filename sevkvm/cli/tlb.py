"""``sevkvm tlb``: every page that a guest's page tables map."""

from __future__ import annotations

from sevkvm.cli.command import command as sevkvm_command
from sevkvm.cli.listing import answer
from sevkvm.cli.listing_options import Request, listing_options
from sevkvm.cli.options import GuestSession


@sevkvm_command(
    "tlb",
    examples="""
    # as QEMU's monitor prints it; any number of ranges, or everything
    sevkvm tlb --pid 4242 0xffffffff80000000:+1G
    # with the C-bit and the rights of the whole walk
    sevkvm tlb --pid 4242 --columns | less
    # which pages does the guest share with the host?
    sevkvm tlb --pid 4242 --columns | grep shared
    # what a process maps, for a spreadsheet
    sevkvm tlb --pid 4242 --cr3 0x10a000 --csv 0:0x800000000000 > process.csv
    """,
)
@listing_options(leaves=True)
def command(session: GuestSession, request: Request) -> None:
    """List every page that the guest's page tables map, byte for byte as QEMU's monitor command info tlb.

    RANGE is START:END (END not part of it) or START:+SIZE of guest-virtual addresses; a page that lies in it in part
    is listed. The flags are those of the page's own entry, in QEMU's format XGPDACTUW (X: not executable); --columns
    adds the rights of the whole walk (u r w x). The guest stands still meanwhile, but it does not wait for
    whoever reads the output, nor longer than --hold: then it runs on, and stderr tells from which address on that
    is so. Tables that cannot be read are told on stderr, and the exit status is 6.
    """
    answer(session, request)
