"""The progress bar: on a terminal only, and drawn by the thread that works."""

import io
import threading

import pytest

from sevkvm.cli.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_there_is_none_without_a_terminal(monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with progress_bar("dumping") as progress:
        assert progress is None
    monkeypatch.setattr("sys.stderr", None)
    with progress_bar("dumping") as progress:
        assert progress is None


@pytest.fixture
def terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    return terminal


def test_it_shows_how_much_how_fast_and_what_is_left(terminal):
    threads = threading.active_count()
    with progress_bar("dumping") as progress:
        progress(1 << 20, 4 << 20)
        progress(4 << 20, 4 << 20)
        assert threading.active_count() == threads
    shown = terminal.getvalue()
    assert "dumping" in shown
    assert "4.2/4.2 MB" in shown or "4.0/4.0 MiB" in shown
    assert "0:00:00" in shown


def test_an_error_leaves_the_terminal_as_it_was(terminal):
    with pytest.raises(OSError, match="disk full"), progress_bar("dumping") as progress:
        progress(1, 2)
        raise OSError("disk full")
    assert terminal.getvalue().rstrip().endswith("\x1b[2K")  # the bar's line is erased
    assert terminal.getvalue().count("\x1b[?25l") == terminal.getvalue().count("\x1b[?25h")
