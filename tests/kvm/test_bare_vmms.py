"""VMMs without a shared C library: linked statically, against musl, and without any C library at all."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.barevmm import PATTERN, RAM_NBYTES, BareVmm, running
from tests.support.build import compile_program
from tests.support.killing import settle, shape
from tests.support.qemu import require_kvm

pytestmark = pytest.mark.kvm
BARE = ("-static", "-nostdlib", "-fno-stack-protector", "-fno-builtin", "-DBARE")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_kvm()
    return tmp_path_factory.mktemp("bare")


@pytest.fixture(scope="module")
def static(programs: Path) -> Iterator[BareVmm]:
    (programs / "static").mkdir()
    with running(compile_program("bare_vmm", programs / "static", flags=["-static"])) as vmm:
        assert ".so" not in Path(f"/proc/{vmm.pid}/maps").read_text()
        yield vmm


def sevkvm(command: str, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "sevkvm", command, *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def control_pages(vmm: BareVmm) -> int:
    """Shared anonymous pages: a VMM like this one has none of its own."""
    return Path(f"/proc/{vmm.pid}/maps").read_text().count("/dev/zero (deleted)")


def dump_words(vmm: BareVmm, output: Path) -> list[str]:
    return ["--pid", str(vmm.pid), "--slot", vmm.slot, "-o", str(output)]


def test_a_static_vmm_is_listed_and_dumped(static: BareVmm, tmp_path: Path) -> None:
    (listed,) = [each for each in json.loads(sevkvm("list", "--json").stdout) if each["pid"] == static.pid]
    assert (listed["vm_fd"], listed["vcpus"], listed["name"]) == (static.vm_fd, 1, "bare_vmm")
    before = shape(static.pid)
    output = tmp_path / "ram"
    done = sevkvm("dump", *dump_words(static, output))
    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == PATTERN
    with open(f"/proc/{static.pid}/mem", "rb", buffering=0) as memory:
        memory.seek(static.hva)
        assert memory.read(RAM_NBYTES) == PATTERN
    # without code for `exit` to lend, the control page stays, until the next attach takes its place
    threads, fds, mappings = before
    wanted = (threads, fds, mappings + 1)
    assert settle(static.pid, wanted) == wanted
    assert control_pages(static) == 1
    assert static.answers()
    assert sevkvm("dump", *dump_words(static, tmp_path / "again")).returncode == 0
    assert settle(static.pid, wanted) == wanted
    assert control_pages(static) == 1


def test_its_registers(static: BareVmm) -> None:
    done = sevkvm("regs", "--pid", str(static.pid), "--slot", static.slot, "--json")
    assert done.returncode == 0, done.stderr
    (cpu,) = json.loads(done.stdout)
    assert int(cpu["rip"], 16) == 0xFFF0  # of a vCPU that never ran


def test_without_slots_it_says_how_to_name_them(static: BareVmm, tmp_path: Path) -> None:
    output = tmp_path / "none"
    done = sevkvm("dump", "--pid", str(static.pid), "-o", str(output))
    assert done.returncode == 4
    assert "--slot GPA:SIZE:HVA" in done.stderr
    assert not output.exists()


def test_killed_at_any_moment_it_leaves_a_static_vmm_alive(static: BareVmm, tmp_path: Path) -> None:
    threads = shape(static.pid)[0]
    chance = random.Random(8)
    inside = 0
    for _ in range(12):
        argv = [sys.executable, "-m", "sevkvm", "dump", *dump_words(static, tmp_path / "killed")]
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while process.poll() is None and shape(static.pid)[0] == threads and time.monotonic() < deadline:
            pass
        inside += process.poll() is None
        time.sleep(chance.uniform(0, 0.004))
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        assert static.answers()
    assert inside
    output = tmp_path / "after"
    done = sevkvm("dump", *dump_words(static, output))
    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == PATTERN
    deadline = time.monotonic() + 10
    while shape(static.pid)[0] != threads:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def musl(programs: Path) -> Path:
    compiler = shutil.which("musl-gcc")
    if compiler is None:
        pytest.skip("musl-gcc not installed (Debian: apt install musl-tools)")
    return compile_program("bare_vmm", programs, flags=["-static", *MUSL_INCLUDES], compiler=compiler)


# the kernel's headers, which musl does not bring
MUSL_INCLUDES = ("-idirafter", "/usr/include", "-idirafter", "/usr/include/x86_64-linux-gnu")


@pytest.mark.parametrize("kind", ["musl", "nothing"])
def test_code_that_lends_nothing_is_refused_before_anything_is_touched(
    programs: Path, tmp_path: Path, kind: str
) -> None:
    (programs / kind).mkdir()
    program = (
        musl(programs / kind)
        if kind == "musl"
        else compile_program("bare_vmm", programs / kind, flags=list(BARE))
    )
    with running(program) as vmm:
        before = Path(f"/proc/{vmm.pid}/maps").read_text()
        output = tmp_path / "ram"
        done = sevkvm("dump", *dump_words(vmm, output))
        assert done.returncode == 3
        assert "maps no code with the system-call sequences a deputy needs" in done.stderr
        assert "musl" in done.stderr
        assert not output.exists()
        assert Path(f"/proc/{vmm.pid}/maps").read_text() == before
        assert shape(vmm.pid)[0] == 1
        assert vmm.answers()
        examined = sevkvm("doctor", "--pid", str(vmm.pid), "--slot", vmm.slot)
        assert "maps no code" in examined.stdout
