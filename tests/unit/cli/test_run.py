"""Errors, signals and pipes: what the user reads and what the shell gets."""

import errno
import signal
import subprocess
import sys
from contextlib import contextmanager

import click
import pytest
from click.testing import CliRunner

from sevkvm import errors
from sevkvm.cli.program import program


@pytest.fixture
def command_that(monkeypatch):
    """Make ``sevkvm boom`` call a function; returns what running it gave."""

    def run(function, *args):
        command = click.Command("boom", callback=function)
        monkeypatch.setattr(type(program), "get_command", lambda self, ctx, name: command)
        monkeypatch.setitem(sys.modules["sevkvm.cli.program"].COMMANDS, "boom", None)
        return CliRunner().invoke(program, ["boom", *args])

    return run


def raising(error):
    def function():
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.SevKvmError("it went wrong", help="do that"), 1),
        (errors.UsageError("it went wrong", help="do that"), 2),
        (errors.AttachError("it went wrong", help="do that"), 3),
        (errors.VmNotFound("it went wrong", help="do that"), 4),
        (errors.DebugForbidden("it went wrong", help="do that"), 5),
        (errors.PlatformUnsupported("it went wrong", help="do that"), 5),
        (errors.TargetGone("it went wrong", help="do that"), 1),
        (errors.TargetTimeout("it went wrong", help="do that"), 1),
        (errors.ProtocolError("it went wrong", help="do that"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_error_has_its_message_its_hint_and_its_status(command_that, error, status):
    result = command_that(raising(error))
    assert result.exit_code == status
    assert result.stderr == "sevkvm: error: it went wrong\nhint: do that\n"
    assert result.stdout == ""


def test_an_error_without_help_has_no_hint(command_that):
    result = command_that(raising(errors.MemoryFault("gpa", 0x1000, reason="no RAM")))
    assert result.exit_code == 1
    assert result.stderr == "sevkvm: error: cannot access gpa 0x1000: no RAM\n"


def test_what_a_vmm_said_does_not_steer_the_terminal(command_that):
    result = command_that(raising(errors.ProtocolError("it said \x1b[2J\nsevkvm: all is well", help="\x07")))
    assert result.stderr == "sevkvm: error: it said \\x1b[2J\\x0asevkvm: all is well\nhint: \\x07\n"


def test_an_error_of_the_system_names_the_file(command_that):
    result = command_that(
        raising(FileNotFoundError(errno.ENOENT, "No such file or directory", "/no/dir/out"))
    )
    assert result.exit_code == 1
    assert result.stderr == "sevkvm: error: /no/dir/out: No such file or directory\n"


def test_a_bug_says_that_it_is_one(command_that):
    result = command_that(raising(KeyError("x")))
    assert result.exit_code == 1
    assert result.stderr.startswith("sevkvm: internal error: KeyError: 'x'\n")
    assert "SEVKVM_DEBUG=1" in result.stderr
    assert "Traceback" not in result.stderr


def test_debug_shows_the_traceback(command_that, monkeypatch):
    monkeypatch.setenv("SEVKVM_DEBUG", "1")
    result = command_that(raising(errors.AttachError("no")))
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("sevkvm: error: no\n")
    assert result.exit_code == 3


def test_a_command_may_end_with_a_status_of_its_own(command_that):
    assert command_that(lambda: click.get_current_context().exit(6)).exit_code == 6


def test_a_broken_pipe_that_is_not_stdout_is_told(command_that):
    result = command_that(raising(BrokenPipeError(errno.EPIPE, "Broken pipe")))
    assert result.exit_code == 1
    assert "Broken pipe" in result.stderr


@pytest.mark.parametrize(
    ("args", "told"),
    [(["--bogus"], "--bogus"), (["lits"], "no command 'lits'"), (["completion", "csh"], "csh")],
)
def test_wrong_usage_is_status_2_and_points_at_the_help(args, told):
    result = CliRunner().invoke(program, args)
    assert result.exit_code == 2
    assert result.stderr.startswith("sevkvm: error: ")
    assert told in result.stderr
    assert "--help`" in result.stderr


def test_a_misspelt_command_is_answered_with_the_right_one():
    result = CliRunner().invoke(program, ["completoin"])
    assert "did you mean 'completion'?" in result.stderr


CHILD = """
import signal, sys, time
import click
from sevkvm.cli import main
from sevkvm.cli.program import Program

def work():
    try:
        print("ready", flush=True)
        time.sleep(30)
    finally:
        signal.raise_signal(signal.SIGTERM)  # an impatient user
        print("unwound", flush=True)

sys.modules["sevkvm.cli.program"].COMMANDS["boom"] = None
Program.get_command = lambda self, ctx, name: click.Command("boom", callback=work)
sys.argv = ["sevkvm", "boom"]
main()
"""


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signals_unwind_and_a_second_one_does_not_cut_it_short(signum, status):
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signum)
        out, err = child.communicate(timeout=20)
    assert out == "unwound\n"
    assert child.returncode == status
    assert "Traceback" not in err
    assert f"stopped by {signum.name}" in err


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_does_not_interrupt_leaving_the_vmm(attached, monkeypatch, signum):
    undone = []
    open_guest = sys.modules["sevkvm.attach"].open_guest

    @contextmanager
    def leaving_takes_a_while(*args, **settings):
        with open_guest(*args, **settings) as guest:
            yield guest
        signal.raise_signal(signum)
        signal.raise_signal(signum)
        undone.append(True)

    monkeypatch.setattr(sys.modules["sevkvm.attach"], "open_guest", leaving_takes_a_while)
    result = CliRunner().invoke(program, ["status"])
    assert undone == [True]
    assert result.exit_code == 128 + signum
    assert result.stdout == ""


def sevkvm(*args, **settings):
    return subprocess.Popen([sys.executable, "-m", "sevkvm", *args], stderr=subprocess.PIPE, **settings)


@pytest.mark.parametrize("args", [("--help",), ("completion", "bash")])
def test_a_closed_stdout_is_quiet(args):
    child = sevkvm(*args, stdout=subprocess.PIPE)
    child.stdout.close()
    err = child.stderr.read()
    child.stderr.close()
    assert child.wait(timeout=20) == 1
    assert err == b""


@pytest.mark.parametrize("args", [("--help",), ("completion", "bash")])
def test_a_full_disk_is_told(args):
    with open("/dev/full", "w") as full:
        child = sevkvm(*args, stdout=full)
        _, err = child.communicate(timeout=20)
    assert child.returncode == 1
    assert b"No space left" in err
    assert b"Traceback" not in err
    assert b"Exception ignored" not in err


def test_a_stdout_that_never_was_does_not_matter():
    child = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m sevkvm completion bash >&-"],
        stderr=subprocess.PIPE,
        timeout=20,
        check=False,
    )
    assert child.returncode == 0
    assert child.stderr == b""
