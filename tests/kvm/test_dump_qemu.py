"""Dumps of a plain guest against QEMU's own pmemsave and dump-guest-memory, by an independent reader."""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from sevkvm.abi.elf import pack_prstatus, pack_qemu_state
from sevkvm.abi.kvm import KVM_SET_MSRS, Dtable, Regs, Segment, Sregs, pack_msr
from sevkvm.abi.x86 import MSR_KERNEL_GS_BASE
from sevkvm.attach import AttachOptions, open_guest
from sevkvm.dump import DumpFormat, DumpOptions, dump_guest, prepare
from sevkvm.host.deputy import Deputy
from tests.support.fakeguest import UniformPages, vcpu_state
from tests.support.linux import require_sealed_linux
from tests.support.plainguest import plain_guest
from tests.support.qemu import QemuVmm, qemu, require_kvm_qemu, require_qemu
from tests.support.qemu_sealed import sealed_qemu

MIB = 1 << 20
NOISE_GPA = 0x200000
K_GS_BASE = 0xFFFF_8880_0BC0_0000


@pytest.fixture(scope="module")
def vmm() -> Iterator[QemuVmm]:
    """RAM below and above 4 GiB, noise in both, ROM slots as the machine has them."""
    require_kvm_qemu()
    with qemu(ram="96M", machine="pc,max-ram-below-4g=64M", cpus=2) as running:
        with Path(f"/proc/{running.pid}/mem").open("r+b", buffering=0) as memory:
            for gpa in (NOISE_GPA, 0x1_0000_0000):
                memory.seek(running.gpa2hva(gpa))
                memory.write(os.urandom(4 * MIB))
        yield running


def segments(path: Path) -> list[tuple[int, int, int, int]]:
    with path.open("rb") as file:
        found = ELFFile(file).iter_segments("PT_LOAD")
        return [(s["p_vaddr"], s["p_paddr"], s["p_filesz"], s["p_memsz"]) for s in found]


@pytest.mark.kvm
def test_a_range_is_what_pmemsave_writes(vmm, tmp_path):
    theirs, ours = vmm.directory / "pmemsave", tmp_path / "raw"
    vmm.execute("pmemsave", val=MIB, size=16 * MIB, filename=str(theirs))
    with plain_guest(vmm) as guest:
        options = DumpOptions(gpa=(MIB, 17 * MIB))
        result = dump_guest(guest, options, UniformPages(), prepare(str(ours)))
    assert result.complete
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.kvm
def test_the_core_has_the_segments_and_bytes_of_qemus_own(vmm, tmp_path):
    theirs, ours = vmm.directory / "core", tmp_path / "core"
    vmm.execute("dump-guest-memory", paging=False, protocol=f"file:{theirs}")
    try:
        with plain_guest(vmm, [vcpu_state(0), vcpu_state(1)]) as guest:
            options = DumpOptions(format=DumpFormat.ELF)
            result = dump_guest(guest, options, UniformPages(), prepare(str(ours)))
        assert result.complete
        assert segments(ours) == segments(theirs)
        with ours.open("rb") as our_file, theirs.open("rb") as their_file:
            pairs = zip(
                ELFFile(our_file).iter_segments("PT_LOAD"),
                ELFFile(their_file).iter_segments("PT_LOAD"),
                strict=True,
            )
            for our, their in pairs:
                for start in range(0, our["p_filesz"], 64 * MIB):
                    our_file.seek(our["p_offset"] + start)
                    their_file.seek(their["p_offset"] + start)
                    nbytes = min(64 * MIB, our["p_filesz"] - start)
                    assert our_file.read(nbytes) == their_file.read(nbytes), hex(our["p_paddr"] + start)
    finally:
        theirs.unlink()


GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)), "rip")
NAMES = [*GENERAL, "rflags", "cs", "ss", "ds", "es", "fs", "gs", "fs_base", "gs_base", "k_gs_base"]
NAMES += ["cr0", "cr2", "cr3", "cr4", "cr8", "efer"]  # as QEMU's own target description numbers them
# In this order: the stub takes 64-bit values only once the vCPU is in 64-bit code.
REGISTERS = {
    "cr0": 0x11,
    "cr4": 0x6F0,
    "efer": 0x500,
    "cs": 8,
    "ss": 16,
    "fs": 24,
    "gs": 24,
    **{name: 0x1111 * (number + 1) << 32 | number for number, name in enumerate(GENERAL)},
    "rflags": 0x246,
    "fs_base": 0xFFFFF00000001000,
    "gs_base": 0xFFFFF00000002000,
    "k_gs_base": 0xFFFFF00000003000,
    "cr2": 0xFFFFF00000004000,
    "cr3": 0x8000000123000,
    "cr0 again": 0x80050033,
}
GDT = struct.pack(
    "<4Q", 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00C0F30000000FFF
)  # 64-bit code, data, data


@pytest.fixture(scope="module")
def long_mode_core() -> Iterator[tuple[str, list[tuple[str, int, bytes]]]]:
    """QEMU's register report and its core's notes of one vCPU in long mode, all registers different.

    Emulated and never run: the registers come in through QEMU's gdb stub, nothing of ours is in the answer.
    """
    require_qemu()
    with qemu(ram="16M", machine="pc", accel="tcg", extra=["-cpu", "max"]) as running:
        path = running.directory / "gdb.sock"
        running.hmp(f"gdbserver unix:{path},server=on,wait=off")
        core = running.directory / "core"
        with socket.socket(socket.AF_UNIX) as stub:
            stub.settimeout(20)
            stub.connect(str(path))
            ask(stub, b"qXfer:features:read:target.xml:0,ffb")  # before that the stub takes no P packet
            assert ask(stub, f"M0,{len(GDT):x}:{GDT.hex()}".encode()) == b"OK"  # GDTR is 0 after reset
            for name, value in REGISTERS.items():
                number = NAMES.index(name.split()[0])
                little_endian = value.to_bytes(4 if 17 <= number <= 23 else 8, "little").hex()
                assert ask(stub, f"P{number:x}={little_endian}".encode()) == b"OK", name
            running.execute("dump-guest-memory", paging=False, protocol=f"file:{core}")
            report = running.hmp("info registers")
        with core.open("rb") as file:
            data = next(iter(ELFFile(file).iter_segments("PT_NOTE"))).data()
        yield report, split_notes(data)


def ask(stub: socket.socket, packet: bytes) -> bytes:
    """One packet of gdb's remote protocol and its answer."""
    stub.sendall(b"$%b#%02x" % (packet, sum(packet) & 0xFF))
    answer = b""
    while not re.search(rb"#[0-9a-f]{2}$", answer):
        answer += stub.recv(4096)
    stub.sendall(b"+")
    return answer[answer.index(b"$") + 1 : -3]


def split_notes(data: bytes) -> list[tuple[str, int, bytes]]:
    found = []
    at = 0
    while at < len(data):
        name_nbytes, nbytes, kind = struct.unpack_from("<III", data, at)
        name = data[at + 12 : at + 12 + name_nbytes].rstrip(b"\0").decode()
        at += 12 + -(-name_nbytes // 4) * 4
        found.append((name, kind, data[at : at + nbytes]))
        at += -(-nbytes // 4) * 4
    return found


def parse_registers(report: str) -> tuple[Regs, Sregs]:
    """``info registers`` in long mode as the structs that KVM would have given us."""
    words = {
        name.lower(): int(value, 16)
        for name, value in re.findall(r"\b(\w{2,4}) *=([0-9a-f]{8,16})\b", report)
    }
    pattern = r"^(ES|CS|SS|DS|FS|GS|LDT|TR) *=([0-9a-f]{4}) ([0-9a-f]{16}) ([0-9a-f]{8}) ([0-9a-f]{8})"
    segments = {}
    for name, selector, base, limit, flags in re.findall(pattern, report, re.M):
        bits = int(flags, 16)
        segments[name.lower()] = Segment(
            base=int(base, 16),
            limit=int(limit, 16),
            selector=int(selector, 16),
            type=bits >> 8 & 15,
            s=bits >> 12 & 1,
            dpl=bits >> 13 & 3,
            present=bits >> 15 & 1,
            avl=bits >> 20 & 1,
            l=bits >> 21 & 1,
            db=bits >> 22 & 1,
            g=bits >> 23 & 1,
        )
    tables = {
        name.lower(): Dtable(int(base, 16), int(limit, 16))
        for name, base, limit in re.findall(r"^(GDT|IDT)= *([0-9a-f]{16}) ([0-9a-f]{8})", report, re.M)
    }
    general = {name: words[name] for name in GENERAL}
    control = {name: words[name] for name in ("cr0", "cr2", "cr3", "cr4", "efer")}
    regs = Regs(**general, rflags=words["rfl"])
    return regs, Sregs(**segments, **tables, **control, cr8=0, apic_base=0)


def test_the_report_is_of_the_registers_that_were_set(long_mode_core):
    regs, sregs = parse_registers(long_mode_core[0])
    for name in GENERAL:
        assert getattr(regs, name) == REGISTERS[name], name
    assert sregs.cs == Segment(limit=0xFFFFFFFF, selector=8, type=11, present=1, s=1, l=1, g=1)
    assert (sregs.fs.base, sregs.gs.base) == (REGISTERS["fs_base"], REGISTERS["gs_base"])
    assert (sregs.cr0, sregs.cr3) == (REGISTERS["cr0 again"], REGISTERS["cr3"])


def test_prstatus_is_qemus_byte_for_byte(long_mode_core):
    report, notes = long_mode_core
    assert notes[0] == ("CORE", 1, pack_prstatus(1, *parse_registers(report)))


def test_the_qemu_note_is_qemus_byte_for_byte(long_mode_core):
    report, notes = long_mode_core
    regs, sregs = parse_registers(report)
    name, kind, description = notes[1]
    theirs = bytearray(description)
    for flags_at in range(152 + 8, 152 + 8 * 24, 24):
        # Emulation keeps limit bits 19:16 where the descriptor has them; KVM's structs do not, nor QEMU on KVM.
        theirs[flags_at + 2] &= 0xF0
    assert (name, kind, bytes(theirs)) == ("QEMU", 0, pack_qemu_state(regs, sregs, REGISTERS["k_gs_base"]))
    shorter = pack_qemu_state(regs, sregs)
    assert shorter[8:] == theirs[8:0x1B0]
    assert struct.unpack_from("<II", shorter) == (1, 0x1B0)


@pytest.mark.kvm
def test_the_notes_of_a_linux_are_qemus_byte_for_byte(tmp_path):
    """The lab's Linux under KVM, attached to from outside: every register as QEMU itself reports it."""
    require_kvm_qemu()
    ours = tmp_path / "core"
    with sealed_qemu(require_sealed_linux().plain, machine="pc") as running:
        theirs = running.directory / "core"
        with Deputy(running.pid) as port:
            port.write(port.args_hva, pack_msr(MSR_KERNEL_GS_BASE, K_GS_BASE))
            assert port.ioctl(running.vcpu_fd(0), KVM_SET_MSRS, port.args_hva) == 1
        running.execute("dump-guest-memory", paging=False, protocol=f"file:{theirs}")
        with open_guest(AttachOptions(running.pid, running.vm_fd, qmp=running.qmp_path)) as guest:
            options = DumpOptions(format=DumpFormat.ELF)
            dump_guest(guest, options, UniformPages(), prepare(str(ours)))
        assert segments(ours) == segments(theirs)
        with ours.open("rb") as our_file, theirs.open("rb") as their_file:
            our, their = (
                split_notes(next(ELFFile(file).iter_segments("PT_NOTE")).data())
                for file in (our_file, their_file)
            )
        assert our[: len(their)] == their
        assert [name for name, _, _ in their] == ["CORE", "QEMU"]
        assert struct.unpack_from("<Q", their[1][2], 0x1B0) == (K_GS_BASE,)
