"""The loader that fills an unmodified QEMU with the lab's Linux, checked through QEMU's own monitor."""

from __future__ import annotations

from pathlib import Path

import pytest

from sevkvm.lab.files import mapped
from sevkvm.lab.initrd import KEEPERS
from sevkvm.lab.keeper import SECRET_GVA, SECRET_NBYTES
from sevkvm.lab.sealed import SealedLinux
from tests.support.linux import require_sealed_linux
from tests.support.qemu import QemuVmm, require_kvm_qemu
from tests.support.qemu_sealed import sealed_qemu
from tests.support.walker import lookup

pytestmark = pytest.mark.kvm


@pytest.fixture(scope="module")
def linux() -> SealedLinux:
    require_kvm_qemu()
    return require_sealed_linux()


def physical_memory(vmm: QemuVmm, gpa: int, nbytes: int) -> bytes:
    path = vmm.directory / "pmem"
    assert vmm.hmp(f'pmemsave 0x{gpa:x} 0x{nbytes:x} "{path}"') == ""
    return Path(path).read_bytes()


@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_a_plain_qemu_holds_the_ram_byte_for_byte(linux: SealedLinux, machine: str) -> None:
    ram = mapped(linux.ram)
    with sealed_qemu(linux, machine=machine, memfd=machine == "pc", sandbox=True) as vmm:
        for first, end in linux.plain.private_ranges:
            assert physical_memory(vmm, first, end - first) == ram[first:end]


def test_qemu_sees_the_registers(linux: SealedLinux) -> None:
    with sealed_qemu(linux) as vmm:
        said = vmm.hmp("info registers")
    (vcpu,) = linux.vcpus
    assert f"RIP={vcpu.regs.rip:016x}" in said
    assert f"CR3={vcpu.sregs.cr3:016x}" in said
    assert f"IDT=     {vcpu.sregs.idt.base:016x}" in said


def test_qemu_finds_a_keepers_secret_where_we_do(linux: SealedLinux) -> None:
    seal = linux.seal
    root = linux.keeper_roots[KEEPERS[0].name]
    gpa = lookup(mapped(linux.ram), root, seal.levels, seal.cbit_pos, SECRET_GVA)
    assert gpa is not None
    with sealed_qemu(linux) as vmm:
        assert physical_memory(vmm, gpa, SECRET_NBYTES) == KEEPERS[0].secret


def test_qemus_own_walker_agrees_on_the_plain_guest(linux: SealedLinux) -> None:
    (banner,) = linux.plain.image.landmarks
    with sealed_qemu(linux.plain) as vmm:
        assert vmm.hmp(f"gva2gpa 0x{banner.gva:x}") == f"gpa: 0x{banner.gpa:x}\n"
        text = physical_memory(vmm, banner.gpa, banner.nbytes)
    assert text.decode() == linux.plain.facts["version"]
