"""The progress bar: on a terminal only, and drawn by the thread that works."""

import io
import threading

import pytest

from sevkvm.cli.progress import progress_bar, search_teller, table_teller


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
def on_terminal(monkeypatch):
    """Give the test a terminal for stderr; called in its body, where pytest has put its own stderr in place."""

    def replace():
        terminal = Terminal()
        monkeypatch.setattr("sys.stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "100")
        return terminal

    return replace


def test_it_shows_how_much_how_fast_and_what_is_left(on_terminal):
    terminal = on_terminal()
    threads = threading.active_count()
    with progress_bar("dumping") as progress:
        progress(1 << 20, 4 << 20)
        progress(4 << 20, 4 << 20)
        assert threading.active_count() == threads
    shown = terminal.getvalue()
    assert "dumping" in shown
    assert "4.0/4.0 MiB" in shown
    assert "/s" in shown
    assert "0:00:00" in shown


def fail_half_way():
    with progress_bar("dumping") as progress:
        progress(1, 2)
        raise OSError("disk full")


def test_an_error_leaves_the_terminal_as_it_was(on_terminal):
    terminal = on_terminal()
    with pytest.raises(OSError, match="disk full"):
        fail_half_way()
    shown = terminal.getvalue()
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor
    assert shown.rstrip().endswith("\x1b[2K")  # the bar's line is erased


def test_a_short_search_says_nothing_and_a_long_one_now_and_then():
    said, now = [], [100.0]
    advance = search_teller(said.append, lambda: now[0])
    for second in range(12):
        now[0] = 100.0 + second
        advance(1024 * (second + 1), 1 << 20)
    assert said == [
        "searching guest memory for its kernel: 24 MiB of at most 4096 MiB",
        "searching guest memory for its kernel: 44 MiB of at most 4096 MiB",
    ]


def test_reading_many_tables_says_so_now_and_then():
    said, now = [], [0.0]
    advance = table_teller(said.append, lambda: now[0])
    for second in range(7):
        now[0] = float(second)
        advance(1000 * second)
    assert said == ["reading page tables: 5000 so far"]
