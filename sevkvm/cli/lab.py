"""``sevkvm lab``: start a guest to practise on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sevkvm import errors
from sevkvm.abi import sev
from sevkvm.cli.command import command as sevkvm_command
from sevkvm.cli.values import number, parse_nbytes
from sevkvm.lab import lifetime
from sevkvm.lab.cpuid import host_cbit_position
from sevkvm.lab.demo import DemoOptions, demo_image
from sevkvm.lab.ioctl import START_HELP
from sevkvm.lab.ram import Backing
from sevkvm.lab.vmm import LaunchOptions, launched

if TYPE_CHECKING:
    from sevkvm.lab.image import Image


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
    # look at its secret, with the JSON line's "arguments"
    sevkvm x --pid PID --vm-fd N --slot GPA:SIZE:HVA ... /64c 0xffff888000100000
    """,
)
@click.option(
    "--memory", type=_size, metavar="SIZE", default="64M", show_default=True, help="RAM: a multiple of 2 MiB."
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
@click.option("--seconds", type=click.FloatRange(0), help="End by itself after so long.")
@click.option("--digest", is_flag=True, help="Add the SHA-256 of each slot's plaintext to the JSON line.")
def command(
    memory: int,
    policy: int,
    es: bool,
    plain: bool,
    cbit_pos: int | None,
    vcpus: int,
    levels: str,
    pcid: bool,
    backing: str,
    run: bool,
    seconds: float | None,
    digest: bool,
) -> None:
    """Start a small guest whose every byte is known, and keep it until Ctrl-C, SIGTERM or the end of the input.

    The guest is launched as the kernel documents it for SEV: page tables with the C-bit, private and shared pages,
    4 KiB, 2 MiB and 1 GiB mappings, a read-only ROM, RAM above 4 GiB. When it stands, one line of JSON on stdout
    tells its process, descriptors, memory slots and landmarks.
    """
    if plain and (es or policy or cbit_pos is not None):
        raise errors.UsageError(
            "--plain is a guest without encryption: no --es, --policy or --cbit-pos with it"
        )
    policy |= sev.POLICY_ES if es else 0
    if not plain and not Path("/dev/sev").exists():
        raise errors.PlatformUnsupported("no /dev/sev", help=f"{START_HELP}; or a --plain guest")
    if not plain and cbit_pos is None:
        cbit_pos = host_cbit_position()
    image = demo_image(
        DemoOptions(memory, cbit_pos=cbit_pos, levels=int(levels), pcid=pcid, vcpus=vcpus),
    )
    options = LaunchOptions(None if plain else policy, Backing(backing), run)
    with lifetime.ending_signals() as signal_fd, launched(image, options) as vm:
        facts = vm.describe()
        if digest:
            facts["sha256"] = _digests(image)
        lifetime.say(json.dumps(facts))
        lifetime.wait_for_end(signal_fd, seconds)


def _digests(image: Image) -> dict[str, str]:
    return {slot.name: image.sha256(slot) for slot in image.slots}
