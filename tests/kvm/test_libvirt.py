"""A running domain of a real libvirtd: another user's, in another mount namespace, in libvirt's sandbox."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.gdb import gdb, gdbserver, require_gdb
from tests.support.killing import settle, shape
from tests.support.libvirt import Domain, libvirt_domain, require_libvirt
from tests.support.qemu import qemu

pytestmark = pytest.mark.kvm
BIOS_GPA, BIOS_NBYTES = 0xF0000, 0x10000


@pytest.fixture(scope="module")
def domain() -> Iterator[Domain]:
    require_libvirt()
    with libvirt_domain(f"sevkvm-{os.getpid()}") as domain:
        yield domain


def sevkvm(domain: Domain, command: str, *words: str, name: str = "") -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "sevkvm", command, "--libvirt", name or domain.name, *words]
    return subprocess.run(
        argv, env=domain.environment, capture_output=True, text=True, timeout=60, check=False
    )


def bios(domain: Domain) -> bytes:
    """In QEMU's own words: what its monitor saves."""
    saved = domain.directory / "bios"
    question = f'pmemsave {BIOS_GPA} {BIOS_NBYTES} "{saved}"'
    assert domain.virsh("qemu-monitor-command", domain.name, "--hmp", question).strip() == ""
    return saved.read_bytes()


def test_list_and_status(domain: Domain) -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "sevkvm", "list", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert (domain.pid, domain.name) in [(each["pid"], each["name"]) for each in json.loads(listed.stdout)]
    done = sevkvm(domain, "status", "--pid", str(domain.pid), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert sum(slot["size"] for slot in told["slots"] if slot["name"] == "pc.ram") == (64 << 20) - (256 << 10)


def test_dump_is_what_qemu_saves_and_its_sandbox_lets_it(domain: Domain, tmp_path: Path) -> None:
    assert "Seccomp:\t2" in Path(f"/proc/{domain.pid}/status").read_text()
    before = shape(domain.pid)
    output = tmp_path / "bios"
    wanted = f"{BIOS_GPA:#x}:+{BIOS_NBYTES:#x}"
    done = sevkvm(domain, "dump", "--pid", str(domain.pid), "--gpa", wanted, "-o", str(output))
    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == bios(domain)
    assert any(output.read_bytes())
    assert settle(domain.pid, before) == before
    assert domain.virsh("domstate", domain.name).strip() == "paused"


def test_monitor_and_registers(domain: Domain) -> None:
    done = sevkvm(domain, "monitor", "--pid", str(domain.pid), "-c", "info status", "-c", "info registers")
    assert done.returncode == 0, done.stderr
    assert "paused" in done.stdout
    assert "CS =f000 00000000ffff0000" in done.stdout or "CS =f000 ffff0000" in done.stdout


def test_gdb(domain: Domain, tmp_path: Path) -> None:
    require_gdb()
    options = ("--pid", str(domain.pid), "--libvirt", domain.name, "--paging", "none")
    os.environ["LIBVIRT_DEFAULT_URI"] = domain.environment["LIBVIRT_DEFAULT_URI"]
    try:
        with gdbserver(*options, directory=tmp_path) as server:
            said = gdb(server.target, "info registers rip", "x/2xg 0xffff0", "detach")
    finally:
        del os.environ["LIBVIRT_DEFAULT_URI"]
    reset = bios(domain)[-16:]
    for at in (0, 8):
        assert f"0x{int.from_bytes(reset[at : at + 8], 'little'):016x}" in said


def test_the_domain_tells_the_vm_where_the_host_has_several(domain: Domain) -> None:
    with qemu(ram="16M") as other:
        done = sevkvm(domain, "status", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["pid"] == domain.pid != other.pid


def test_a_domain_that_is_not_there_is_said(domain: Domain) -> None:
    done = sevkvm(domain, "status", "--pid", str(domain.pid), name="nowhere")
    assert done.returncode == 3
    assert "nowhere" in done.stderr
    assert "virsh list" in done.stderr


def test_a_libvirtd_that_is_not_there_is_said(domain: Domain, tmp_path: Path) -> None:
    nowhere = {"LIBVIRT_DEFAULT_URI": f"qemu+unix:///session?socket={tmp_path}/none"}
    other = replace(domain, environment=domain.environment | nowhere)
    done = sevkvm(other, "status", "--pid", str(domain.pid))
    assert done.returncode == 3
    assert "LIBVIRT_DEFAULT_URI" in done.stderr
