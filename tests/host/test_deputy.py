"""The deputy in a process of our own making: what it does, what it refuses, what it leaves."""

from __future__ import annotations

import errno
import os
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sevkvm import errors, native
from sevkvm.host.deputy import Deputy
from sevkvm.host.ramview import RamView
from tests.support.build import ROOT, compile_program
from tests.support.victim import Victim

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_program("victim", tmp_path_factory.mktemp("programs"))


@pytest.fixture
def victim(program: Path) -> Iterator[Victim]:
    victim = Victim(program, "poll")
    yield victim
    victim.close()


def other_process(victim: Victim, body: str) -> subprocess.Popen[str]:
    """Python in another process: ``deputy`` is attached to the victim when ``body`` runs; it prints and waits."""
    code = (
        f"from sevkvm.host.deputy import Deputy\nimport sys\n"
        f"with Deputy({victim.pid}) as deputy:\n    {body}\n    print('ready', flush=True)\n    sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def finish(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=20)
    assert process.returncode == 0


def wait_until_dead(victim: Victim) -> None:
    """All its threads have ended; what remains is for us, the tracer, and its parent to reap."""
    deadline = time.monotonic() + 10
    while states(victim) != {"Z"}:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def states(victim: Victim) -> set[str]:
    """Of its tasks; one that is gone before it is looked at has none."""
    found = set()
    for task in Path(f"/proc/{victim.pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            found.add((task / "stat").read_text().rsplit(")", 1)[1].split()[0])
    return found


def test_an_ioctl_runs_on_the_targets_descriptors(victim: Victim) -> None:
    with Deputy(victim.pid) as deputy:
        # FIONREAD on the victim's stdin, a pipe: how many bytes wait there (none: it reads at once)
        deputy.write(deputy.args_hva, b"\xff" * 4)
        assert deputy.ioctl(0, termios.FIONREAD, deputy.args_hva) == 0
        assert struct.unpack("<i", deputy.read(deputy.args_hva, 4)) == (0,)


def test_a_refused_ioctl_is_an_ioctl_error(victim: Victim) -> None:
    with Deputy(victim.pid) as deputy:
        with pytest.raises(errors.IoctlError) as caught:
            deputy.ioctl(999, 0xAE80)
        assert caught.value.errno == errno.EBADF
        assert caught.value.request == "KVM_RUN"
        # and the deputy is as good as before
        with pytest.raises(errors.IoctlError):
            deputy.ioctl(999, 0xAE80)


def own_scratch() -> list[str]:
    """Mappings of shared memory without a name in this process."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in maps if line.endswith("/dev/zero (deleted)")]


@pytest.mark.parametrize("may_map", [True, False])
def test_much_of_the_scratch_area_is_read_without_a_system_call_where_that_may_be(
    victim: Victim, monkeypatch: pytest.MonkeyPatch, may_map: bool
) -> None:
    if may_map and os.geteuid() != 0:
        pytest.skip("needs root: /proc/PID/map_files is for CAP_CHECKPOINT_RESTORE")
    if not may_map:
        monkeypatch.setattr(RamView, "add", lambda *_: "not now")
    before, data = own_scratch(), os.urandom(256 << 10)
    copied: list[int] = []
    real = native.read_into

    def read_into(pid: int, hva: int, buffer: memoryview) -> int:
        copied.append(len(buffer))
        return real(pid, hva, buffer)

    monkeypatch.setattr(native, "read_into", read_into)
    with Deputy(victim.pid) as deputy:
        for offset in (0, deputy.scratch_nbytes - len(data)):  # its ends, and no byte beyond
            deputy.write(deputy.scratch_hva + offset, data)
            buffer = memoryview(bytearray(len(data)))
            assert deputy.readinto(deputy.scratch_hva + offset, buffer) == len(data)
            assert buffer == data
        assert copied == ([] if may_map else [len(data)] * 2)
        assert (
            deputy.readinto(deputy.scratch_hva + deputy.scratch_nbytes - len(data), buffer[: 4 << 10])
            == 4 << 10
        )
        assert copied[-1:] == [4 << 10]  # little is copied
    assert own_scratch() == before
    victim.assert_well()


def test_nothing_stays(victim: Victim) -> None:
    before = victim.shape()
    for _ in range(5):
        with Deputy(victim.pid) as deputy:
            assert victim.threads() == before[0] + 1
            assert deputy.info().leftovers == 0
        victim.wait_for_threads(before[0])
        assert victim.shape() == before
    victim.assert_well()


def test_only_the_main_thread_is_borrowed_once(victim: Victim) -> None:
    with Deputy(victim.pid) as deputy:
        info = deputy.info()
    assert info.borrowed_tid == victim.pid
    assert info.borrowed_ns > 0


def test_held_threads_stand_still_and_then_go_on(victim: Victim) -> None:
    with Deputy(victim.pid) as deputy:
        assert deputy.hold() == 2
        states = {
            (task / "stat").read_text().rsplit(")", 1)[1].split()[0]
            for task in Path(f"/proc/{victim.pid}/task").iterdir()
        }
        assert states == {"t"}
        deputy.release()
        victim.assert_well()
        assert deputy.hold([victim.pid]) == 1
        deputy.release()
        victim.assert_well()


def test_a_thread_that_is_not_the_targets_is_not_held(victim: Victim) -> None:
    with Deputy(victim.pid) as deputy:
        assert deputy.hold([os.getpid(), 1]) == 0


def test_leaving_releases_what_was_held(victim: Victim) -> None:
    with Deputy(victim.pid) as deputy:
        deputy.hold()
    victim.assert_well()


def test_another_thread_of_ours_is_refused(victim: Victim) -> None:
    seen: list[BaseException] = []

    def from_thread() -> None:
        try:
            deputy.ioctl(0, termios.FIONREAD, deputy.args_hva)
        except errors.SevKvmError as error:
            seen.append(error)

    with Deputy(victim.pid) as deputy:
        thread = threading.Thread(target=from_thread)
        thread.start()
        thread.join(10)
        assert "belongs to thread" in str(seen[0])
        deputy.ioctl(0, termios.FIONREAD, deputy.args_hva)


def test_two_at_once_leave_each_other_alone(victim: Victim) -> None:
    other = other_process(victim, "pass")
    with Deputy(victim.pid) as deputy:
        assert deputy.info().leftovers == 0
        assert deputy.hold() == 2  # not the other's deputy
        deputy.release()
    finish(other)
    victim.assert_well()


def test_a_thread_that_another_debugger_holds_is_an_attach_error(victim: Victim) -> None:
    other = other_process(victim, "deputy.hold()")
    with pytest.raises(errors.AttachError, match="is traced by process"):
        Deputy(victim.pid)
    finish(other)
    victim.assert_well()


def test_a_stopped_process_can_be_entered_and_stays_stopped(victim: Victim) -> None:
    os.kill(victim.pid, signal.SIGSTOP)
    with Deputy(victim.pid) as deputy:
        deputy.ioctl(0, termios.FIONREAD, deputy.args_hva)
    state = Path(f"/proc/{victim.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    assert state in "Tt"
    os.kill(victim.pid, signal.SIGCONT)
    victim.assert_well()


def test_signals_reach_the_target_while_we_are_attached(victim: Victim) -> None:
    with Deputy(victim.pid) as deputy:
        deputy.hold()
        os.kill(victim.pid, signal.SIGTERM)
        deputy.release()
        wait_until_dead(victim)
        with pytest.raises(errors.TargetGone):
            deputy.ioctl(0, termios.FIONREAD, deputy.args_hva)
        # its parent can reap it, although we are still in the block
        assert victim.process.wait(10) == -signal.SIGTERM


def test_a_target_that_dies_is_target_gone(victim: Victim) -> None:
    with Deputy(victim.pid) as deputy:
        victim.process.kill()
        wait_until_dead(victim)
        with pytest.raises(errors.TargetGone):
            deputy.ioctl(0, termios.FIONREAD, deputy.args_hva)
        with pytest.raises(errors.TargetGone):
            deputy.read(deputy.args_hva, 1)


def test_no_such_process() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait(10)
    with pytest.raises(errors.VmNotFound):
        Deputy(gone.pid)


def test_this_process_itself_is_refused() -> None:
    with pytest.raises(errors.SevKvmError, match="this process itself"):
        Deputy(os.getpid())


def test_without_rights_it_is_an_attach_error(victim: Victim) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become an ordinary user who may not trace root's process")
    child = os.fork()
    if child == 0:
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        try:
            Deputy(victim.pid)
        except errors.AttachError as error:
            os._exit(error.exit_code if error.help and "run sevkvm as root" in error.help else 100)
        finally:
            os._exit(101)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == errors.EXIT_ATTACH
    victim.assert_well()


# ---- asking first


def test_a_check_finds_nothing_wrong_and_touches_nothing(victim: Victim) -> None:
    shape = victim.shape()
    native.deputy_check(victim.pid)
    victim.assert_well()
    assert victim.shape() == shape


def test_a_check_sees_another_tracer(victim: Victim) -> None:
    tracer = other_process(victim, "deputy.hold()")
    try:
        with pytest.raises(errors.AttachError, match=f"is traced by process {tracer.pid} already"):
            native.deputy_check(victim.pid)
    finally:
        finish(tracer)
    native.deputy_check(victim.pid)


def test_a_check_of_what_no_deputy_enters() -> None:
    with pytest.raises(errors.TargetGone):
        native.deputy_check(1 << 22)
    with pytest.raises(errors.SevKvmError, match="this process itself"):
        native.deputy_check(os.getpid())


def test_a_check_without_rights(victim: Victim) -> None:
    """As another user: Linux lets nobody but root and the owner look."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    code = (
        "import os, sys\nfrom sevkvm import errors, native\nos.setgroups([])\nos.setresgid(65534, 65534, 65534)\n"
        f"os.setresuid(65534, 65534, 65534)\ntry:\n    native.deputy_check({victim.pid})\n"
        "except errors.AttachError as error:\n    print(error.help)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert "run sevkvm as root or as the VMM's own user" in done.stdout, done.stderr
