"""``sevkvm monitor`` on a dump: commands one after the other, and the console on a terminal of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import socket
import stat
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sevkvm.abi.elf import pack_note, pack_prstatus, pack_qemu_state
from sevkvm.cli.program import program
from tests.support.elfcore import core, load
from tests.support.fakeguest import vcpu_state
from tests.support.lab import SUBPROCESS_ENVIRONMENT
from tests.unit.cli.conftest import BASE, SECRET, SECRET_GPA, build_ram

PATIENCE = 30.0


@pytest.fixture
def dump(tmp_path: Path) -> str:
    ram, cr3 = build_ram(None)
    state = vcpu_state(0)
    sregs = state.sregs._replace(cr3=cr3)
    notes = pack_note(b"CORE", 1, pack_prstatus(1, state.regs, sregs))
    notes += pack_note(b"QEMU", 0, pack_qemu_state(state.regs, sregs))
    path = tmp_path / "guest.core"
    path.write_bytes(core(*(load(gpa, data) for gpa, data in ram.items()), notes=notes))
    return str(path)


def monitor(dump: str, *words: str, text: str | None = None) -> Result:
    return CliRunner().invoke(program, ["monitor", "--file", dump, *words], input=text)


def test_commands_one_after_the_other(dump: str) -> None:
    said = monitor(
        dump, "-c", "print 1+1", "-c", f"xp /4cb {SECRET_GPA:#x}", "-c", f"gva2gpa {BASE + SECRET_GPA:#x}"
    )
    assert said.stdout == (f"0x2\n{SECRET_GPA:016x}: 't' 'h' 'e' ' '\ngpa: 0x{SECRET_GPA:x}\n")
    assert SECRET.startswith(b"the ")
    assert said.exit_code == 0


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["print 1", "nonsense", "print 2"], 1),
        (["xp /1xg 0x80000000", "nonsense"], 6),
        (
            [
                "info registers",
                "info mem",
                "info mtree -f",
                "info status",
                "info sev",
                "info version",
                "info cpus",
            ],
            0,
        ),
        (["gpa2hva 0", "gpa2hpa 0"], 1),
        (["stop"], 1),
        (["quit", "nonsense"], 0),
        (["info registers -a", "x /4i $pc+1/0"], 1),
    ],
)
def test_the_exit_status_is_that_of_the_first_that_failed(dump: str, lines: list[str], status: int) -> None:
    said = monitor(dump, *(word for line in lines for word in ("-c", line)))
    assert said.exit_code == status
    assert said.stderr == ""


def test_what_a_dump_does_not_tell_is_left_out(dump: str) -> None:
    said = monitor(dump, "-c", "info registers").stdout
    assert "RIP=" in said
    assert "EFER" not in said
    assert monitor(dump, "-c", "info status").stdout == "VM status: paused\n"
    assert "sevkvm" in monitor(dump, "-c", "info version").stdout
    assert "(prio 0, ram)" in monitor(dump, "-c", "info mtree -f").stdout


def test_lines_from_a_pipe_have_no_prompt(dump: str) -> None:
    said = monitor(dump, text="print 1\n\nnonsense\nprint 2")
    assert said.stdout == "0x1\nunknown command: 'nonsense'\n0x2\n"
    assert said.exit_code == 0


@pytest.mark.parametrize(
    "words",
    [
        ["--hmp"],
        ["--listen-anywhere"],
        ["--listen", "unix:/x", "-c", "info mem"],
        ["--listen", "nowhere"],
        ["--listen", "tcp:0.0.0.0:0"],
    ],
)
def test_what_is_refused_before_anybody_is_attached_to(words: list[str]) -> None:
    result = CliRunner().invoke(program, ["monitor", "--file", "/nonexistent", *words], standalone_mode=False)
    assert result.exception is not None
    assert getattr(result.exception, "exit_code", None) == 2


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, argv: list[str], environment: dict[str, str]) -> None:
        self.fd, other = pty.openpty()
        self.process = subprocess.Popen(
            argv,
            stdin=other,
            stdout=other,
            stderr=other,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # Ctrl-C is a signal only of one's own
        )
        os.close(other)
        self.seen = b""

    def wait_for(self, text: bytes) -> bytes:
        """All that was printed up to ``text``, which is taken off."""
        assert self.comes(text, PATIENCE), self.seen
        before, _, self.seen = self.seen.partition(text)
        return before

    def comes(self, text: bytes, seconds: float) -> bool:
        """``text`` is printed in time."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.fd], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return False
            try:
                piece = os.read(self.fd, 4096)
            except OSError:  # EIO: the other side is closed
                piece = b""
            assert piece, self.seen
            self.seen += piece
        return True

    def interrupt(self) -> None:
        """Ctrl-C, until there is a new prompt: one that comes between prompt and line editor waits for the next key."""
        for _ in range(int(PATIENCE)):
            self.type(b"\x03")
            if self.comes(b"(sevkvm) ", 1.0):
                break
        self.wait_for(b"(sevkvm) ")

    def type(self, text: bytes) -> None:
        os.write(self.fd, text)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)
        os.close(self.fd)


def test_the_console(dump: str, tmp_path: Path) -> None:
    pytest.importorskip("readline")
    argv = [sys.executable, "-m", "sevkvm", "monitor", "--file", dump]
    environment = SUBPROCESS_ENVIRONMENT | {
        "XDG_STATE_HOME": str(tmp_path),
        "TERM": "dumb",
        "INPUTRC": "/dev/null",
    }
    terminal = Terminal(argv, environment)
    try:
        terminal.wait_for(b"(sevkvm) ")
        terminal.type(b"print 20+22\n")
        terminal.wait_for(b"0x2a\r\n")
        terminal.wait_for(b"(sevkvm) ")
        terminal.type(b"print $rfl\t\n")  # completed to $rflags
        terminal.wait_for(b"$rflags")
        terminal.wait_for(b"(sevkvm) ")
        for _ in range(3):
            terminal.type(b"prin")
            terminal.wait_for(b"prin")
            terminal.interrupt()  # drops the line
        terminal.type(b"quit\n")
        assert terminal.process.wait(PATIENCE) == 0
    finally:
        terminal.close()
    history = tmp_path / "sevkvm" / "monitor_history"
    assert history.read_text().splitlines()[:2] == ["print 20+22", "print $rflags"]
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_a_signal_ends_the_console(dump: str) -> None:
    terminal = Terminal(
        [sys.executable, "-m", "sevkvm", "monitor", "--file", dump],
        SUBPROCESS_ENVIRONMENT | {"HOME": "/nonexistent"},
    )
    try:
        terminal.wait_for(b"(sevkvm) ")
        terminal.interrupt()
        terminal.process.terminate()
        assert terminal.process.wait(PATIENCE) == 143
    finally:
        terminal.close()


def test_a_dump_can_be_served_too(dump: str, tmp_path: Path) -> None:
    path = tmp_path / "sock"
    argv = [sys.executable, "-m", "sevkvm", "monitor", "--file", dump, "--hmp", "--listen", f"unix:{path}"]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, env=SUBPROCESS_ENVIRONMENT)
    try:
        assert process.stderr
        assert b"listening on" in process.stderr.readline()
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(str(path))
            client.sendall(b"print 6*7\nquit\n")
            said = b""
            while piece := client.recv(4096):
                said += piece
        assert said.endswith(b"(qemu) 0x2a\r\n(qemu) ")
    finally:
        process.kill()
        process.wait(PATIENCE)
        assert process.stderr
        process.stderr.close()
