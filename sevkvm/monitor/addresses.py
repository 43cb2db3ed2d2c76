"""``gva2gpa``, ``gpa2hva`` and ``gpa2hpa``: from one address space to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sevkvm import errors
from sevkvm.monitor.command import Command
from sevkvm.monitor.problem import CommandProblem, failed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sevkvm.memory.source import Slot
    from sevkvm.monitor.arguments import Arguments
    from sevkvm.monitor.monitor import Monitor


def gva2gpa(monitor: Monitor, given: Arguments) -> Iterator[str]:
    """By the tables of the current vCPU; the C-bit is no part of the answer."""
    guest = monitor.guest
    gpa = guest.translate(given.numbers["addr"], guest.paging(monitor.vcpu)).gpa
    yield "Unmapped\n" if gpa is None else f"gpa: 0x{gpa:x}\n"


def gpa2hva(monitor: Monitor, given: Arguments) -> Iterator[str]:
    """Where the VMM keeps it."""
    gpa = given.numbers["addr"]
    slot = _slot(monitor, gpa)
    yield f"Host virtual address for 0x{gpa:x} ({slot.name}) is 0x{slot.hva + gpa - slot.gpa:x}\n"


def gpa2hpa(monitor: Monitor, given: Arguments) -> Iterator[str]:
    """Where the host keeps that: true until the host's kernel moves the page."""
    gpa = given.numbers["addr"]
    slot = _slot(monitor, gpa)
    # a page that was never touched is nowhere; QEMU touches it, too
    monitor.guest.memory.read(gpa, 1, private=False)
    try:
        hpa = monitor.outside.hpa(slot.hva + gpa - slot.gpa)
    except errors.MemoryFault as fault:
        raise failed(fault.reason) from fault
    yield f"Host physical address for 0x{gpa:x} ({slot.name}) is 0x{hpa:x}\n"


def _slot(monitor: Monitor, gpa: int) -> Slot:
    if monitor.guest.contents is not None:
        raise failed("this guest is a dump: no VMM has its memory")
    slot = monitor.guest.slots.find(gpa)
    if slot is None:
        # whether a device is there is the VMM's to know
        told = monitor.outside.ask(f"gpa2hva 0x{gpa:x}")
        raise CommandProblem((told or f"No memory is mapped at address 0x{gpa:x}").rstrip("\n"))
    return slot


COMMANDS: Final = (
    Command(
        "gva2gpa",
        "addr:l",
        "addr",
        "print the guest physical address corresponding to a guest virtual address",
        gva2gpa,
        still=True,
    ),
    Command(
        "gpa2hva",
        "addr:l",
        "addr",
        "print the host virtual address corresponding to a guest physical address",
        gpa2hva,
    ),
    Command(
        "gpa2hpa",
        "addr:l",
        "addr",
        "print the host physical address corresponding to a guest physical address",
        gpa2hpa,
    ),
)
