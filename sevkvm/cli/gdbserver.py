"""``sevkvm gdbserver``: gdb on a guest."""

from __future__ import annotations

import shlex
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import click

from sevkvm.cli.command import command as sevkvm_command
from sevkvm.cli.options import GuestSession, guest_options, mmio_option
from sevkvm.cli.run import say, warn
from sevkvm.cli.signals import Deferral
from sevkvm.cli.values import SECONDS
from sevkvm.errors import RegistersUnavailable, SevKvmError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sevkvm.gdbserver.listen import TcpAddress, UnixAddress
    from sevkvm.gdbserver.session import Monitor, Session
    from sevkvm.gdbserver.stub import Stub
    from sevkvm.guest import Guest


@sevkvm_command(
    "gdbserver",
    examples="""
    sevkvm gdbserver --pid 4242 --qmp /run/vm.qmp --listen unix:/run/vm.gdb
    gdb vmlinux -ex 'target remote /run/vm.gdb'
    # no vmlinux at hand, or KASLR: the kernel's own names, where they are now
    sevkvm gdbserver --pid 4242 --symbols kernel.sym --listen unix:/run/vm.gdb
    gdb kernel.sym -ex 'target remote /run/vm.gdb'
    # let the guest run on after 20 seconds, whatever gdb does
    sevkvm gdbserver --pid 4242 --max-stop 20 --listen tcp:127.0.0.1:1234
    # steps and breakpoints by QEMU (`gdbserver unix:/run/vm.stub,server=on,wait=off` in its monitor), memory by us
    sevkvm gdbserver --pid 4242 --upstream unix:/run/vm.stub --listen unix:/run/vm.gdb
    # a dump
    sevkvm gdbserver --file guest.core
    """,
)
@click.option(
    "--listen",
    metavar="ADDRESS",
    help="unix:PATH (mode 0600) or tcp:127.0.0.1:PORT, 0 for any port; unix:sevkvm-gdb-PID.sock if left out.",
)
@click.option("--listen-anywhere", is_flag=True, help="Allow TCP addresses that others can reach.")
@click.option(
    "--max-stop",
    type=SECONDS,
    metavar="SECONDS",
    help="Longest time that the guest may stand still; the client is then dropped.",
)
@click.option(
    "--upstream",
    metavar="ADDRESS",
    help="The VMM's own gdb stub (unix:PATH or tcp:HOST:PORT): registers, steps and breakpoints are its affair.",
)
@click.option(
    "--symbols",
    metavar="FILE",
    help="Write the names that the guest's kernel has for its addresses to FILE (ELF, mode 0600), for gdb to load.",
)
@click.option("--write", is_flag=True, help="Let gdb change the guest's memory.")
@click.option("--once", is_flag=True, help="End when the first client has left.")
@mmio_option
@guest_options
def command(
    session: GuestSession,
    listen: str | None,
    listen_anywhere: bool,
    max_stop: float | None,
    upstream: str | None,
    symbols: str | None,
    write: bool,
    once: bool,
) -> None:
    """Serve a guest to gdb: registers and virtual memory of its vCPUs, decrypted, one thread for each vCPU.

    gdb's first packet stops the guest. `continue` lets it run, Ctrl-C stops it again; when gdb detaches or goes away,
    and when sevkvm ends in whatever way, it runs. Steps and breakpoints are refused: the VMM would take their exits
    for the guest's own. Memory is changed with --write only, registers never.

    With --upstream QEMU's own stub steps, breaks (by hardware only) and changes registers; memory is still read and
    written here. With --mmio what is no RAM is read by the VMM's monitor, while it is the VMM that keeps the guest
    from running (--upstream, or `stop` in its monitor). `maint packet Qqemu.PhyMemMode:1` makes addresses
    guest-physical; `monitor` takes the commands of `sevkvm monitor`. The address it listens on is printed when gdb
    may connect (docs/gdb.md).
    """
    from sevkvm.cli.gdb_monitor import monitor_for
    from sevkvm.cli.symbol_file import symbol_target, write_symbol_file
    from sevkvm.gdbserver.listen import UnixAddress, listening, parse_address
    from sevkvm.gdbserver.server import Limits, Server

    address = parse_address(listen, anywhere=listen_anywhere) if listen else None
    stub = parse_address(upstream, anywhere=True) if upstream else None
    if stub is not None and session.file is not None:
        raise click.UsageError("--file and --upstream exclude each other", click.get_current_context())
    if symbols == "-":
        raise click.UsageError("--symbols needs a file that gdb can open", click.get_current_context())
    names = None if symbols is None else symbol_target(symbols)
    connect = None if stub is None else partial(_stub, stub, session.arguments["timeout"])
    # what the symbols cost is told once: with the file
    told = say if names is None else lambda text: None
    with session.open() as guest, monitor_for(session, guest, told) as monitor:
        new_session = partial(_new_session, guest, monitor, write, connect)
        new_session()  # refuses options that do not fit
        _prepare(guest)
        loaded = ""
        if symbols is not None and names is not None:
            write_symbol_file(names, guest.symbols())
            loaded = f"{shlex.quote(symbols)} "
        wanted = address or UnixAddress(f"sevkvm-gdb-{guest.pid or guest.name}.sock")
        with listening(wanted) as (listener, got):
            click.echo(got)
            say(f"connect with: gdb {loaded}-ex 'target remote {got.for_gdb}'")
            limits, alive = Limits(stop=max_stop), partial(_alive, guest.pid)
            Server(listener, new_session, limits=limits, say=warn, alive=alive).serve(once=once)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Signals wait: half of a write, or a guest that is left standing, would be worse than a late Ctrl-C."""
    deferral = Deferral()
    deferral.start()
    try:
        yield
    finally:
        deferral.end()


def _alive(pid: int | None) -> bool:
    """The VMM runs; a dump always does. The first thread of a process that is ending is a zombie."""
    if pid is None:
        return True
    from sevkvm.host import procfs

    try:
        return procfs.stat(pid).state not in ("Z", "X")
    except SevKvmError:
        return False


def _new_session(guest: Guest, monitor: Monitor, write: bool, connect: Callable[[], Stub] | None) -> Session:
    from sevkvm.gdbserver.alone import AloneTarget
    from sevkvm.gdbserver.session import Session
    from sevkvm.gdbserver.upstream import UpstreamSession

    writing = _uninterrupted if write else None
    target = AloneTarget(guest, guest.default_vcpu, writing, hold=connect is None)
    if connect is None:
        return Session(target, monitor, say=warn)
    return UpstreamSession(target, monitor, connect, warn, _uninterrupted)


def _stub(address: UnixAddress | TcpAddress, timeout: float) -> Stub:
    from sevkvm.gdbserver.stub import Stub

    return Stub(address, timeout)


def _prepare(guest: Guest) -> None:
    """Find the kernel's tables of a guest without registers before anybody waits for them."""
    try:
        guest.registers()
    except RegistersUnavailable as unavailable:
        warn(
            f"{unavailable.message}; gdb shows them as unavailable, and a made-up rip of 0, which it insists on"
        )
        try:
            guest.paging()
        except SevKvmError as error:
            warn(f"virtual addresses cannot be read: {error.message}")
