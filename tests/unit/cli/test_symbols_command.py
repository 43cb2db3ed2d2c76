"""``sevkvm symbols`` on a kernel made of bytes: what is printed, what is written, what is refused."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from elftools.elf.elffile import ELFFile

from sevkvm.guest import Guest
from tests.unit.cli.conftest import Attached
from tests.unit.cli.test_json_documented import documented, keys
from tests.unit.test_monitor_symbols import CODE, SYMBOLS, make

Run = Callable[..., Result]


def a_guest(**options: bool) -> Guest:
    guest, holder = make(**options)
    holder.depth = 0  # type: ignore[attr-defined]  # what the fixture looks at in the end
    guest.pid = None  # no VMM's monitor is asked
    return guest


@pytest.fixture(autouse=True)
def kernel(attached: Attached) -> None:
    attached.guest = a_guest()


def test_all_of_them_as_in_system_map(run: Run) -> None:
    done = run("symbols")
    assert done.stdout.splitlines() == [
        f"{gva:016x} {name[0]} {name[1:]}" for name, gva in sorted(SYMBOLS, key=_gva)
    ]
    assert f"{len(SYMBOLS)} symbols of Linux 6.1.0-fake, read with " in done.stderr
    assert " firmware commands" in done.stderr
    assert done.exit_code == 0


def _gva(symbol: tuple[str, int]) -> int:
    return symbol[1]


def test_names_and_addresses(run: Run) -> None:
    done = run("symbols", "copy", hex(CODE + 0x17), "percpu")
    assert done.stdout.splitlines() == [
        f"{CODE + 0x50:#x}: copy",
        f"{CODE + 0x60:#x}: copy",
        f"{CODE + 0x17:#x}: do_idle+0x17",
        "0x0000000000001000: percpu",
    ]
    assert done.exit_code == 0


def test_what_is_unknown_is_told_and_the_rest_is_answered(run: Run) -> None:
    done = run("symbols", "nobody\x1b[2J", "0x10", "do_idle")
    assert done.stdout == f"{CODE:#x}: do_idle\n"
    assert "sevkvm: nobody\\x1b[2J is no symbol of the kernel" in done.stderr
    assert "0x10 is not in the kernel's image" in done.stderr
    assert done.exit_code == 1


@pytest.mark.parametrize("words", [(), ("copy", hex(CODE + 2)), ("nobody",)])
def test_json_has_the_keys_that_the_page_names(run: Run, words: tuple[str, ...]) -> None:
    done = run("symbols", "--json", *words)
    answer = json.loads(done.stdout)
    assert keys(answer) <= documented("symbols")
    assert len(answer) == {(): len(SYMBOLS), ("nobody",): 0}.get(words, 3)
    if len(words) == 2:
        assert answer[2] == {"gva": hex(CODE + 2), "name": "do_idle", "offset": 2, "letter": "t"}


def test_a_file_for_gdb(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "kernel.sym"
    os.umask(0o022)
    done = run("symbols", "-o", str(path))
    assert (done.stdout, done.exit_code) == ("", 0)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        assert table.get_symbol_by_name("do_idle")[0]["st_value"] == CODE
    assert run("symbols", "-o", str(path)).exit_code == 0
    path.write_bytes(b"precious")
    assert run("symbols", "-o", str(path)).exit_code == 2
    assert path.read_bytes() == b"precious"
    assert run("symbols", "-o", str(path), "--force").exit_code == 0
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_left_of_a_file_that_cannot_be_written(
    run: Run, tmp_path: Path, attached: Attached
) -> None:
    done = run("symbols", "-o", str(tmp_path / "nowhere" / "kernel.sym"))
    assert done.exit_code == 2
    assert not attached.left, "refused before anybody is attached to"
    attached.guest = a_guest(known=False)
    done = run("symbols", "-o", str(tmp_path / "kernel.sym"))
    assert done.exit_code == 1
    assert "before 6.0" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_says_what_to_do(run: Run) -> None:
    done = run("symbols", "-o", "/dev/full")
    assert done.exit_code == 1
    assert "/dev/full: no space left" in done.stderr
    assert "hint: it takes 848 bytes: name a file where there is room" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("-o", "x", "name"),
        ("-o", "x", "--json"),
        ("--force",),
        ("0xnothing",),
        ("12345678901234567890123",),
    ],
)
def test_wrong_usage(run: Run, words: tuple[str, ...], attached: Attached) -> None:
    assert run("symbols", *words).exit_code == 2
    assert run("gdbserver", "--symbols", "-").exit_code == 2
    assert not attached.left


def test_the_monitor_takes_them_or_refuses(run: Run, attached: Attached) -> None:
    done = run("monitor", "--symbols", "-c", "print do_idle", "-c", f"sym {CODE + 1}")
    assert done.stdout == f"{CODE:#x}\n{CODE + 1:#x}: do_idle+0x1\n"
    assert done.stderr.count("symbols of Linux") == 1
    assert run("monitor", "--symbols", "--listen", "unix:x").exit_code == 2
    attached.guest = a_guest(known=False)
    done = run("monitor", "--symbols", "-c", "print 1")
    assert (done.stdout, done.exit_code) == ("", 1)
    assert "hint: " in done.stderr
