"""`sevkvm drgn` on guests that are not encrypted, and on dumps: prompt, scripts and code as in drgn's own command."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from sevkvm.lab.sealed import PlainLinux
from tests.support.drgnsays import QUESTIONS, agrees, drgn_argv, sevkvm_drgn, stacks_of_dump, symbols
from tests.support.killing import assert_left, shape
from tests.support.lab import SUBPROCESS_ENVIRONMENT
from tests.support.qemu import QemuVmm, qemu, require_kvm_qemu
from tests.support.qemu_sealed import sealed_qemu
from tests.support.readers.dumps import Dumps, sealed
from tests.support.readers.programs import HERE, require_module
from tests.support.readers.told import told_by

pytestmark = pytest.mark.kvm

PATIENCE = 60.0
SCRIPT = """
import sys
print(sys.argv[1:], __name__, prog.flags)
def look():
    return prog.read(0xa0000000, 8, True)
if sys.argv[1] == "--fault":
    look()
sys.exit(7)
"""


@dataclass(frozen=True)
class Plain:
    """A Linux in QEMU, and the options that lead to it."""

    linux: PlainLinux
    vmm: QemuVmm
    where: list[str]


@pytest.fixture(scope="module")
def guest() -> Iterator[Plain]:
    require_kvm_qemu()
    require_module("drgn")
    linux = sealed(4, 51).plain
    with sealed_qemu(linux) as vmm:
        yield Plain(linux, vmm, ["--pid", str(vmm.pid), "--vm-fd", str(vmm.vm_fd), "--qmp", vmm.qmp_path])


def test_a_plain_guest(guest: Plain, reader_dumps: Dumps) -> None:
    before, told = shape(guest.vmm.pid), told_by(sealed(4, 51))
    done = sevkvm_drgn(guest.where, *symbols(told), "-e", QUESTIONS)
    assert done.returncode == 0, done.stderr
    assert agrees(done.stdout, told) == stacks_of_dump(reader_dumps.dump((4, 51, "strip")), told)
    assert_left(guest.vmm.pid, before)


def test_a_dump_whose_tables_keep_the_c_bit(reader_dumps: Dumps) -> None:
    """drgn alone cannot open it."""
    told = reader_dumps.told(cell := (5, 47, "keep"))
    words = [*symbols(told), str(HERE / "drgn_says.py")]
    done = sevkvm_drgn(["--file", str(reader_dumps.dump(cell))], *words)
    assert done.returncode == 0, done.stderr
    assert '"keeper-alpha": "sevkvm-lab: only the keeper alpha knows this' in done.stdout


def test_a_script_has_its_arguments_and_its_exit_status(guest: Plain, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = sevkvm_drgn(guest.where, "--no-default-symbols", str(script), "-s", "--pid")
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout == "['-s', '--pid'] __main__ ProgramFlags.IS_LINUX_KERNEL|IS_LIVE\n"


def test_an_error_of_the_users_is_shown_where_it_is(guest: Plain, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = sevkvm_drgn(guest.where, "--no-default-symbols", str(script), "--fault")
    first, where, *_, last = done.stderr.splitlines()
    assert done.returncode == 1
    assert first == "Traceback (most recent call last):"
    assert where.startswith(f'  File "{script}", line 7')
    assert "FaultError: could not find physical memory segment: 0xa0000000" in last


def test_code_from_stdin_without_symbols(guest: Plain, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.write_text("print(prog.flags, prog.read(0x100000, 4, True) is not None)")
    with code.open() as stdin:
        done = sevkvm_drgn(guest.where, stdin=stdin)
    assert (done.returncode, done.stdout) == (0, "ProgramFlags.IS_LINUX_KERNEL|IS_LIVE True\n")
    release = told_by(sealed(4, 51)).release
    assert f"no debug symbols of the guest's Linux {release} (build ID " in done.stderr
    assert f"linux-image-{release}-dbg (Debian)" in done.stderr


def test_the_vmms_end_is_said_as_such() -> None:
    require_kvm_qemu()
    require_module("drgn")
    with sealed_qemu(sealed(4, 51).plain) as vmm:
        code = "print('go', flush=True)\nwhile True: prog.read(0x100000, 8, True)"
        where = ["--pid", str(vmm.pid), "--qmp", vmm.qmp_path, "--no-default-symbols", "--max-age", "0"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": SUBPROCESS_ENVIRONMENT}
        with subprocess.Popen(drgn_argv(where, "-e", code), **pipes) as process:
            assert process.stdout
            assert process.stderr
            assert process.stdout.readline() == b"go\n"
            os.kill(vmm.pid, signal.SIGKILL)
            said = process.stderr.read()
            assert process.wait(20) == 1
    assert b"Traceback" not in said
    assert b"sevkvm: error: " in said


# ---- the prompt


class Prompt:
    """A terminal of its own with `sevkvm drgn` on it."""

    def __init__(self, argv: list[str], home: Path) -> None:
        self._said = b""
        self.master, slave = pty.openpty()
        environment = SUBPROCESS_ENVIRONMENT | {"HOME": str(home), "TERM": "dumb"}
        environment.pop("XDG_STATE_HOME", None)
        settings = {"stdin": slave, "stdout": slave, "stderr": slave, "start_new_session": True}
        self.process = subprocess.Popen(argv, env=environment, **settings)
        os.close(slave)

    def until(self, text: bytes) -> bytes:
        """What is said up to and with ``text``."""
        deadline = time.monotonic() + PATIENCE
        while text not in self._said:
            ready, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, self._said
            self._said += os.read(self.master, 4096)
        before, _, self._said = self._said.partition(text)
        return before + text

    def type(self, line: bytes) -> None:
        os.write(self.master, line + b"\n")

    def terminate(self) -> int:
        """SIGTERM until it has ended: CPython's readline hears one that comes right behind the prompt with the next."""
        for _ in range(20):
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                return self.process.wait(1.0)
        raise AssertionError("SIGTERM does not end it")

    def close(self) -> None:
        os.close(self.master)
        self.process.kill()
        self.process.wait(20)


def test_the_prompt(guest: Plain, tmp_path: Path) -> None:
    """Ctrl-C ends what is typed or running, again and again; SIGTERM leaves, and nothing stays in the VMM."""
    before = shape(guest.vmm.pid)
    prompt = Prompt(drgn_argv(guest.where, "--no-default-symbols", "--hold", "600"), tmp_path)
    try:
        assert b"drgn 0." in prompt.until(b"vcpu_regs(0))")
        for turn in range(2):
            prompt.until(b">>> ")
            prompt.type(b"print('turn', %d); [prog.read(0x100000, 8, True) for _ in iter(int, 1)]" % turn)
            prompt.until(b"turn %d" % turn)
            prompt.process.send_signal(signal.SIGINT)
            prompt.until(b"KeyboardInterrupt")
        prompt.until(b">>> ")
        prompt.type(b"prog.flags")
        prompt.until(b"IS_LINUX_KERNEL")
        prompt.until(b">>> ")
        assert prompt.terminate() == 128 + signal.SIGTERM
    finally:
        prompt.close()
    assert_left(guest.vmm.pid, before)


def test_a_guest_without_linux_is_refused() -> None:
    require_kvm_qemu()
    require_module("drgn")
    with qemu() as vmm:
        done = sevkvm_drgn(["--pid", str(vmm.pid), "--qmp", vmm.qmp_path], "-e", "print('not here')")
    assert (done.returncode, done.stdout) == (1, "")
    assert "VMCOREINFO" in done.stderr
