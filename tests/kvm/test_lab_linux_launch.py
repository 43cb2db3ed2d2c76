"""The lab's VMM with the lab's Linux in it; the real KVM walks the kernel's tables and must agree with ours."""

from __future__ import annotations

import struct

import pytest

from sevkvm.abi import kvm
from sevkvm.lab.files import mapped
from sevkvm.lab.initrd import KEEPERS
from sevkvm.lab.ioctl import ioctl
from sevkvm.lab.keeper import SECRET_GVA, SECRET_NBYTES
from sevkvm.lab.sealed import SealedLinux
from sevkvm.lab.vmm import LabVm, LaunchOptions, launched
from tests.support.linux import require_sealed_linux
from tests.support.qemu import require_kvm
from tests.support.walker import leaves

pytestmark = pytest.mark.kvm

CR4_SMAP = 1 << 21
KVM_TRANSLATE = 0xC018AE85
_TRANSLATION = struct.Struct("<QQBBB5x")


@pytest.fixture(scope="module")
def linux() -> SealedLinux:
    require_kvm()
    return require_sealed_linux()


def translate(vm: LabVm, root: int, gva: int) -> int | None:
    """KVM's own answer. It sets Accessed bits in the guest's tables: for plain guests only."""
    sregs = vm.image.vcpus[0].sregs
    # The kernel asks as a supervisor, from whom SMAP hides the pages of processes.
    sregs = sregs._replace(cr3=root, cr4=sregs.cr4 & ~CR4_SMAP)
    ioctl(vm.vcpu_fds[0], kvm.KVM_SET_SREGS, bytearray(sregs.pack()))
    data = bytearray(_TRANSLATION.pack(gva, 0, 0, 0, 0))
    ioctl(vm.vcpu_fds[0], KVM_TRANSLATE, data)
    _, gpa, valid, _, _ = _TRANSLATION.unpack(data)
    return gpa if valid else None


def test_the_lab_vmm_holds_it_byte_for_byte(linux: SealedLinux) -> None:
    with launched(linux.plain.image, LaunchOptions()) as vm:
        assert memoryview(vm.ram[0]) == mapped(linux.plain.ram)


def test_kvm_finds_every_keepers_secret(linux: SealedLinux) -> None:
    with launched(linux.plain.image, LaunchOptions()) as vm:
        for keeper in KEEPERS:
            gpa = translate(vm, linux.keeper_roots[keeper.name], SECRET_GVA)
            assert gpa is not None
            assert vm.ram[0][gpa : gpa + SECRET_NBYTES] == keeper.secret


def test_kvm_walks_to_the_same_pages(linux: SealedLinux) -> None:
    root = linux.keeper_roots[KEEPERS[0].name]
    sample = list(leaves(mapped(linux.ram), root, 4, linux.seal.cbit_pos))[::50]
    assert len(sample) > 100
    assert {leaf.nbytes for leaf in sample} == {4096, 2 << 20}
    with launched(linux.plain.image, LaunchOptions()) as vm:
        for leaf in sample:
            assert translate(vm, root, leaf.gva) == leaf.gpa, hex(leaf.gva)
