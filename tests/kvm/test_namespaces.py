"""VMMs in other namespaces, and a sevkvm that has little more than one capability, or a pid namespace of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.barevmm import PATTERN, BareVmm, running
from tests.support.build import compile_program
from tests.support.qemu import require_kvm

pytestmark = pytest.mark.kvm
GPA, NBYTES = 0x1000, 8
PID_NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_kvm()
    return compile_program("bare_vmm", tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module")
def vmm(program: Path) -> Iterator[BareVmm]:
    with running(program) as vmm:
        yield vmm


def require(*within: str) -> None:
    """Skip, saying why, where this cannot be had."""
    try:
        done = subprocess.run(
            [*within, sys.executable, "-c", "import sevkvm.native"], capture_output=True, timeout=60
        )
    except OSError as error:
        pytest.skip(f"{within[0]}: {error.strerror}")
    if done.returncode != 0:
        why = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        pytest.skip(f"{' '.join(within)} does not work here: {why}")


def xp(vmm: BareVmm, *within: str) -> subprocess.CompletedProcess[str]:
    argv = [*within, sys.executable, "-m", "sevkvm", "xp", "--pid", str(vmm.pid), "--slot", vmm.slot]
    argv += [f"/{NBYTES}xb", hex(GPA)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def as_nobody(*capabilities: str) -> tuple[str, ...]:
    plus = ",".join(f"+{each}" for each in capabilities)
    caps = [f"--inh-caps={plus}", f"--ambient-caps={plus}"] if plus else []
    return ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *caps)


def assert_read(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr
    numbers = done.stdout.partition(": ")[2].split()
    assert bytes(int(number, 16) for number in numbers) == PATTERN[GPA : GPA + NBYTES]


@pytest.mark.parametrize(
    "kinds",
    [
        ("--mount",),
        ("--pid", "--fork", "--mount-proc"),
        ("--user", "--map-root-user"),
        ("--user", "--map-root-user", "--pid", "--fork", "--mount"),
    ],
)
def test_a_vmm_in_namespaces_of_its_own(program: Path, kinds: tuple[str, ...]) -> None:
    require("unshare", *kinds)
    with running(program, within=["unshare", *kinds, "--"]) as vmm:
        kind = "user" if "--user" in kinds else "mnt"
        assert Path(f"/proc/{vmm.pid}/ns/{kind}").readlink() != Path(f"/proc/self/ns/{kind}").readlink()
        assert_read(xp(vmm))
        assert vmm.answers()


def test_two_capabilities_are_enough(vmm: BareVmm) -> None:
    within = as_nobody("sys_ptrace", "dac_read_search")
    require(*within)
    assert_read(xp(vmm, *within))
    assert vmm.answers()


@pytest.mark.parametrize("capabilities", [(), ("sys_ptrace",), ("dac_read_search",)])
def test_fewer_are_refused_with_what_is_needed(vmm: BareVmm, capabilities: tuple[str, ...]) -> None:
    within = as_nobody(*capabilities)
    require(*within)
    done = xp(vmm, *within)
    assert (done.returncode, done.stdout) == (3, "")
    assert f"may not look at process {vmm.pid}" in done.stderr
    assert "CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH" in done.stderr
    assert vmm.answers()


def test_another_pid_namespace_sees_no_such_process(vmm: BareVmm) -> None:
    require(*PID_NAMESPACE)
    done = xp(vmm, *PID_NAMESPACE)
    assert (done.returncode, done.stdout) == (4, "")
    assert f"no process {vmm.pid}" in done.stderr
    assert "container" in done.stderr
    assert vmm.answers()
