"""``dump --unmapped`` against a guest whose tables leave some RAM out."""

from __future__ import annotations

import json

import pytest

from sevkvm.lab.tables import TableBuilder
from tests.support.elfcore import core, load
from tests.unit.cli.conftest import CBIT_POS, HIGH_NBYTES, LOW_NBYTES, PAGE, build_ram, make_guest
from tests.unit.cli.test_file_option import notes

LOST_GPA = 0x8000  # its entry is taken out of the tables


@pytest.fixture
def lose_a_page(monkeypatch):
    """No page tables that are built map LOST_GPA."""
    real = TableBuilder.map

    def mapped(self, gva, gpa, **rest):
        if gpa != LOST_GPA:
            real(self, gva, gpa, **rest)

    monkeypatch.setattr(TableBuilder, "map", mapped)


@pytest.mark.parametrize("policy", [0, None], ids=["encrypted", "plain"])
def test_skip_leaves_it_out_and_is_complete(attached, run, tmp_path, lose_a_page, policy):
    attached.guest = make_guest(attached, policy=policy)
    out = tmp_path / "out"
    result = run("dump", "-o", str(out), "--unmapped", "skip", "--json", "--manifest")
    assert result.exit_code == 0, result.stderr
    ram = attached.ram
    answer = json.loads(result.stdout)
    assert {"address": hex(LOST_GPA), "size": PAGE, "reason": "left-out", "zero_filled": False} in answer[
        "holes"
    ]
    assert answer["complete"] is True
    assert answer["copied"] == LOW_NBYTES + HIGH_NBYTES - PAGE
    assert "4 KiB left out that no page table reaches (the file shows zeros there)" in result.stderr
    with out.open("rb") as file:
        data = file.read(LOW_NBYTES)
    assert data == ram[0][:LOST_GPA] + bytes(PAGE) + ram[0][LOST_GPA + PAGE :]
    assert json.loads((tmp_path / "out.json").read_text())["options"]["unmapped"] == "skip"


def test_private_and_shared(attached, run, tmp_path, lose_a_page):
    found = {}
    for unmapped in ("private", "shared"):
        attached.guest = make_guest(attached)
        out = tmp_path / unmapped
        arguments = ("--gpa", f"0:{LOW_NBYTES}", "--unmapped", unmapped)
        assert run("dump", "-o", str(out), *arguments).exit_code == 0
        found[unmapped] = out.read_bytes()
    ram = attached.ram[0]
    assert found["private"] == ram
    assert found["shared"][LOST_GPA : LOST_GPA + PAGE] != ram[LOST_GPA : LOST_GPA + PAGE]  # ciphertext
    assert found["shared"][:LOST_GPA] + found["shared"][LOST_GPA + PAGE :] == (
        ram[:LOST_GPA] + ram[LOST_GPA + PAGE :]
    )


def test_skip_without_page_tables_is_refused(attached, run, tmp_path):
    attached.guest = make_guest(attached, policy=4, no_registers="its registers are encrypted")
    result = run("dump", "-o", str(tmp_path / "out"), "--unmapped", "skip")
    assert result.exit_code == 1
    assert "cannot be told which pages are unmapped: its registers are encrypted" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_skip_of_a_dump(run, tmp_path, lose_a_page):
    """A dump is a guest that stands still: it needs no decrypting, and has page tables."""
    ram, cr3 = build_ram(CBIT_POS)
    source = tmp_path / "guest.core"
    source.write_bytes(core(*(load(gpa, data) for gpa, data in ram.items()), notes=notes(cr3)))
    out = tmp_path / "out"
    arguments = ("--file", str(source), "--cbit-pos", str(CBIT_POS), "--gpa", f"0:{LOW_NBYTES}")
    result = run("dump", "-o", str(out), "--unmapped", "skip", *arguments)
    assert result.exit_code == 0, result.stderr
    assert out.read_bytes() == ram[0][:LOST_GPA] + bytes(PAGE) + ram[0][LOST_GPA + PAGE :]
