"""``sevkvm lab``: start a guest to practise on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sevkvm import errors
from sevkvm.abi.policybits import POLICY_ES
from sevkvm.cli.command import command as sevkvm_command
from sevkvm.cli.run import say
from sevkvm.cli.values import number, parse_nbytes
from sevkvm.lab import lifetime, pulse
from sevkvm.lab.cpuid import host_cbit_position
from sevkvm.lab.demo import DemoOptions, demo_image
from sevkvm.lab.ioctl import START_HELP, open_device
from sevkvm.lab.ram import Backing
from sevkvm.lab.vcpu_thread import Rhythm
from sevkvm.lab.vmm import LaunchOptions, launched

if TYPE_CHECKING:
    from sevkvm.lab.image import Image

_SMALL_NBYTES: Final = 64 << 20
_LINUX_NBYTES: Final = 256 << 20


def _size(text: str) -> int:
    try:
        return parse_nbytes(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@sevkvm_command(
    "lab",
    examples="""
    # on an EPYC host with SEV, and anywhere else
    sevkvm lab
    sevkvm shim -- sevkvm lab
    # a guest that forbids debugging
    sevkvm lab --policy 0x1
    # not encrypted; end it after a minute
    sevkvm lab --plain --memory 256M --seconds 60
    # one that counts, flips a shared word and halts, again and again
    sevkvm lab --plain --alive
    # a sealed Linux; its first start takes a while
    sevkvm shim -- sevkvm lab --linux
    # look at its secret, with the JSON line's "arguments"
    sevkvm x --pid PID --vm-fd N --slot GPA:SIZE:HVA ... /16c 0xffff888000100000
    """,
)
@click.option(
    "--memory",
    type=_size,
    metavar="SIZE",
    help="RAM: a multiple of 2 MiB.  [default: 64M, with --linux 256M]",
)
@click.option(
    "--linux", is_flag=True, help="A real Linux, booted once under emulation, instead of the small guest."
)
@click.option(
    "--kernel",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="VMLINUZ",
    help="Which Linux; otherwise the host's or Debian's.",
)
@click.option(
    "--policy",
    type=number(0, 0xFFFF_FFFF),
    metavar="NUMBER",
    default="0x0",
    show_default=True,
    help="SEV policy. Bit 0 forbids debugging, bit 2 is SEV-ES.",
)
@click.option("--es", is_flag=True, help="A SEV-ES guest: sets bit 2 of the policy.")
@click.option(
    "--vm-type",
    type=click.Choice(["legacy", "new"]),
    default="legacy",
    show_default=True,
    help="As which type of VM KVM knows it: new is of Linux 6.10, and tells other things about SEV-ES registers.",
)
@click.option("--plain", is_flag=True, help="No encryption: the same guest for comparison, on any KVM host.")
@click.option(
    "--cbit-pos",
    type=number(37, 51),
    metavar="N",
    help="C-bit position, where KVM and CPUID do not tell it.",
)
@click.option("--vcpus", type=click.IntRange(1, 64), default=1, show_default=True)
@click.option("--levels", type=click.Choice(["4", "5"]), default="4", show_default=True, help="Of paging.")
@click.option("--pcid", is_flag=True, help="Give CR3 a PCID.")
@click.option(
    "--backing",
    type=click.Choice([backing.value for backing in Backing]),
    default=Backing.ANONYMOUS.value,
    show_default=True,
    help="Kind of memory that guest RAM is.",
)
@click.option("--run", is_flag=True, help="Let the vCPUs run (an idle loop); otherwise they stand still.")
@click.option(
    "--alive",
    is_flag=True,
    help="Let the vCPUs run a program: each counts in a private page, flips a word of the shared one, halts, and "
    "does it again 10 ms later. On the pretend host they wait instead, as all encrypted guests do there.",
)
@click.option(
    "--bursts",
    type=click.IntRange(1, 1 << 31),
    metavar="N",
    help=f"With --alive: {pulse.BURST} beats N times, then stay halted.",
)
@click.option("--seconds", type=click.FloatRange(0), help="End by itself after so long.")
@click.option("--digest", is_flag=True, help="Add the SHA-256 of each slot's plaintext to the JSON line.")
def command(
    *,
    policy: int,
    es: bool,
    vm_type: str,
    plain: bool,
    backing: str,
    run: bool,
    alive: bool,
    bursts: int | None,
    seconds: float | None,
    digest: bool,
    **guest: Any,
) -> None:
    """Start a guest to practise on, and keep it until Ctrl-C, SIGTERM or the end of the input.

    It is launched as the kernel documents it for SEV. Every byte of the small guest is known: page tables with the
    C-bit, private and shared pages, 4 KiB, 2 MiB and 1 GiB mappings, a read-only ROM, RAM above 4 GiB. When it
    stands, one line of JSON on stdout tells its process, descriptors, memory slots and landmarks.
    """
    typed = vm_type == "new"
    if plain and (es or policy or typed or guest["cbit_pos"] is not None):
        raise errors.UsageError(
            "--plain is a guest without encryption: no --es, --policy, --vm-type or --cbit-pos with it"
        )
    policy |= POLICY_ES if es else 0
    if not plain:
        os.close(open_device("/dev/sev", f"{START_HELP}; or a --plain guest"))
    if not plain and guest["cbit_pos"] is None:
        guest["cbit_pos"] = host_cbit_position()
    if guest["linux"] and (run or alive):
        raise errors.UsageError("--linux is a guest to look at: it has no devices to run with")
    if (run and alive) or (bursts and not alive):
        raise errors.UsageError("--run is an idle loop, --alive a program, and --bursts goes with --alive")
    image = _linux(**guest) if guest.pop("linux") else _small_guest(**guest, alive=alive)
    rhythm = Rhythm(bursts=bursts) if alive else None
    options = LaunchOptions(None if plain else policy, Backing(backing), run or alive, rhythm, typed)
    lifetime.allow_tracing()
    with lifetime.ending_signals() as signal_fd, launched(image, options) as vm:
        facts = vm.describe()
        if digest:
            facts["sha256"] = {slot.name: image.sha256(slot) for slot in image.slots}
        lifetime.say(json.dumps(facts))
        lifetime.wait_for_end(signal_fd, seconds)


def _small_guest(
    *,
    memory: int | None,
    kernel: Path | None,
    cbit_pos: int | None,
    vcpus: int,
    levels: str,
    pcid: bool,
    alive: bool,
) -> Image:
    if kernel:
        raise errors.UsageError("--kernel goes with --linux")
    nbytes = _SMALL_NBYTES if memory is None else memory
    return demo_image(
        DemoOptions(nbytes, cbit_pos=cbit_pos, levels=int(levels), pcid=pcid, vcpus=vcpus, alive=alive)
    )


def _linux(
    *, memory: int | None, kernel: Path | None, cbit_pos: int | None, vcpus: int, levels: str, pcid: bool
) -> Image:
    from sevkvm.lab.emulator import Machine
    from sevkvm.lab.linux import plain_linux, sealed_linux

    if pcid:
        raise errors.UsageError("--linux sets its own CR3: no --pcid with it")
    machine = Machine(_LINUX_NBYTES if memory is None else memory, vcpus, levels == "5")
    if cbit_pos is None:
        return plain_linux(machine, kernel=kernel, progress=say).image
    return sealed_linux(machine, cbit_pos=cbit_pos, kernel=kernel, progress=say).image
