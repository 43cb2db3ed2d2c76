"""``sevkvm monitor``: QEMU's monitor commands on a guest, in a console or one after the other."""

from __future__ import annotations

import functools
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from sevkvm.cli.command import command as sevkvm_command
from sevkvm.cli.options import GuestSession, guest_options, mmio_option
from sevkvm.cli.run import say, warn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sevkvm.guest import Guest
    from sevkvm.monitor.monitor import Monitor
    from sevkvm.monitor.outside import Outside


@sevkvm_command(
    "monitor",
    examples="""
    sevkvm monitor --pid 4242
    # for scripts: one answer after the other
    sevkvm monitor --pid 4242 -c 'info registers' -c 'x /8i $pc' -c 'xp /4xg 0x1000'
    # with the names that the guest's kernel has for its addresses
    sevkvm monitor --pid 4242 --symbols -c 'sym $rip' -c 'addr jiffies' -c 'x /8i schedule'
    # for programs that drive QEMU's monitor
    sevkvm monitor --pid 4242 --listen unix:/run/guest.sock &
    drgn --qemu /run/guest.sock
    # the same of a dump
    sevkvm monitor --file guest.core -c 'info mem'
    """,
)
@click.option(
    "-c", "--command", "lines", multiple=True, metavar="LINE", help="Execute this and leave; repeatable."
)
@click.option(
    "--listen",
    "address",
    metavar="ADDRESS",
    help="Answer programs that speak QMP on unix:PATH or tcp:127.0.0.1:PORT, until interrupted.",
)
@click.option("--hmp", is_flag=True, help="--listen speaks the human monitor's language instead.")
@click.option(
    "--listen-anywhere", "anywhere", is_flag=True, help="--listen may be reached by other machines."
)
@click.option(
    "--symbols",
    is_flag=True,
    help="Show the kernel's names in `x`, and take them in expressions: x /8i do_idle+16.",
)
@mmio_option
@guest_options
def command(
    session: GuestSession,
    lines: tuple[str, ...],
    address: str | None,
    hmp: bool,
    anywhere: bool,
    symbols: bool,
) -> None:
    """Answer the commands of QEMU's monitor, byte for byte as QEMU would of a guest that is not encrypted.

    Without -c it is a console with history and completion; `help` lists the commands. The vCPUs are held only while a
    command looks at them. With -c the exit status is that of the first command that failed: 1, or 6 where its answer
    ends at memory that cannot be read. `stop` and `cont` are the VMM's own; where its monitor is not known, sevkvm
    holds the vCPUs itself until it ends. With --mmio, `x` and `xp` of what is no RAM are the VMM's, too, one access an
    item. docs/monitor.md tells where answers differ from QEMU's.
    """
    if address is None and (hmp or anywhere):
        raise click.UsageError("--hmp and --listen-anywhere need --listen", click.get_current_context())
    if address is not None and lines:
        raise click.UsageError("-c and --listen exclude each other", click.get_current_context())
    if address is not None and symbols:
        raise click.UsageError(
            "--symbols and --listen exclude each other: programs expect QEMU's answers",
            click.get_current_context(),
        )
    if address is not None:
        _listen(session, address, hmp=hmp, anywhere=anywhere)
        return
    with opened(session, symbolic=symbols) as monitor:
        if lines:
            status = _run(monitor, lines)
        else:
            from sevkvm.cli.console import converse

            converse(monitor)
            status = 0
    click.get_current_context().exit(status)


@contextmanager
def opened(session: GuestSession, *, symbolic: bool = False) -> Iterator[Monitor]:
    """Attach, and yield a conversation that can begin; ``symbolic``: with the kernel's names, or not at all."""
    from sevkvm.monitor.monitor import Monitor
    from sevkvm.monitor.runcontrol import RunControl

    with session.open() as guest:
        outside = outside_of(session, guest)
        with RunControl(guest, outside) as control:
            monitor = Monitor(guest, outside, control, symbolic=symbolic, told=say)
            if symbolic:
                monitor.symbols()
            yield monitor


def outside_of(session: GuestSession, guest: Guest) -> Outside:
    """Whoever else can be asked about this guest."""
    if guest.pid is None:
        from sevkvm.monitor.outside import NoOutside

        return NoOutside()
    from sevkvm.attach import AttachOptions
    from sevkvm.attach.outside import Outside as VmmOutside

    return VmmOutside(guest.pid, AttachOptions(**session.arguments), warn)


def _listen(session: GuestSession, address: str, *, hmp: bool, anywhere: bool) -> None:
    """Serve until interrupted; the address is refused before anybody is attached to."""
    from sevkvm.monitor.hmp import HmpConversation
    from sevkvm.monitor.listening import listening
    from sevkvm.monitor.monitor import Monitor
    from sevkvm.monitor.qmp import QmpConversation
    from sevkvm.monitor.runcontrol import RunControl
    from sevkvm.monitor.server import Server

    converse = HmpConversation if hmp else QmpConversation
    with listening(address, anywhere=anywhere) as (listener, shown), session.open() as guest:
        outside = outside_of(session, guest)
        with RunControl(guest, outside) as control:
            say(f"listening on {shown}")
            server = Server(
                listener,
                lambda: converse(Monitor(guest, outside, control)),
                functools.partial(_check_alive, guest.pid),
            )
            server.serve()


def _check_alive(pid: int | None) -> None:
    """TargetGone for a VMM that is dead; a dump never is."""
    from sevkvm import errors
    from sevkvm.host import procfs

    try:
        dead = pid is not None and procfs.stat(pid).state in ("Z", "X")
    except errors.VmNotFound:
        dead = True
    if dead:
        raise errors.TargetGone("the VMM has ended")


def _run(monitor: Monitor, lines: tuple[str, ...]) -> int:
    status = 0
    for line in lines:
        sys.stdout.write(monitor.execute(line))
        status = status or monitor.status
        if monitor.over:
            break
    return status
