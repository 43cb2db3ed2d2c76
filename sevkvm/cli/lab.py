"""``sevkvm lab``: start a guest to practise on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sevkvm import errors
from sevkvm.abi import sev
from sevkvm.lab import lifetime
from sevkvm.lab.cpuid import host_cbit_position
from sevkvm.lab.demo import DemoOptions, demo_image
from sevkvm.lab.ioctl import START_HELP
from sevkvm.lab.ram import Backing
from sevkvm.lab.vmm import LaunchOptions, launched

if TYPE_CHECKING:
    from sevkvm.lab.image import Image

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KMG]?)(?:i?B)?", text, re.IGNORECASE)
    if not match:
        raise click.BadParameter(f"{text!r} is not a size such as 64M")
    return int(match[1]) * _UNITS[match[2].upper()]


def _number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a number such as 0x5 or 5") from None


@click.command(short_help="Start a small guest to practise on, encrypted or plain.")
@click.option(
    "--memory", type=_size, metavar="SIZE", default="64M", show_default=True, help="RAM: a multiple of 2 MiB."
)
@click.option(
    "--policy",
    type=_number,
    metavar="NUMBER",
    default="0x0",
    show_default=True,
    help="SEV policy. Bit 0 forbids debugging, bit 2 is SEV-ES.",
)
@click.option("--es", is_flag=True, help="A SEV-ES guest: sets bit 2 of the policy.")
@click.option("--plain", is_flag=True, help="No encryption: the same guest for comparison, on any KVM host.")
@click.option(
    "--cbit-pos",
    type=click.IntRange(0, 63),
    metavar="BIT",
    help="C-bit position, if KVM and CPUID do not tell.",
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

    \b
    Examples:
      sevkvm lab                            on an EPYC host with SEV
      sevkvm shim -- sevkvm lab             anywhere else
      sevkvm lab --policy 0x1               a guest that forbids debugging
      sevkvm lab --plain --memory 256M      not encrypted
      sevkvm x --pid PID --vm-fd FD /8s 0xffff888000100000
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
