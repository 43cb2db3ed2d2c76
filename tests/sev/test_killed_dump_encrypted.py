"""The same for an encrypted QEMU: what is in flight when we die is a firmware command into our scratch area."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevkvm.host.deputy import Deputy
from sevkvm.lab.files import mapped
from sevkvm.lab.sealed import SealedLinux
from tests.support.killing import dump, dump_argv, kill_dumps, marks, settle, settle_marks, shape
from tests.support.linux import require_sealed_linux
from tests.support.qemu import QemuVmm, require_kvm_qemu
from tests.support.qemu_sealed import sealed_qemu
from tests.support.sevhost import host_cbit_pos, sev_host

pytestmark = [pytest.mark.kvm, pytest.mark.sev]

KILLS = 40
START, END = 0x100000, 0x4000000


@pytest.fixture(scope="module")
def linux() -> SealedLinux:
    require_kvm_qemu()
    return require_sealed_linux()


@pytest.fixture(scope="module")
def vmm(linux: SealedLinux) -> Iterator[QemuVmm]:
    with sev_host() as host, sealed_qemu(linux, popen=host.popen, sev_policy=0, sandbox=True) as vmm:
        yield vmm


def argv_for(vmm: QemuVmm, output: Path) -> list[str]:
    return dump_argv(vmm, START, END, output, "--cbit-pos", str(host_cbit_pos()))


def test_killed_while_decrypting(vmm: QemuVmm, linux: SealedLinux, tmp_path: Path) -> None:
    truth = bytes(mapped(linux.ram)[START:END])
    began = time.monotonic()
    assert dump(argv_for(vmm, tmp_path / "first"), tmp_path / "first") == truth
    took = time.monotonic() - began
    before = shape(vmm.pid)
    output = tmp_path / "killed"

    def check() -> None:
        assert not output.exists() or output.read_bytes() == truth
        output.unlink(missing_ok=True)

    outcomes = kill_dumps(
        vmm.pid, argv_for(vmm, output), KILLS, took, lambda: vmm.process.poll() is None, check
    )
    print(f"{KILLS} turns: {outcomes}, one dump takes {took:.3f} s")
    assert outcomes["killed"] > KILLS // 4
    # what was decrypted went with us, as soon as a call in flight was finished; at most control pages wait for the
    # next attach
    assert settle_marks(vmm.pid) <= {"0x1000"}
    assert "VM status" in vmm.hmp("info status")
    with Deputy(vmm.pid):
        pass
    assert settle(vmm.pid, before) == before
    assert marks(vmm.pid) == []
    assert dump(argv_for(vmm, tmp_path / "last"), tmp_path / "last") == truth
