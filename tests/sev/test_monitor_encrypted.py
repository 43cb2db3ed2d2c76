"""The monitor on an encrypted guest says what QEMU's says of the same guest when it is not encrypted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevkvm.attach import AttachOptions, open_guest
from sevkvm.attach.outside import Outside
from sevkvm.lab.sealed import SealedLinux
from sevkvm.monitor.monitor import Monitor
from sevkvm.monitor.runcontrol import RunControl
from tests.support.linux import require_sealed_linux
from tests.support.monitorlines import same
from tests.support.qemu import QemuVmm, require_kvm_qemu
from tests.support.qemu_sealed import sealed_qemu
from tests.support.sevhost import sev_host

pytestmark = [pytest.mark.kvm, pytest.mark.sev]

# Facts of the VMM's process and of its ROM (which nobody encrypts; xp takes all memory as private), not of the guest.
NOT_THE_GUESTS = re.compile(r"info (cpus|mtree|sev)|gpa2h[vp]a|.*0xffff0")


@pytest.fixture(scope="module")
def linux() -> SealedLinux:
    require_kvm_qemu()
    pytest.importorskip("capstone")
    return require_sealed_linux()


@pytest.fixture(scope="module")
def plain(linux: SealedLinux) -> Iterator[QemuVmm]:
    with sealed_qemu(linux.plain) as vmm:
        yield vmm


@pytest.fixture(scope="module")
def monitor(linux: SealedLinux) -> Iterator[Monitor]:
    with sev_host() as host, sealed_qemu(linux, popen=host.popen, sev_policy=0) as vmm:
        asked = AttachOptions(pid=vmm.pid, vm_fd=vmm.vm_fd, qmp=vmm.qmp_path, cbit_pos=linux.seal.cbit_pos)
        with open_guest(asked) as guest:
            outside = Outside(vmm.pid, asked, pytest.fail)
            with RunControl(guest, outside) as control:
                yield Monitor(guest, outside, control)


def test_the_same_answers(monitor: Monitor, plain: QemuVmm, linux: SealedLinux, tmp_path: Path) -> None:
    lines = [line for line in same(str(tmp_path)) if not NOT_THE_GUESTS.match(line)]
    assert len(lines) >= 245
    cbit = 1 << linux.seal.cbit_pos
    cr3 = linux.vcpus[0].sregs.cr3
    assert cr3 & cbit
    for line in lines:
        said = monitor.execute(line).replace(f"CR3={cr3:016x}", f"CR3={cr3 & ~cbit:016x}")
        assert said == plain.hmp(line), line
        for path in tmp_path.iterdir():
            ours = path.read_bytes()
            plain.hmp(line)
            assert path.read_bytes() == ours, line
            path.unlink()


def test_an_address_with_the_cbit_is_the_page_without(monitor: Monitor, linux: SealedLinux) -> None:
    (banner,) = linux.image.landmarks
    gpa = banner.gpa | 1 << linux.seal.cbit_pos
    said = monitor.execute(f"xp /6cb {gpa:#x}")
    assert said == f"{gpa:016x}: 'L' 'i' 'n' 'u' 'x' ' '\n"


def test_info_sev_is_qemus(monitor: Monitor) -> None:
    said = monitor.execute("info sev")
    assert said.startswith("handle: ")
    assert said.endswith("debug: on\nkey-sharing: on\n")
