"""The library inside the VMM itself: the same Guest, no deputy, nobody stopped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevkvm import errors
from sevkvm.attach import AttachOptions, open_guest
from sevkvm.host.port import LocalPort
from sevkvm.lab.demo import DemoOptions, demo_image
from sevkvm.lab.image import Image
from sevkvm.lab.vmm import LabVm, LaunchOptions, launched
from tests.support.qemu import require_kvm

pytestmark = pytest.mark.kvm


@pytest.fixture(scope="module")
def image() -> Image:
    return demo_image(DemoOptions(memory_nbytes=16 << 20))


@pytest.fixture(scope="module")
def vm(image: Image) -> Iterator[LabVm]:
    require_kvm()
    with launched(image, LaunchOptions(policy=None)) as vm:
        yield vm


def options(image: Image, vm: LabVm) -> AttachOptions:
    slots = tuple(f"{slot.gpa:#x}:{slot.nbytes:#x}:{vm.hva(slot.gpa):#x}" for slot in image.slots)
    return AttachOptions(pid=os.getpid(), vm_fd=vm.vm_fd, slots=slots)


def test_the_same_guest_without_a_deputy(image: Image, vm: LabVm) -> None:
    threads = len(list(Path("/proc/self/task").iterdir()))
    with open_guest(options(image, vm)) as guest, guest.held():
        assert len(list(Path("/proc/self/task").iterdir())) == threads
        assert guest.registers()[0].regs == image.vcpus[0].regs
        for landmark in image.landmarks:
            assert guest.read_virtual(landmark.gva, landmark.nbytes) == image.plaintext(
                landmark.gpa, landmark.nbytes
            )


def test_addresses_that_are_not_mapped_are_errors_not_crashes() -> None:
    with LocalPort() as port:
        with pytest.raises(errors.MemoryFault):
            port.read(0x1000, 8)
        with pytest.raises(errors.MemoryFault):
            port.write(0x1000, b"12345678")
        with pytest.raises(errors.IoctlError, match="EBADF"):
            port.ioctl(-1, 0xAE80)
        assert port.readinto(0x1000, memoryview(bytearray(8))) == 0
