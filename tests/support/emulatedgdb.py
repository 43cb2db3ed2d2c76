"""`gdbserver --upstream` in this process for a QEMU under emulation: its stub runs the guest, memory is ours.

There is no KVM to ask: slots and vCPUs are the caller's.

with serving(vmm, slots, directory, write=True, vcpus=[MonitorVcpu(vmm)]) as target:
    gdb(target, ...)
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sevkvm import errors, native
from sevkvm.gdbserver.alone import AloneTarget
from sevkvm.gdbserver.listen import UnixAddress, listening
from sevkvm.gdbserver.server import Limits, Server
from sevkvm.gdbserver.stub import Stub
from sevkvm.gdbserver.upstream import UpstreamSession
from sevkvm.guest import Guest
from sevkvm.guestparts import GuestParts
from sevkvm.lab.image import VcpuInit
from sevkvm.lab.registers import parse_registers
from sevkvm.memory.guest import GuestMemory
from sevkvm.memory.hva import HvaSource
from sevkvm.memory.policy import SevInfo, SevKind
from sevkvm.memory.source import Slot, SlotMap
from tests.support.qemu import QemuVmm

if TYPE_CHECKING:
    from sevkvm.abi.kvm import Regs, Sregs
    from sevkvm.host.port import IoctlPort

_PATIENCE = 20.0


class PlainPort:
    """Reads and writes a VMM's memory; nobody is attached to it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def readinto(self, hva: int, buffer: memoryview) -> int:
        return native.read_into(self.pid, hva, buffer)

    def read_pages(self, hvas: Sequence[int]) -> list[bytes | None]:
        return native.read_pages(self.pid, hvas)

    def write(self, hva: int, data: bytes) -> None:
        native.write(self.pid, hva, data)


class NoHold:
    def hold(self) -> None:
        """Its own stub stops it."""

    def release(self) -> None:
        """And lets it run."""


class MonitorVcpu:
    """The registers of vCPU 0 in 64-bit mode, as QEMU's monitor tells them."""

    index = 0
    unknown: frozenset[str] = frozenset()

    def __init__(self, vmm: QemuVmm) -> None:
        self._vmm = vmm

    def get_regs(self) -> Regs:
        return self._told().regs

    def get_sregs(self) -> Sregs:
        return self._told().sregs

    def get_msr(self, msr: int) -> None:
        return None

    def get_more(self) -> None:
        return None

    def _told(self) -> VcpuInit:
        (vcpu,) = parse_registers(self._vmm.hmp("info registers -a"))
        return vcpu


@contextmanager
def serving(
    vmm: QemuVmm, slots: Sequence[Slot], directory: Path, *, write: bool = False, **parts: Any
) -> Iterator[str]:
    """Yield where gdb connects to; ``parts`` are those of GuestParts. Served by a thread until the end."""
    path, address = directory / "stub", UnixAddress(str(directory / "gdb.sock"))
    vmm.hmp(f"gdbserver unix:{path},server=on,wait=off")
    told = SlotMap(slots)
    settings: dict[str, Any] = {
        "vcpus": [],
        "memory": GuestMemory(told, HvaSource(cast("IoctlPort", PlainPort(vmm.pid))), None),
        "sev": SevInfo(SevKind.NONE),
        **parts,
    }
    guest = Guest(
        GuestParts(
            pid=vmm.pid,
            vm_fd=None,
            name="emulated",
            slots=told,
            holder=NoHold(),
            costs=dict,
            warn=print,
            **settings,
        )
    )
    target = AloneTarget(guest, None, nullcontext if write else None, hold=False)
    ended, bound = threading.Event(), threading.Event()

    def serve() -> None:
        new = partial(UpstreamSession, target, None, partial(Stub, UnixAddress(str(path)), 10.0), print)
        with listening(address) as (listener, _), suppress(errors.TargetGone):
            bound.set()
            Server(listener, new, limits=Limits(), say=print, alive=lambda: not ended.is_set()).serve()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert bound.wait(_PATIENCE)
    try:
        yield address.path
    finally:
        ended.set()
        thread.join(_PATIENCE)
    assert not thread.is_alive()
