"""The interactive side of ``sevkvm monitor``: a prompt with history and completion, from Python's own readline.

readline is in the standard library: prompt_toolkit would be one more dependency for colours that nobody asked for.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from signal import SIGINT
from typing import TYPE_CHECKING, Any, Final

from sevkvm import __version__
from sevkvm.cli.signals import Interrupted, rearm

if TYPE_CHECKING:
    from sevkvm.monitor.monitor import Monitor

PROMPT: Final = "(sevkvm) "
_HISTORY_LINES: Final = 1000


def converse(monitor: Monitor) -> None:
    """Until ``quit`` or the end of the input. Ctrl-C drops the line that is typed; while a command works it ends all.

    A command cut short may leave a request on its way in the VMM: only leaving the VMM undoes that.
    """
    interactive = sys.stdin.isatty()
    readline = _prepared(monitor) if interactive else None
    if interactive:
        sys.stdout.write(f"sevkvm {__version__} monitor - type 'help' for more information\n")
    try:
        while not monitor.over:
            line = _typed_line() if interactive else _next_line()
            if line is None:
                break
            sys.stdout.write(monitor.execute(line))
            sys.stdout.flush()
    finally:
        if readline is not None:
            _keep_history(readline)


def _typed_line() -> str | None:
    """None at the end of the input (Ctrl-D)."""
    try:
        return input(PROMPT)
    except EOFError:
        sys.stdout.write("\n")
        return None
    except Interrupted as signal:
        if signal.signum != SIGINT:
            raise
        rearm()
        sys.stdout.write("\n")
        return ""


def _next_line() -> str | None:
    line = sys.stdin.readline(1 << 16)
    return line.rstrip("\n") if line else None


def history_path() -> Path:
    """In the user's state directory (XDG base directory specification)."""
    state = os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
    return Path(state) / "sevkvm" / "monitor_history"


def _prepared(monitor: Monitor) -> Any:
    """The readline module, set up; None where Python was built without it."""
    try:
        import readline
    except ImportError:
        return None
    from sevkvm.monitor.completion import candidates

    def complete(text: str, number: int) -> str | None:
        begun = readline.get_line_buffer()[: readline.get_begidx()]
        found = candidates(begun, text, monitor.names, symbolic=monitor.symbolic)
        return found[number] if number < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" \t\n+-*/%&|^~()")
    readline.parse_and_bind("tab: complete")
    with suppress(OSError):
        readline.read_history_file(history_path())
    readline.set_history_length(_HISTORY_LINES)
    return readline


def _keep_history(readline: Any) -> None:
    """Addresses of a guest are nobody else's business: mode 0600."""
    path = history_path()
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        readline.write_history_file(path)
