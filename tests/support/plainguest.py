"""A dump source for an unmodified QEMU with a plain guest, wired from its monitor and a deputy alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sevkvm.host.deputy import Deputy
from sevkvm.memory.guest import GuestMemory
from sevkvm.memory.hva import HvaSource
from sevkvm.memory.policy import SevInfo, SevKind
from sevkvm.memory.source import Slot, SlotMap

if TYPE_CHECKING:
    from sevkvm.paging.form import PagingForm
    from sevkvm.vcpu import VcpuState
    from tests.support.qemu import QemuVmm

_REGION = re.compile(
    r"^  ([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, (?:ram|rom)\): (.*?)(?: @\S+)? KVM$", re.M
)


def slots_of(vmm: QemuVmm) -> SlotMap:
    """RAM and ROM of the memory view, as the monitor lists it (its ends are inclusive)."""
    views = vmm.hmp("info mtree -f").split("FlatView #")
    (view,) = [text for text in views if 'AS "memory"' in text]
    slots = []
    for first, last, name in _REGION.findall(view):
        gpa, end = int(first, 16), int(last, 16) + 1
        slots.append(Slot(gpa, end - gpa, vmm.gpa2hva(gpa), name))
    return SlotMap(slots)


@dataclass
class PlainGuest:
    """What ``dump_guest`` needs. ``states`` are the caller's: tests that need real registers attach."""

    slots: SlotMap
    memory: GuestMemory
    states: list[VcpuState]
    sev: SevInfo = field(default_factory=lambda: SevInfo(SevKind.NONE))
    was_live: bool = False

    def registers(self) -> list[VcpuState]:
        """As given."""
        return self.states

    @contextmanager
    def held(self) -> Iterator[None]:
        """The tests' guests are stopped by their monitor."""
        yield

    def paging(self) -> PagingForm:
        """Not for these tests."""
        raise NotImplementedError

    def forms(self) -> list[PagingForm]:
        """None that anybody asks for."""
        return []

    def vmcoreinfo(self) -> None:
        """It is no Linux."""


@contextmanager
def plain_guest(vmm: QemuVmm, states: list[VcpuState] | None = None) -> Iterator[PlainGuest]:
    """Attach to ``vmm`` for memory reads."""
    slots = slots_of(vmm)
    with Deputy(vmm.pid) as deputy:
        yield PlainGuest(slots, GuestMemory(slots, HvaSource(deputy), None), states or [])
