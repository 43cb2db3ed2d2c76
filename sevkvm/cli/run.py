"""From what a command raised to what the user reads and the shell gets: the one place for both."""

from __future__ import annotations

import errno
import os
import select
import sys
from collections.abc import Callable
from contextlib import suppress

import click

from sevkvm.cli.render import printable
from sevkvm.cli.signals import Interrupted
from sevkvm.errors import EXIT_FAILURE, SevKvmError


class PipeBroke(Exception):
    """An EPIPE on its way past click, which would take every one for a closed stdout."""


def say(message: str) -> None:
    """Talk to the user: one message on stderr; a stderr that is gone is nobody's problem."""
    with suppress(OSError):
        click.echo(printable(f"sevkvm: {message}"), err=True)


def warn(message: str) -> None:
    """A warning on stderr."""
    say(f"warning: {message}")


def _complain(message: str, hint: str | None = None, *, word: str = "error") -> None:
    say(f"{word}: {message}")
    if hint:
        with suppress(OSError):
            click.echo(printable(f"hint: {hint}"), err=True)


def _show_trace() -> None:
    if os.environ.get("SEVKVM_DEBUG", "") not in ("", "0"):
        import traceback

        traceback.print_exc()


def _reader_left() -> bool:
    """Has whoever read our stdout closed the pipe?"""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError, AttributeError):
        return False


def _discard_stdout() -> None:
    """What is still buffered would be written, and fail, when the interpreter shuts down."""
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def let_through_click(call: Callable[[], object]) -> None:
    """Run a command and flush its output, so that a full disk or a closed pipe is seen while we can say so."""
    try:
        call()
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        if error.errno == errno.EPIPE and not isinstance(error, SevKvmError):
            raise PipeBroke from error
        raise


def exit_status_of(call: Callable[[], object]) -> int:
    """Run the program; print what went wrong on stderr; return the process's exit status (errors.py).

    The call returns None or click's exit code. Nothing but SystemExit leaves this function.
    """
    try:
        result = call()
    except SevKvmError as error:
        _show_trace()
        _complain(error.message, error.help)
        return error.exit_code
    except click.ClickException as error:
        path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else None
        _complain(error.format_message(), f"see `{path} --help`" if path else None)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort) as error:
        # click turns a KeyboardInterrupt into an Abort that it caused.
        _show_trace()
        cause = error if isinstance(error, Interrupted) else error.__cause__
        if isinstance(cause, Interrupted):
            say(f"stopped by {cause}")
            return cause.exit_status
        return EXIT_FAILURE
    except PipeBroke as error:
        _show_trace()
        left = _reader_left()
        _discard_stdout()
        if not left:
            _complain(f"{error.__cause__}")
        return EXIT_FAILURE
    except OSError as error:
        _show_trace()
        _complain(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else f"{error}")
        if error.errno in (errno.ENOSPC, errno.EIO, errno.EFBIG):
            _discard_stdout()  # if it was stdout, a second try at shutdown would print a traceback
        return EXIT_FAILURE
    except Exception as error:
        _show_trace()
        _complain(
            f"{type(error).__name__}: {error}",
            "this is a bug in sevkvm; SEVKVM_DEBUG=1 shows where",
            word="internal error",
        )
        return EXIT_FAILURE
    return result if isinstance(result, int) else 0
