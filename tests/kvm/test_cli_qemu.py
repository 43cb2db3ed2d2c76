"""The command line against an unmodified QEMU with a plain Linux in it: the monitor says what is right."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sevkvm.cli.program import program
from sevkvm.lab.sealed import SealedLinux
from tests.support.linux import require_sealed_linux
from tests.support.qemu import QemuVmm, require_kvm_qemu
from tests.support.qemu_sealed import sealed_qemu

pytestmark = pytest.mark.kvm

SEED = 7


@pytest.fixture(scope="module")
def linux() -> SealedLinux:
    require_kvm_qemu()
    return require_sealed_linux().plain


@pytest.fixture(scope="module")
def vmm(linux: SealedLinux) -> Iterator[QemuVmm]:
    with sealed_qemu(linux) as running:
        yield running


def sevkvm(vmm: QemuVmm, command: str, *args: str) -> Result:
    """Run a command on this VMM, in this process."""
    return CliRunner().invoke(program, [command, "--pid", str(vmm.pid), "--qmp", vmm.qmp_path, *args])


def answer(vmm: QemuVmm, command: str, *args: str):
    """The command's JSON."""
    result = sevkvm(vmm, command, "--json", *args)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def banner(linux: SealedLinux):
    (landmark,) = linux.image.landmarks
    return landmark


def footprint(vmm: QemuVmm) -> tuple[int, int, int]:
    """Threads, descriptors and mappings."""
    process = Path(f"/proc/{vmm.pid}")
    return (
        len(list((process / "task").iterdir())),
        len(list((process / "fd").iterdir())),
        len((process / "maps").read_text().splitlines()),
    )


def test_list_has_it(vmm):
    result = CliRunner().invoke(program, ["list", "--json"])
    (found,) = [guest for guest in json.loads(result.stdout) if guest["pid"] == vmm.pid]
    assert (found["vm_fd"], found["vcpus"], found["sev"]) == (vmm.vm_fd, 1, "none")
    assert (found["policy"], found["debug_allowed"], found["reason"]) == (None, None, None)
    assert found["name"] == "sevkvm-test"


def test_status_tells_the_memory_as_the_monitor_does(vmm, linux):
    status = answer(vmm, "status")
    assert (status["pid"], status["vm_fd"], status["vcpu_indexes"]) == (vmm.pid, vmm.vm_fd, [0])
    assert status["sev"] == "none"
    for slot in status["slots"]:
        assert int(slot["hva"], 16) == vmm.gpa2hva(int(slot["gpa"], 16)), slot
    ram = max(status["slots"], key=lambda slot: slot["size"])
    assert ram["size"] <= linux.machine.ram_nbytes <= status["memory_size"]
    assert "not encrypted" in sevkvm(vmm, "status").stdout


def test_regs_are_those_of_info_registers(vmm):
    theirs = vmm.hmp("info registers").splitlines()
    ours = sevkvm(vmm, "regs").stdout.splitlines()
    prefixes = [line for line in theirs if re.match(r"R|[C-GL][SD]|SS|TR|GDT|IDT|CR0|EFER", line)]
    assert len(prefixes) >= 15
    for line in prefixes:
        # what QEMU adds at the end of a line (flag letters, interrupt state) is its own
        value = re.match(r"(.*?)(?: \[| DPL=| CPL=|$)", line).group(1).rstrip()
        assert any(mine.startswith(value) for mine in ours), line


def test_regs_as_json(vmm, linux):
    (vcpu,) = answer(vmm, "regs")
    assert vcpu["index"] == 0
    assert vcpu["rip"] == hex(linux.vcpus[0].regs.rip)
    assert vcpu["cr3"] == hex(linux.vcpus[0].sregs.cr3)
    assert vcpu["paging"] == {
        "mode": "4-level",
        "pse": False,
        "root_gpa": hex(linux.vcpus[0].sregs.cr3 & ~0xFFF),
    }


@pytest.mark.parametrize("fmt", ["/4xg", "/16xb", "/7dw", "/9uh", "/5og", "/40cb", "/33xw", "/700xg"])
def test_x_prints_what_the_monitor_prints(vmm, linux, fmt):
    for gva in (banner(linux).gva, banner(linux).gva + 3, banner(linux).gva + 0xFFC):
        assert sevkvm(vmm, "x", fmt, hex(gva)).stdout == vmm.hmp(f"x {fmt} 0x{gva:x}"), hex(gva)


@pytest.mark.parametrize("fmt", ["/4xg", "/16xb", "/40cb", "/700xg"])
def test_xp_prints_what_the_monitor_prints(vmm, linux, fmt):
    end = linux.machine.ram_nbytes
    for gpa in (banner(linux).gpa, 0x1001, 0xFFFF0, end - 40):
        assert sevkvm(vmm, "xp", fmt, hex(gpa)).stdout == vmm.hmp(f"xp {fmt} 0x{gpa:x}"), hex(gpa)


def test_x_of_what_is_not_mapped(vmm):
    result = sevkvm(vmm, "x", "/2xg", "0x10")
    assert result.stdout == vmm.hmp("x /2xg 0x10")
    assert result.exit_code == 6


def test_translate_agrees_with_gva2gpa(vmm, linux):
    randomly = random.Random(SEED)
    start = banner(linux).gva & ~0x1FFFFF
    gvas = [start + randomly.randrange(64 << 20) for _ in range(60)] + [0, 0x1000, 0xFFFF_FFFF_FFFF_F000]
    result = sevkvm(vmm, "translate", "--json", *map(hex, gvas))
    found = json.loads(result.stdout)
    assert result.exit_code == 1  # the last ones are not mapped
    for gva, said in zip(gvas, found, strict=True):
        expected = vmm.hmp(f"gva2gpa 0x{gva:x}").strip()
        assert expected == ("Unmapped" if said["gpa"] is None else f"gpa: {said['gpa']}"), hex(gva)


def test_dump_is_what_pmemsave_writes(vmm, linux, tmp_path):
    out, theirs = tmp_path / "ram", vmm.directory / "pmemsave"
    start, end = 0x100000, linux.machine.ram_nbytes
    vmm.execute("pmemsave", val=start, size=end - start, filename=str(theirs))
    try:
        found = answer(vmm, "dump", "-o", str(out), "--gpa", f"{start:#x}:{end:#x}")
        assert found["complete"] is True
        assert found["copied"] == found["file_size"] == end - start
        with out.open("rb") as ours, theirs.open("rb") as reference:
            assert (
                hashlib.file_digest(ours, "sha256").digest()
                == hashlib.file_digest(reference, "sha256").digest()
            )
    finally:
        theirs.unlink()


def test_nothing_stays_behind(vmm, linux, tmp_path):
    sevkvm(vmm, "regs")  # what the first monitor connection leaves is QEMU's own
    before = footprint(vmm)
    for args in (("regs",), ("x", hex(banner(linux).gva)), ("dump", "-o", str(tmp_path / "ram"))):
        assert sevkvm(vmm, *args).exit_code == 0
    assert footprint(vmm) == before


@pytest.mark.parametrize(("pid", "told"), [(str(os.getpid()), "VM"), ("4194303", "process")])
def test_a_process_without_a_vm_is_status_4(vmm, pid, told):
    result = CliRunner().invoke(program, ["regs", "--pid", pid])
    assert result.exit_code == 4
    assert told in result.stderr


def test_a_descriptor_that_is_no_vm_is_status_4(vmm):
    assert sevkvm(vmm, "regs", "--vm-fd", "0").exit_code == 4


def test_a_monitor_that_is_not_there_is_told(vmm):
    result = CliRunner().invoke(program, ["regs", "--pid", str(vmm.pid), "--qmp", "/no/such/socket"])
    assert result.exit_code != 0
    assert "/no/such/socket" in result.stderr


# ---- as a process of its own: signals and pipes


def child(vmm: QemuVmm, *args: str, **settings) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "sevkvm", *args, "--pid", str(vmm.pid), "--qmp", vmm.qmp_path]
    return subprocess.Popen(argv, stderr=subprocess.PIPE, **settings)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_middle_of_a_dump(vmm, tmp_path, signum, status):
    sevkvm(vmm, "regs")
    before = footprint(vmm)
    reader, writer = os.pipe()  # nobody reads: the dump stands still when the pipe is full
    dump = child(vmm, "dump", "-o", "-", stdout=writer)
    os.close(writer)
    assert os.read(reader, 1)
    dump.send_signal(signum)
    _, err = dump.communicate(timeout=30)
    os.close(reader)
    assert dump.returncode == status, err
    assert b"Traceback" not in err
    assert footprint(vmm) == before
    assert vmm.hmp("info status").startswith("VM status")


def test_a_reader_that_leaves_in_the_middle_of_a_dump(vmm):
    sevkvm(vmm, "regs")
    before = footprint(vmm)
    dump = child(vmm, "dump", "-o", "-", stdout=subprocess.PIPE)
    assert dump.stdout.read(1)
    dump.stdout.close()
    err = dump.stderr.read()
    dump.stderr.close()
    assert dump.wait(timeout=30) == 1
    assert b"Traceback" not in err
    assert footprint(vmm) == before


def test_a_full_disk(vmm):
    sevkvm(vmm, "regs")
    before = footprint(vmm)
    with open("/dev/full", "wb") as full:
        dump = child(vmm, "dump", "-o", "-", stdout=full)
        _, err = dump.communicate(timeout=30)
    assert dump.returncode == 1
    assert b"no space left" in err
    assert b"Traceback" not in err
    assert footprint(vmm) == before


def test_a_vmm_that_dies_in_the_middle_of_a_dump(linux, tmp_path):
    with sealed_qemu(linux) as victim:
        reader, writer = os.pipe()
        dump = child(victim, "dump", "-o", "-", stdout=writer)
        os.close(writer)
        assert os.read(reader, 1)
        os.kill(victim.pid, signal.SIGKILL)
        with open(reader, "rb") as rest:
            while rest.read(1 << 20):
                pass
        _, err = dump.communicate(timeout=30)
    assert dump.returncode == 1, err
    assert b"Traceback" not in err
    assert b"sevkvm: error: " in err


def test_the_shell_completes_its_pid(vmm):
    done = subprocess.run(
        [sys.executable, "-m", "sevkvm"],
        env={"_SEVKVM_COMPLETE": "bash_complete", "COMP_WORDS": "sevkvm x --pid ", "COMP_CWORD": "3"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert f"plain,{vmm.pid}" in done.stdout.splitlines()
