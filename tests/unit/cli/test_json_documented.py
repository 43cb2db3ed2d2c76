"""docs/json.md names every key that a command prints, and no command prints another."""

import json
import re
import types
from pathlib import Path

import pytest

from tests.unit.cli.conftest import BASE

DOCS = Path(__file__).resolve().parents[3] / "docs" / "json.md"


def section(name):
    """The page's section of a command, with ``rN ... rM`` written out."""
    text = DOCS.read_text()
    heading = next(line for line in text.splitlines() if line.startswith("##") and f"`sevkvm {name}`" in line)
    return text.split(heading)[1].split("\n## ")[0]


def documented(name):
    words = set(re.findall(r"`(\w+)`", section(name)))
    return words | {f"r{n}" for n in range(8, 16)} if name == "regs" else words


def keys(answer):
    """All keys, those of nested objects too."""
    if isinstance(answer, list):
        return set().union(*map(keys, answer)) if answer else set()
    if isinstance(answer, dict):
        return set(answer) | keys(list(answer.values()))
    return set()


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("list", ()),
        ("status", ()),
        ("regs", ()),
        ("translate", ("-v", hex(BASE))),
        ("tlb", ()),
        ("mem", ()),
        ("mem --summary", ()),
        ("x", (hex(BASE),)),
        ("xp", ("0x0",)),
        ("pages", ()),
        ("search", ("--max-count", "1", "lazy dog")),
        ("dump", ("--format", "elf", "-o", "out")),
        ("write", (hex(BASE), "--string", "text")),
    ],
)
def test_every_key_is_documented(attached, run, tmp_path, monkeypatch, name, args):
    monkeypatch.chdir(tmp_path)
    fields = ("pid", "vm_fd", "name", "vcpus", "sev", "policy", "debug_allowed", "reason")
    attached.guests = [types.SimpleNamespace(**dict.fromkeys(fields))]
    found = keys(json.loads(run(*name.split(), "--json", *args).stdout))
    assert found
    if name in ("status", "mem"):
        found -= documented({"status": "list", "mem": "tlb"}[name])  # "as above"
    assert found - documented(name) == set()


def test_every_count_is_documented(attached, run):
    stats = json.loads(run("x", "--json", "--stats", hex(BASE)).stderr)["stats"]
    text = DOCS.read_text().split("## `--stats`")[1]
    assert set(stats) - set(re.findall(r"`(\w+)`", text)) == set()
