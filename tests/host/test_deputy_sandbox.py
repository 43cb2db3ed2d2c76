"""A process whose seccomp filter kills it for a call that the deputy needs: it is refused, and lives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sevkvm import errors
from sevkvm.host import procfs
from sevkvm.host.deputy import Deputy, sandbox_is_known
from tests.support.build import ROOT, compile_program
from tests.support.victim import Victim

pytestmark = pytest.mark.host

MMAP, MUNMAP, RT_SIGRETURN, IOCTL, CLONE, EXIT = 9, 11, 15, 16, 56, 60
CLONE3 = 435
FIONREAD, FIONBIO = 0x541B, 0x5421

Sandboxed = Callable[..., Victim]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_program("victim", tmp_path_factory.mktemp("programs"))


@pytest.fixture
def sandboxed(program: Path) -> Iterator[Sandboxed]:
    victims: list[Victim] = []

    def start(*sandbox: int) -> Victim:
        victims.append(Victim(program, "poll", *sandbox))
        return victims[-1]

    yield start
    for victim in victims:
        victim.close()


@pytest.fixture(autouse=True)
def _may_read_filters() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: the kernel shows seccomp filters to CAP_SYS_ADMIN only")


@pytest.mark.parametrize(
    # the victim maps memory, too, but not by single pages
    ("number", "argument"),
    [(MMAP, [4096]), (MUNMAP, [4096]), (RT_SIGRETURN, []), (CLONE, []), (EXIT, [])],
)
def test_a_forbidden_call_is_not_made(sandboxed: Sandboxed, number: int, argument: list[int]) -> None:
    victim = sandboxed(number, *argument)
    shape = victim.shape()
    with pytest.raises(errors.AttachError, match=f"forbids system call {number} ") as caught:
        Deputy(victim.pid)
    assert caught.value.help
    assert "left as it was" in caught.value.help
    victim.assert_well()
    assert victim.shape() == shape


def test_the_filter_is_real(sandboxed: Sandboxed) -> None:
    """What the tests above rest on: trusted blindly, the same call is the process's end."""
    victim = sandboxed(CLONE)
    code = f"""
import ctypes
from sevkvm.host.deputy import Deputy

class Program(ctypes.Structure):
    _fields_ = [("count", ctypes.c_ushort), ("code", ctypes.c_void_p)]

libc, allow = ctypes.CDLL(None), ctypes.c_uint64(0x7FFF000000000006)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
# who runs under a filter is shown none
assert libc.prctl(22, 2, ctypes.byref(Program(1, ctypes.addressof(allow)))) == 0
for trust in False, True:
    try:
        Deputy({victim.pid}, trust_sandbox=trust)
    except Exception as error:
        print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    refused, lost = done.stdout.splitlines()
    assert refused.startswith("AttachError")
    assert "does not show us" in refused
    assert lost.startswith("TargetGone"), done.stderr
    assert victim.process.wait(10) == -signal.SIGSYS


def test_another_thread_without_that_filter_will_do(sandboxed: Sandboxed) -> None:
    victim = sandboxed(-CLONE)  # the main thread only
    with Deputy(victim.pid) as deputy:
        assert deputy.info().borrowed_tid != victim.pid
        assert deputy.info().filters == 0
    victim.assert_well()


def test_an_ioctl_that_is_not_on_the_list_is_not_made(sandboxed: Sandboxed) -> None:
    victim = sandboxed(IOCTL, FIONBIO)
    with Deputy(victim.pid) as deputy:
        assert deputy.info().filters == 1
        with pytest.raises(errors.AttachError, match=r"forbids system call 16 \(0x0, 0x5421\)"):
            deputy.ioctl(0, FIONBIO, deputy.args_hva)
        victim.assert_well()
        assert deputy.ioctl(0, FIONREAD, deputy.args_hva) == 0  # the deputy is still good
    victim.assert_well()


def test_a_filter_that_forbids_something_else(sandboxed: Sandboxed) -> None:
    victim = sandboxed(CLONE3)
    with Deputy(victim.pid) as deputy:
        assert deputy.info().filters == 1
        assert deputy.ioctl(0, FIONREAD, deputy.args_hva) == 0
    victim.assert_well()


def test_whose_filters_are_known_to_let_a_deputy_work(sandboxed: Sandboxed) -> None:
    victim = sandboxed(CLONE3)
    assert not sandbox_is_known(victim.pid)
    assert not sandbox_is_known(1 << 22)
    for argv, environment, known in (
        (["qemu-system-x86_64", "100"], {}, True),
        (["cloud-hypervisor", "100"], {}, False),
        (["cloud-hypervisor", "100"], {"SEVKVM_SHIM": "1"}, True),
    ):
        process = subprocess.Popen(argv, executable="/bin/sleep", env=environment)
        try:
            deadline = time.monotonic() + 10
            while procfs.cmdline(process.pid) != argv and time.monotonic() < deadline:
                time.sleep(0.001)  # execve(2) tells the parent a moment before it is done
            assert sandbox_is_known(process.pid) is known
        finally:
            process.kill()
            process.wait(10)
