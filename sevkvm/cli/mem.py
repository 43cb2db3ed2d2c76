"""``sevkvm mem``: what a guest's page tables map, as runs."""

from __future__ import annotations

from sevkvm.cli.command import command as sevkvm_command
from sevkvm.cli.listing import answer
from sevkvm.cli.listing_options import Request, listing_options
from sevkvm.cli.options import GuestSession


@sevkvm_command(
    "mem",
    examples="""
    # as QEMU's monitor prints it; any number of ranges, or everything
    sevkvm mem --pid 4242
    # with C-bit, execute right and page size, which are then told apart
    sevkvm mem --pid 4242 --columns 0xffffffff80000000:+1G
    # how much is mapped, private, shared; is anything writable and executable?
    sevkvm mem --pid 4242 --summary
    # shared memory, in bytes
    sevkvm mem --pid 4242 --json | jq '[.[] | select(.private == false).size] | add'
    """,
)
@listing_options(leaves=False)
def command(session: GuestSession, request: Request) -> None:
    """List what the guest's page tables map as runs of equal rights, byte for byte as QEMU's monitor command info mem.

    RANGE is START:END (END not part of it) or START:+SIZE of guest-virtual addresses. Rights (u r w, in the columns
    also x) are those of the whole walk. QEMU's format tells apart user and write rights only; --columns, --json and
    --csv tell apart the C-bit, execute rights and page sizes, too. The guest stands still meanwhile, but it does not
    wait for whoever reads the output, nor longer than --hold: then it runs on, and stderr tells from which address
    on that is so. Tables that cannot be read are told on stderr, and the exit status is 6.
    """
    answer(session, request)
