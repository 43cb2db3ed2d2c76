"""The lab's guest on the pretend host in our own process, for the gdb server's tests: no VMM, no ptrace."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from sevkvm.abi.policybits import POLICY_ES
from sevkvm.guest import Guest
from sevkvm.guestparts import GuestParts
from sevkvm.host.kvm import VcpuFd, VmFd
from sevkvm.lab.demo import DemoOptions, demo_image
from sevkvm.memory.guest import GuestMemory
from sevkvm.memory.hva import HvaSource
from sevkvm.memory.policy import ask_kernel
from sevkvm.memory.sevdbg import SevDbgSource
from sevkvm.memory.source import Slot, SlotMap
from sevkvm.shim.port import launch_guest

CBIT = 51
IMAGE = demo_image(DemoOptions(8 << 20, cbit_pos=CBIT, vcpus=2, pcid=True))


@dataclass
class Holder:
    """Whether the vCPUs are held, how often they were, and what was told."""

    held: bool = False
    holds: int = 0
    told: list[str] = field(default_factory=list)

    def hold(self) -> None:
        """Once at a time."""
        assert not self.held
        self.held, self.holds = True, self.holds + 1

    def release(self) -> None:
        """What was held."""
        assert self.held
        self.held = False


def make_guest(holder: Holder, *, es: bool = False, pid: int | None = 1) -> Guest:
    """``pid`` None makes it a dump."""
    ram = {slot.gpa: IMAGE.plaintext(slot.gpa, slot.nbytes) for slot in IMAGE.slots}
    shared = [(region.gpa, region.nbytes) for region in IMAGE.regions if not region.private]
    fake = launch_guest(ram, policy=POLICY_ES if es else 0, shared=shared, vcpus=len(IMAGE.vcpus), es=es)
    for index, init in enumerate(IMAGE.vcpus):
        fake.vcpu(index).regs, fake.vcpu(index).sregs = init.regs, init.sregs
    vm = VmFd(fake.port, fake.vm_fd)
    slots = SlotMap(Slot(*slot) for slot in fake.slots)
    parts = GuestParts(
        pid=pid,
        vm_fd=fake.vm_fd,
        name="guest",
        sev=replace(ask_kernel(vm), cbit_pos=CBIT, cbit_source="option"),
        slots=slots,
        memory=GuestMemory(slots, HvaSource(fake.port), SevDbgSource(vm)),
        vcpus=[VcpuFd(fake.port, fd, index) for index, fd in enumerate(fake.vcpu_fds)],
        holder=holder,
        costs=dict,
        warn=holder.told.append,
        no_registers="registers are encrypted" if es else None,
    )
    return Guest(parts)


def plain(gpa: int, nbytes: int) -> bytes:
    """What the guest holds there."""
    return IMAGE.plaintext(gpa, nbytes)


def landmark(name: str) -> Any:
    """A place in it whose contents are known."""
    (found,) = [each for each in IMAGE.landmarks if each.name == name]
    return found
