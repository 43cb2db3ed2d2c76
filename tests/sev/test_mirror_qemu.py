"""A mirror VM on an unmodified, encrypted QEMU under its strictest sandbox: memory of both kinds, both kernels."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sevkvm.lab.files import mapped
from sevkvm.lab.sealed import SealedLinux
from tests.support.build import ROOT
from tests.support.linux import require_sealed_linux
from tests.support.qemu import QemuVmm, require_kvm_qemu
from tests.support.qemu_sealed import sealed_qemu
from tests.support.sevhost import Host, sev_host
from tests.support.witness import Witness, settled, undisturbed

pytestmark = [pytest.mark.kvm, pytest.mark.sev]

START, END = 0x100000, 0x1000000
KILLS = 6


@dataclass
class Sealed:
    """The lab's Linux in QEMU on a pretend host, and sevkvm there too."""

    host: Host
    vmm: QemuVmm
    linux: SealedLinux

    def start(self, command: str, *words: str) -> subprocess.Popen[str]:
        guest = ["--pid", str(self.vmm.pid), "--cbit-pos", "51", "--qmp", self.vmm.qmp_path]
        return self.host.popen(
            [sys.executable, "-m", "sevkvm", command, *guest, *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, command: str, *words: str, status: int = 0) -> tuple[str, str]:
        process = self.start(command, *words)
        out, err = process.communicate(timeout=120)
        assert process.returncode == status, err
        return out, err

    def left_over(self) -> list[str]:
        """Processes that were told of this QEMU's monitor, once those that end have ended."""
        deadline = time.monotonic() + 20
        while (found := list(self._askers())) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    def _askers(self) -> Iterator[str]:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().decode(errors="replace")
            except OSError:
                continue
            if self.vmm.qmp_path in words and "sevkvm" in words and int(path.parent.name) != self.vmm.pid:
                yield words

    def json(self, command: str, *words: str) -> Any:
        return json.loads(self.run(command, "--json", *words)[0])


@pytest.fixture(scope="module")
def linux() -> SealedLinux:
    require_kvm_qemu()
    return require_sealed_linux()


@pytest.fixture(scope="module", params=[("new", "memfd"), ("old", "file")], ids="-".join)
def sealed(
    request: pytest.FixtureRequest, linux: SealedLinux, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sealed]:
    generation, backing = request.param
    memory: dict[str, Any] = (
        {"memfd": True} if backing == "memfd" else {"ram_file": tmp_path_factory.mktemp("ram") / "ram"}
    )
    with (
        sev_host(generation=generation) as host,
        sealed_qemu(linux, popen=host.popen, sev_policy=0, sandbox=True, **memory) as vmm,
    ):
        yield Sealed(host, vmm, linux)


def test_the_same_bytes_as_through_a_deputy(sealed: Sealed, tmp_path: Path) -> None:
    words = ("--gpa", f"{START:#x}:{END:#x}", "--no-scan", "--force")

    def dump(via: str, *more: str) -> int:
        process = sealed.start("dump", "-o", str(tmp_path / via), *words, "--via", via, *more)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        return process.pid

    undisturbed(sealed.vmm.pid, lambda: dump("mirror"))
    with Witness(sealed.vmm.pid) as witness:
        deputy = dump("deputy")
    assert deputy in witness.tracers
    found = (tmp_path / "mirror").read_bytes()
    assert found == (tmp_path / "deputy").read_bytes()
    assert found == bytes(mapped(sealed.linux.ram)[START:END])
    # of memory alone, of a guest that may run on, it is the mirror that is chosen
    before = sealed.host.log.names().count("COPY_ENC_CONTEXT_FROM")
    dump("auto", "--live")
    assert (tmp_path / "auto").read_bytes() == found
    assert sealed.host.log.names().count("COPY_ENC_CONTEXT_FROM") == before + 1
    assert not [record for record in sealed.host.log.records if record.notes]
    assert "MOVE_ENC_CONTEXT_FROM" not in sealed.host.log.names()


def test_registers_are_the_monitors(sealed: Sealed) -> None:
    asked, told = (sealed.json("regs", "--via", via) for via in ("mirror", "deputy"))
    assert len(asked) == len(told) == len(sealed.linux.vcpus)
    for ours, theirs in zip(asked, told, strict=True):
        assert (ours.pop("cr8"), ours.pop("apic_base")) == (None, None)
        del theirs["cr8"], theirs["apic_base"]
        assert ours == theirs
    (banner,) = sealed.linux.image.landmarks
    words = ("--json", "/16xb", hex(banner.gva))
    assert sealed.run("x", *words, "--via", "mirror") == sealed.run("x", *words, "--via", "deputy")


def test_roms_that_qemu_keeps_to_itself_are_holes(sealed: Sealed) -> None:
    out, said = sealed.run("xp", "/4xb", "0xfffffff0", "--via", "mirror", status=6)
    assert out == "00000000fffffff0: Cannot access memory\n"
    assert "out of the mirror's reach" in said
    assert "pc.bios at gpa 0xfffc0000" in said
    assert "it is anonymous memory; --via deputy reads them" in said
    # by itself the deputy is chosen for them
    out, said = sealed.run("xp", "/4xb", "0xfffffff0")
    assert "Cannot access" not in out
    assert said == ""
    # and RAM is not warned of
    assert sealed.run("xp", "/4xb", hex(START), "--via", "mirror")[1] == ""


@pytest.mark.sev_write
def test_writing(sealed: Sealed) -> None:
    gpa = START + 0x123
    before = sealed.json("xp", f"/{11}xb", hex(gpa), "--via", "deputy")["bytes"]
    words = ("--gpa", hex(gpa), "--private", "--no-scan", "--via", "mirror")

    def write() -> int:
        process = sealed.start("write", *words, "--string", "hello world")
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        assert "11 bytes written and read back" in said
        return process.pid

    undisturbed(sealed.vmm.pid, write)
    assert bytes.fromhex(sealed.json("xp", "/11xb", hex(gpa), "--via", "deputy")["bytes"]) == b"hello world"
    sealed.run("write", *words, "--bytes", before, "--expect", b"hello world".hex())
    assert sealed.json("xp", "/11xb", hex(gpa), "--via", "deputy")["bytes"] == before
    assert "VM status: paused" in sealed.vmm.hmp("info status")  # as it was


def test_killed_at_random_moments(sealed: Sealed, tmp_path: Path) -> None:
    """While it starts and asks the monitor, and while it decrypts; QEMU has nothing of it to get over."""
    chance = random.Random(20261128)
    wanted = Witness(sealed.vmm.pid).look()
    out = tmp_path / "x"
    words = ("--gpa", f"{START:#x}:{END:#x}", "--no-scan", "--force", "--via", "mirror", "-o", str(out))
    killed = 0

    def kill(attached: bool) -> int:
        nonlocal killed
        mirrors = sealed.host.log.names().count("COPY_ENC_CONTEXT_FROM")
        process = sealed.start("dump", *words)
        while attached and process.poll() is None:
            if sealed.host.log.names().count("COPY_ENC_CONTEXT_FROM") > mirrors:
                break
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.03 if attached else 0.5))
        process.kill()
        killed += process.wait(10) == -signal.SIGKILL
        for pipe in (process.stdout, process.stderr):
            assert pipe
            pipe.close()
        return process.pid

    for turn in range(KILLS):
        undisturbed(sealed.vmm.pid, lambda attached=turn % 2 == 0: kill(attached))
        assert sealed.vmm.process.poll() is None
    assert killed > KILLS // 4
    assert sealed.left_over() == []
    assert settled(sealed.vmm.pid, wanted) == wanted
    assert "VM status: paused" in sealed.vmm.hmp("info status")
    out.unlink(missing_ok=True)
    sealed.run("dump", *words)
    assert out.read_bytes() == bytes(mapped(sealed.linux.ram)[START:END])
