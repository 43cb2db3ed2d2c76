"""Which commands can do with a guest that is left alone: what they ask ``attach`` for."""

from __future__ import annotations

import click
import pytest

from sevkvm.attach.options import VIAS, Needs
from sevkvm.cli.program import program

ALL, MEMORY, STATUS = Needs.ALL, Needs.MEMORY, Needs.STATUS


@pytest.mark.parametrize(
    ("words", "needs", "reach"),
    [
        ("status", STATUS, None),
        ("policy decode --pid 4242", STATUS, None),
        ("xp /4xg 0x1000", MEMORY, (0x1000, 0x1020)),
        ("xp /4xg 0xff8", ALL, (0xFF8, 0x1018)),  # two pages: of one moment, if it is to be right
        ("x /4xg 0xffff888000001000", ALL, None),
        ("translate 0xffff888000001000", ALL, None),
        ("regs", ALL, None),
        ("dump -o {}", ALL, None),
        ("dump -o {} --live", ALL, None),  # walks the vCPUs' tables
        ("dump -o {} --live --no-scan", MEMORY, None),
        ("dump -o {} --live --no-scan --gpa 0:64K", MEMORY, (0, 0x10000)),
        ("dump -o {} --live --cr3 0x10000 --gpa 0:64K", MEMORY, None),
        ("dump -o {} --live --no-scan --format lime", MEMORY, None),
        ("dump -o {} --live --no-scan --format elf", ALL, None),
    ],
)
def test_what_a_command_needs(attached, run, tmp_path, words, needs, reach):
    run(*words.format(tmp_path / "out").split())
    assert (attached.needs, attached.reach) == (needs, reach)


def test_status_says_why_it_was_no_mirror(attached, run):
    assert "way in:      deputy: a thread in the VMM, gone again; not a mirror: guest RAM is anonymous" in (
        run("status").stdout
    )


def test_a_dump_has_no_way_in(attached, run):
    result = run("status", "--file", "x", "--via", "mirror")
    assert result.exit_code == 2
    assert "--file and --via exclude each other" in result.stderr


def test_every_way_can_be_named(attached, run):
    for via in VIAS:
        assert run("status", "--via", via).exit_code == 0
        assert attached.options.via == via
    assert run("status").exit_code == 0
    assert attached.options.via is None


def test_whoever_attaches_has_the_option():
    context = click.Context(program)
    options = {
        name: {word for parameter in command.params for word in parameter.opts}
        for name in program.list_commands(context)
        if (command := program.get_command(context, name)) is not None
    }
    attaching = {name for name, words in options.items() if "--vm-fd" in words}
    assert attaching > {"status", "dump", "gdbserver", "monitor", "write", "doctor"}
    assert [name for name in {*attaching, "list"} if "--via" not in options[name]] == []
