"""What drgn's own command does with a program: a prompt, a script, a line of code, code from stdin."""

from __future__ import annotations

import errno
import pkgutil
import runpy
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from sevkvm.errors import EXIT_FAILURE, SevKvmError

if TYPE_CHECKING:
    from types import FrameType

    import drgn

_PROMPT_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)
_OURS: Final = str(Path(__file__))


class Code(NamedTuple):
    """Python source, how tracebacks call it, and what its ``sys.argv`` begins with."""

    source: str
    name: str
    argument: str


def told(code: str | None, words: Sequence[str]) -> Code | None:
    """The code of ``-e``, or of stdin where that is no terminal and no script was named; None otherwise.

    To be asked before a guest is held: whoever writes to our stdin may take his time.
    """
    if code is not None:
        return Code(code, "<string>", "-e")
    return None if words or sys.stdin.isatty() else Code(sys.stdin.read(), "<stdin>", "")


def run(
    program: drgn.Program, code: Code | None, words: Sequence[str], extras: Mapping[str, Any], banner: str
) -> None:
    """``code``, or the script that ``words`` begin with, or a prompt; ``extras`` are more global names.

    What the user's code raises is printed with its traceback, as Python does, and becomes SystemExit.
    """
    from drgn import set_default_prog
    from drgn.cli import default_globals

    if code is None and not words:
        _converse(program, extras, banner)
        return
    set_default_prog(program)
    if code is None:
        with _script_arguments(words):
            _guarded(lambda: runpy.run_path(words[0], {"prog": program, **extras}, "__main__"))
        return
    names = {**default_globals(program), **extras}
    with _script_arguments([code.argument, *words]):
        _guarded(lambda: exec(compile(code.source, code.name, "exec"), names))


def version() -> str:
    """drgn's own line about itself."""
    from drgn.cli import version_header

    return str(version_header())


@contextmanager
def _script_arguments(words: Sequence[str]) -> Iterator[None]:
    """``sys.argv`` and the place that its modules come from."""
    argv, path = sys.argv, list(sys.path)
    sys.argv = list(words)
    if not words[0].startswith("-") and words[0] and pkgutil.get_importer(words[0]) is None:
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
    else:
        sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path


def _guarded(call: Callable[[], object]) -> None:
    """Errors of the user's code are the user's: a traceback from there on, and exit status 1."""
    try:
        call()
    except SevKvmError:
        raise  # the guest, or the way to it
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        _show(error)
    except Exception as error:
        _show(error)


def _show(error: Exception) -> NoReturn:
    frames = error.__traceback__
    while frames is not None and _is_machinery(frames.tb_frame):
        frames = frames.tb_next
    sys.stdout.flush()
    traceback.print_exception(type(error), error, frames)
    raise SystemExit(EXIT_FAILURE)


def _is_machinery(frame: FrameType) -> bool:
    return frame.f_code.co_filename in (_OURS, runpy.__file__) or frame.f_code.co_filename.startswith(
        "<frozen"
    )


def _converse(program: drgn.Program, extras: Mapping[str, Any], banner: str) -> None:
    from drgn.cli import run_interactive

    print(version(), file=sys.stderr)
    with _prompt_signals():
        run_interactive(
            program,
            banner_func=lambda text: f"{text}\n{banner}",
            globals_func=lambda names: {**names, **extras},
        )


@contextmanager
def _prompt_signals() -> Iterator[None]:
    """At the prompt Ctrl-C ends what is running and no more; a prompt takes any other KeyboardInterrupt for Ctrl-C."""

    def leave(signum: int, frame: FrameType | None) -> None:
        for other in _PROMPT_SIGNALS:
            signal.signal(other, signal.SIG_IGN)
        raise SystemExit(128 + signum)

    before = {signum: signal.getsignal(signum) for signum in (*_PROMPT_SIGNALS, signal.SIGINT)}
    for signum, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else leave)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
