"""Commands against a guest in this process: real page tables, the firmware model, no VMM.

Only ``sevkvm.attach`` is replaced; the Guest that commands get is the real one.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from click.testing import CliRunner, Result

import sevkvm
from sevkvm.attach.options import Needs
from sevkvm.cli.program import program
from sevkvm.guest import Guest
from sevkvm.guestparts import GuestParts
from sevkvm.host.kvm import VcpuFd, VmFd
from sevkvm.lab.tables import TableBuilder
from sevkvm.lab.vcpus import long_mode_vcpu
from sevkvm.memory.guest import GuestMemory
from sevkvm.memory.hva import HvaSource
from sevkvm.memory.policy import SevInfo, SevKind, ask_kernel, require_debug
from sevkvm.memory.sevdbg import SevDbgSource
from sevkvm.memory.source import Slot, SlotMap
from sevkvm.shim.port import launch_guest

PAGE = 4096
CBIT_POS = 51
LOW_NBYTES = 256 * 1024
HIGH_GPA, HIGH_NBYTES = 0x100000000, 64 * 1024
TABLES_GPA, TABLES_END = 0x10000, 0x20000
SECRET_GPA, SHARED_GPA = 0x3000, 0x4000
BASE = 0xFFFF_8880_0000_0000
SECRET = b"the quick brown fox jumps over the lazy dog" * 95
SHARED = b"for all to see! " * 256


def pattern(nbytes: int, seed: int) -> bytearray:
    """Bytes that differ from page to page."""
    return bytearray((n * 7 + (n >> 12) * 31 + seed) & 0xFF for n in range(nbytes))


@dataclass
class Attached:
    """What the fake ``attach`` was asked, and what it answers."""

    guest: Guest | None = None
    guests: list[Any] = field(default_factory=list)
    options: Any = None
    need_debug: bool | None = None
    needs: Needs | None = None
    reach: tuple[int, int] | None = None
    error: Exception | None = None
    warning: str | None = None
    left: bool = False
    held_when_left: int = 0
    ram: dict[int, bytes] = field(default_factory=dict)


class Holder:
    def __init__(self) -> None:
        self.depth = 0

    def hold(self) -> None:
        self.depth += 1

    def release(self) -> None:
        self.depth -= 1


def build_ram(cbit_pos: int | None) -> tuple[dict[int, bytes], int]:
    """RAM of two slots, and the CR3 of tables that map both from BASE on."""
    tables = TableBuilder(4, TABLES_GPA, TABLES_END, cbit_pos)
    for gpa in (*range(0, LOW_NBYTES, PAGE), *range(HIGH_GPA, HIGH_GPA + HIGH_NBYTES, PAGE)):
        tables.map(BASE + gpa, gpa, private=gpa != SHARED_GPA)
    low, high = pattern(LOW_NBYTES, 1), pattern(HIGH_NBYTES, 99)
    for gpa, data in [(SECRET_GPA, SECRET[:PAGE]), (SHARED_GPA, SHARED), *tables.pages()]:
        low[gpa : gpa + PAGE] = data.ljust(PAGE, b".")
    return {0: bytes(low), HIGH_GPA: bytes(high)}, tables.root_gpa | tables.cbit


def make_guest(
    attached: Attached,
    *,
    policy: int | None = 0,
    vcpus: int = 2,
    cbit_pos: int | None = CBIT_POS,
    no_registers: str | None = None,
    kind: SevKind | None = None,
) -> Guest:
    """A launched guest; ``policy`` None is one without encryption. What the options said is honoured."""
    ram, cr3 = build_ram(None if policy is None else CBIT_POS)
    attached.ram = ram
    fake = launch_guest(
        ram, policy=policy, shared=[(SHARED_GPA, PAGE)], vcpus=vcpus, es=bool(policy and policy & 4)
    )
    for index in range(vcpus):
        state = long_mode_vcpu(
            index,
            cr3=cr3,
            rip=BASE + 0x1000,
            rsp=BASE + 0x2000,
            gdt_gva=0,
            idt_gva=0,
            la57=False,
            pcide=False,
        )
        fake.vcpu(index).regs, fake.vcpu(index).sregs = state.regs, state.sregs
    port, vm = fake.port, VmFd(fake.port, fake.vm_fd)
    info = ask_kernel(vm)
    if info.kind is not SevKind.NONE:
        info = SevInfo(
            kind or info.kind,
            info.policy,
            info.handle,
            info.state,
            cbit_pos,
            None if cbit_pos is None else "qmp",
        )
    slots = SlotMap(
        Slot(gpa, nbytes, hva, name)
        for (gpa, nbytes, hva), name in zip(fake.slots, ("low", "high"), strict=True)
    )
    options = attached.options
    return Guest(
        GuestParts(
            pid=port.pid,
            vm_fd=fake.vm_fd,
            name="guest-1",
            sev=info,
            slots=slots,
            memory=GuestMemory(slots, HvaSource(port), SevDbgSource(vm) if info.encrypted else None),
            vcpus=[VcpuFd(port, fd, index) for index, fd in enumerate(fake.vcpu_fds)],
            holder=Holder(),
            costs=lambda: {"attach_ns": 123, "ioctls": len(port.ioctls)},
            warn=lambda text: None,
            no_registers=no_registers,
            cr3=getattr(options, "cr3", None),
            vcpu=getattr(options, "vcpu", None),
            paging=getattr(options, "paging", None),
            way="deputy",
            way_remark="guest RAM is anonymous",
        )
    )


@pytest.fixture
def attached(monkeypatch: pytest.MonkeyPatch) -> Attached:
    """Replace ``sevkvm.attach``; tests set what it answers."""
    record = Attached()
    real = types.ModuleType("sevkvm.attach")

    @dataclass(frozen=True)
    class AttachOptions:
        pid: int | None = None
        vm_fd: int | None = None
        qmp: str | None = None
        libvirt: str | None = None
        slots: tuple[str, ...] = ()
        cbit_pos: int | None = None
        cr3: int | None = None
        vcpu: int | None = None
        paging: Any = None
        search_limit: int = 4 << 30
        mmio: bool = False
        via: str | None = None
        timeout: float = 5.0

    @contextmanager
    def open_guest(
        options: AttachOptions,
        *,
        warn: Callable[[str], None],
        searching: Callable[[int, int], None],
        need_debug: bool = True,
        needs: Needs = Needs.ALL,
        reach: tuple[int, int] | None = None,
    ) -> Iterator[Guest]:
        record.options, record.need_debug, record.needs, record.reach = options, need_debug, needs, reach
        if record.error:
            raise record.error
        if record.warning:
            warn(record.warning)
        guest = record.guest or make_guest(record)
        if need_debug:
            require_debug(guest.sev)
        try:
            yield guest
        finally:
            record.left = True
            record.held_when_left = guest._parts.holder.depth  # type: ignore[attr-defined]

    def list_guests(*, timeout: float = 5.0, via: str | None = None) -> list[Any]:
        record.options = timeout
        if record.error:
            raise record.error
        return record.guests

    real.Needs = Needs  # type: ignore[attr-defined]
    real.AttachOptions = AttachOptions  # type: ignore[attr-defined]
    real.open_guest = open_guest  # type: ignore[attr-defined]
    real.list_guests = list_guests  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sevkvm.attach", real)
    monkeypatch.setattr(sevkvm, "attach", real, raising=False)
    return record


@pytest.fixture
def run() -> Callable[..., Result]:
    """Run the program in this process: ``run("x", "0x1000").exit_code``."""

    def invoke(*args: str) -> Result:
        return CliRunner().invoke(program, args)

    return invoke
