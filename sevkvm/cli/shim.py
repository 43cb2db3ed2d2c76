"""``sevkvm shim``: run any program on a pretend SEV host."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import click

from sevkvm import errors
from sevkvm.cli.command import command as sevkvm_command
from sevkvm.cli.run import say

if TYPE_CHECKING:
    from sevkvm.shim.supervisor import SevHost

_FORWARDED: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_FROM_THE_TERMINAL: Final = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
_SI_USER: Final = 0
_CANNOT_EXECUTE: Final = {errno.EACCES: 126, errno.ENOEXEC: 126}
_NOT_FOUND: Final = 127
_WAIT_SECONDS: Final = 0.5


@sevkvm_command(
    "shim",
    examples="""
    # a small encrypted guest, and a look at it
    sevkvm shim -- sevkvm lab
    # an unmodified QEMU; cbitpos=0 because it compares with the processor's own CPUID
    sevkvm shim -- qemu-system-x86_64 -accel kvm -S \\
        -machine q35,confidential-guest-support=sev0 \\
        -object sev-guest,id=sev0,cbitpos=0,reduced-phys-bits=1,policy=0
    # what does a tool do when the secure processor fails at its hundredth page?
    sevkvm shim --fault dbg_decrypt:after=99:status=HWSEV_RET_PLATFORM -- ./run-my-tool
    # your own tests, with every SEV command on record
    sevkvm shim --log commands.jsonl -- make check
    """,
)
@click.option(
    "--cbit-pos",
    type=click.IntRange(1, 63),
    default=51,
    show_default=True,
    metavar="N",
    help="Where KVM_GET_SUPPORTED_CPUID says that the C-bit is.",
)
@click.option(
    "--kvm",
    type=click.Choice(["auto", "real", "standin"]),
    default="auto",
    show_default=True,
    help="Lay SEV over the real /dev/kvm, or stand in for it too (auto: where there is none).",
)
@click.option(
    "--kernel",
    "generation",
    type=click.Choice(["new", "old"]),
    default="new",
    show_default=True,
    help="Whose SEV debug commands: Linux 7.2's, or those of 5.x to 7.1 with all their silent corruptions.",
)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="FAULT",
    help="Let the hardware fail: COMMAND[:after=N][:count=M]:status=NAME, or :errno=NAME, or :delay=SECONDS; "
    "psp-dead, psp-timeout or vm-dead[:after=N]. Repeatable.",
)
@click.option(
    "--latency",
    type=click.FloatRange(0, 1e6),
    default=0.0,
    metavar="US",
    help="Microseconds that each firmware command takes; debug commands are one a page.",
)
@click.option(
    "--stat/--no-stat",
    "trap_stat",
    default=True,
    show_default=True,
    help="Do stat(2) and access(2) know /dev/sev and /sys/module/kvm_amd? Without, programs that look at very many "
    "files are faster.",
)
@click.option(
    "--log", "log_path", type=click.Path(dir_okay=False), help="One JSON line for each SEV command."
)
@click.argument("cmd", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def command(
    ctx: click.Context,
    cbit_pos: int,
    kvm: Any,
    generation: Any,
    faults: tuple[str, ...],
    latency: float,
    trap_stat: bool,
    log_path: str | None,
    cmd: tuple[str, ...],
) -> None:
    """Run CMD, and whatever it starts, as if this host had AMD SEV.

    /dev/sev appears, KVM launches SEV and SEV-ES guests, and their memory is really encrypted in place. Encrypted
    guests never run: their vCPUs wait. No root is needed; the programs cannot gain privileges (no setuid). Programs
    that ask the processor itself (the CPUID instruction) see no SEV there.

    The exit status is CMD's, or 128 + N if signal N ended it. What CMD leaves behind in the background is served
    until it ends too. If the shim itself is killed, opening files fails with ENOSYS in every program under it.
    """
    try:
        from sevkvm.shim.faults import Faults, parse_fault
        from sevkvm.shim.supervisor import SevHost
    except ModuleNotFoundError as error:
        raise errors.SevKvmError(
            f"the shim needs the Python module {error.name}", help="pip install 'sevkvm[shim]'"
        ) from error
    failing = Faults([parse_fault(text) for text in faults], latency * 1e-6)
    waited = {*_FORWARDED, signal.SIGCHLD}
    with ExitStack() as undo:
        log = undo.enter_context(open(log_path, "w", encoding="utf-8")) if log_path else None
        # blocked before the supervisor's thread begins, so that they wait for sigtimedwait below
        before = signal.pthread_sigmask(signal.SIG_BLOCK, waited)
        undo.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
        host = undo.enter_context(
            SevHost(
                kvm=kvm,
                cbit_pos=cbit_pos,
                log=log,
                generation=generation,
                faults=failing,
                trap_stat=trap_stat,
                blocked_signals=before,
            )
        )
        try:
            process = host.popen(cmd)
        except OSError as error:
            if isinstance(error, errors.SevKvmError):
                raise
            say(f"error: {cmd[0]}: {os.strerror(error.errno or 0)}")
            ctx.exit(_CANNOT_EXECUTE.get(error.errno or 0, _NOT_FOUND))
        status = _wait(host, process, waited)
    ctx.exit(status)


def _wait(host: SevHost, process: subprocess.Popen[Any], waited: set[signal.Signals]) -> int:
    """Forward signals until CMD and what it left behind have ended; CMD's exit status as a shell tells it."""
    while process.poll() is None or host.busy:
        ended = process.returncode is not None
        info = signal.sigtimedwait(waited, _WAIT_SECONDS)
        if info is None or info.si_signo == signal.SIGCHLD:
            continue
        if ended:
            break
        # what the terminal sends has reached CMD already: it is in the same process group
        if info.si_signo not in _FROM_THE_TERMINAL or info.si_code == _SI_USER:
            process.send_signal(info.si_signo)
    status = process.returncode
    return 128 - status if status < 0 else status
