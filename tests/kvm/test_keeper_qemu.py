"""A QEMU that is stopped through its monitor runs again, whatever becomes of who stopped it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevkvm import errors
from sevkvm.host.keeper import KeptMonitor
from tests.support.build import ROOT
from tests.support.qemu import QemuVmm, qemu, require_kvm_qemu
from tests.support.witness import undisturbed

pytestmark = pytest.mark.kvm

RAM_NBYTES = 64 << 20


@pytest.fixture(scope="module")
def vmm() -> Iterator[QemuVmm]:
    require_kvm_qemu()
    with qemu(memfd=True, sandbox=True, stopped=False) as vmm:
        yield vmm


def status(vmm: QemuVmm, wanted: str) -> str:
    """The VM's state, once it is this one; else what it is in the end."""
    deadline = time.monotonic() + 20
    found = ""
    while found != wanted and time.monotonic() < deadline:
        found = str(vmm.execute("query-status")["status"])
        time.sleep(0.01)
    return found


def test_stopped_and_continued(vmm: QemuVmm) -> None:
    kept = KeptMonitor(vmm.qmp_path, None, 5.0)
    assert kept.stop() is True
    assert status(vmm, "paused") == "paused"
    assert kept.hmp("info status").startswith("VM status: paused")
    with pytest.raises(errors.SevKvmError, match="no-such"):
        kept.execute("no-such-command")
    kept.cont()
    assert status(vmm, "running") == "running"
    kept.close()


def test_who_stood_still_before_is_left_so(vmm: QemuVmm) -> None:
    vmm.execute("stop")
    kept = KeptMonitor(vmm.qmp_path, None, 5.0)
    assert kept.stop() is False
    kept.cont()
    kept.close()
    assert status(vmm, "paused") == "paused"
    vmm.execute("cont")


def test_a_monitor_that_is_none(tmp_path: Path) -> None:
    kept = KeptMonitor(str(tmp_path / "nothing"), None, 1.0)
    with pytest.raises(errors.AttachError, match="cannot connect"):
        kept.stop()
    kept.close()


def dump_argv(vmm: QemuVmm, output: Path, *more: str) -> list[str]:
    words = ("--pid", str(vmm.pid), "--qmp", vmm.qmp_path, "--via", "mirror", "--no-scan", "--force")
    return [sys.executable, "-m", "sevkvm", "dump", *words, "-o", str(output), *more]


def test_a_dump_that_is_killed_leaves_the_guest_running(vmm: QemuVmm) -> None:
    """Nobody takes what it writes, so that it is in the midst of it when it is killed, and the guest stands still."""
    for sent in (signal.SIGKILL, signal.SIGTERM):
        reader, writer = os.pipe()
        process = subprocess.Popen(
            dump_argv(vmm, Path("-"), "--gpa", f"0x100000:{RAM_NBYTES:#x}"),
            cwd=ROOT,
            stdout=writer,
            stderr=subprocess.DEVNULL,
        )
        os.close(writer)
        assert status(vmm, "paused") == "paused"
        process.send_signal(sent)
        if sent == signal.SIGKILL:
            assert process.wait(20) == -sent
        assert status(vmm, "running") == "running"
        os.close(reader)
        process.wait(20)


def test_a_plain_guest_stands_still_while_it_is_copied(vmm: QemuVmm, tmp_path: Path) -> None:
    """And is neither traced nor entered: its memory is a file for us as well."""

    def dump() -> int:
        process = subprocess.Popen(
            dump_argv(vmm, tmp_path / "x"), cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
        return process.pid

    undisturbed(vmm.pid, dump)
    assert status(vmm, "running") == "running"
    vmm.execute("stop")
    dump()
    truth = tmp_path / "truth"
    assert vmm.hmp(f'pmemsave 0x100000 {RAM_NBYTES - 0x100000} "{truth}"') == ""
    with (tmp_path / "x").open("rb") as file:
        file.seek(0x100000)
        assert file.read(RAM_NBYTES - 0x100000) == truth.read_bytes()
    vmm.execute("cont")
