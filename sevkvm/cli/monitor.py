"""``sevkvm monitor``: QEMU's monitor commands on a guest, in a console or one after the other."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from sevkvm.cli.command import command as sevkvm_command
from sevkvm.cli.options import GuestSession, guest_options
from sevkvm.cli.run import warn

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
    # the same of a dump
    sevkvm monitor --file guest.core -c 'info mem'
    """,
)
@click.option(
    "-c", "--command", "lines", multiple=True, metavar="LINE", help="Execute this and leave; repeatable."
)
@guest_options
def command(session: GuestSession, lines: tuple[str, ...]) -> None:
    """Answer the commands of QEMU's monitor, byte for byte as QEMU would of a guest that is not encrypted.

    Without -c it is a console with history and completion; `help` lists the commands. The vCPUs are held only while a
    command looks at them. With -c the exit status is that of the first command that failed: 1, or 6 where its answer
    ends at memory that cannot be read. `stop` and `cont` are the VMM's own; where its monitor is not known, sevkvm
    holds the vCPUs itself until it ends. docs/monitor.md tells where answers differ from QEMU's.
    """
    with opened(session) as monitor:
        if lines:
            status = _run(monitor, lines)
        else:
            from sevkvm.cli.console import converse

            converse(monitor)
            status = 0
    click.get_current_context().exit(status)


@contextmanager
def opened(session: GuestSession) -> Iterator[Monitor]:
    """Attach, and yield a conversation that can begin."""
    from sevkvm.monitor.monitor import Monitor
    from sevkvm.monitor.runcontrol import RunControl

    with session.open() as guest:
        outside = outside_of(session, guest)
        with RunControl(guest, outside) as control:
            yield Monitor(guest, outside, control)


def outside_of(session: GuestSession, guest: Guest) -> Outside:
    """Whoever else can be asked about this guest."""
    if guest.pid is None:
        from sevkvm.monitor.outside import NoOutside

        return NoOutside()
    from sevkvm.attach import AttachOptions
    from sevkvm.attach.outside import Outside as VmmOutside

    return VmmOutside(guest.pid, AttachOptions(**session.arguments), warn)


def _run(monitor: Monitor, lines: tuple[str, ...]) -> int:
    status = 0
    for line in lines:
        sys.stdout.write(monitor.execute(line))
        status = status or monitor.status
        if monitor.over:
            break
    return status
