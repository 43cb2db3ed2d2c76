"""``sevkvm drgn``: what it refuses before it looks at anybody, and what it says where there is no Linux."""

from __future__ import annotations

import sys

import pytest

from sevkvm import errors


def test_without_drgn_it_says_what_to_install(attached, run, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "drgn", None)
    result = run("drgn", "--pid", "4242", "-e", "1")
    assert result.exit_code == 2
    assert "pip install 'sevkvm[drgn]'" in result.stderr
    assert attached.options is None


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["no-such-script.py"], "no-such-script.py: no such script"),
        (["-s", "no-such-vmlinux"], "no-such-vmlinux"),
        (["--file", "guest.core", "--hold", "1"], "--file and --hold exclude each other"),
        (["--hold", "0"], "--hold"),
        (["--max-age", "-1"], "--max-age"),
    ],
)
def test_what_is_refused_before_anybody_is_attached_to(attached, run, args, text) -> None:
    pytest.importorskip("drgn")
    result = run("drgn", *args)
    assert result.exit_code == 2
    assert text in result.stderr
    assert attached.options is None


def test_errors_of_attaching_are_every_commands(attached, run) -> None:
    pytest.importorskip("drgn")
    attached.error = errors.DebugForbidden("no", help="ask the owner")
    assert run("drgn", "--pid", "4242", "-e", "print('not here')").exit_code == 5


def test_a_guest_without_linux(attached, run) -> None:
    pytest.importorskip("drgn")
    result = run("drgn", "--pid", "4242", "-e", "print('not here')")
    assert result.exit_code == 1
    assert "VMCOREINFO" in result.stderr
    assert "--search-limit" in result.stderr
    assert result.stdout == ""
    assert attached.left
