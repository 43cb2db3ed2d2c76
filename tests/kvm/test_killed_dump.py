"""`sevkvm dump` killed at random moments, again and again: QEMU must not notice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevkvm.host.deputy import Deputy
from tests.support.killing import dump, dump_argv, kill_dumps, settle, shape
from tests.support.qemu import QemuVmm, qemu, require_kvm_qemu

pytestmark = pytest.mark.kvm

KILLS = 100
RAM_NBYTES = 64 << 20


@pytest.fixture(scope="module")
def vmm() -> Iterator[QemuVmm]:
    require_kvm_qemu()
    with qemu(ram="64M", machine="pc", sandbox=True) as vmm:
        # something other than zeros in every page
        pattern = b"".join(index.to_bytes(8, "little") * 512 for index in range(RAM_NBYTES // 4096))
        with Path(f"/proc/{vmm.pid}/mem").open("r+b", buffering=0) as memory:
            memory.seek(vmm.gpa2hva(0x100000))
            memory.write(pattern[0x100000:])
        yield vmm


def argv_for(vmm: QemuVmm, output: Path) -> list[str]:
    return dump_argv(vmm, 0, RAM_NBYTES, output)


def test_killed_at_random_moments(vmm: QemuVmm, tmp_path: Path) -> None:
    first = tmp_path / "first"
    truth = tmp_path / "truth"
    began = time.monotonic()
    reference = dump(argv_for(vmm, first), first)
    took = time.monotonic() - began
    assert vmm.hmp(f'pmemsave 0 {RAM_NBYTES} "{truth}"') == ""
    assert reference == truth.read_bytes()
    before = settle(vmm.pid, shape(vmm.pid))

    output = tmp_path / "killed"

    def check() -> None:
        # a file under the final name is a whole file
        assert not output.exists() or output.read_bytes() == reference
        output.unlink(missing_ok=True)

    outcomes = kill_dumps(
        vmm.pid, argv_for(vmm, output), KILLS, took, lambda: vmm.process.poll() is None, check
    )
    print(f"{KILLS} turns: {outcomes}, one dump takes {took:.3f} s")
    assert outcomes["killed"] > KILLS // 4
    assert "VM status" in vmm.hmp("info status")
    with Deputy(vmm.pid):
        pass
    assert settle(vmm.pid, before) == before
    last = tmp_path / "last"
    assert dump(argv_for(vmm, last), last) == reference
