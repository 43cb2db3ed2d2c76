"""The program as a whole: its manual page, its commands, how little it imports."""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from sevkvm import __version__
from sevkvm.cli.program import program
from sevkvm.cli.table import COMMANDS

HEAVY = ("rich", "qemu", "asyncio", "cffi", "_cffi_backend", "json", "sevkvm._native", "sevkvm.attach")


def modules_after(*args):
    """Names of the modules that ``sevkvm ARGS`` has imported when it ends."""
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('MODULES', *sys.modules))\n"
        f"sys.argv = ['sevkvm', *{args!r}]\n"
        "from sevkvm.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    return set(done.stdout.rsplit("MODULES ", 1)[1].split())


@pytest.mark.parametrize("args", [("--help",), ("--version",), ("completion", "bash"), ("nonsense",)])
def test_nothing_heavy_is_imported_for_help(args):
    loaded = modules_after(*args)
    assert "sevkvm.cli.program" in loaded
    assert {name for name in HEAVY if name in loaded} == set()


def test_help_imports_no_command():
    loaded = modules_after("--help")
    assert {entry.module for entry in COMMANDS.values() if f"sevkvm.cli.{entry.module}" in loaded} == set()


def test_the_manual_page_has_every_part():
    text = CliRunner().invoke(program, ["--help"]).stdout
    for heading in ("Exit status:", "Examples:", "Environment:", "Files:", "Numbers:", "Shell completion:"):
        assert heading in text
    for name, entry in COMMANDS.items():
        assert f"  {name} " in text
        assert entry.section in text
    assert "_SEVKVM_COMPLETE=bash_source" in text


def test_no_line_of_the_manual_page_is_wider_than_a_terminal():
    text = CliRunner().invoke(program, ["--help"]).stdout
    assert [line for line in text.splitlines() if len(line) > 80] == []


def test_without_arguments_it_shows_the_manual_page_as_an_error():
    result = CliRunner().invoke(program, [])
    assert result.exit_code == 2
    assert "Exit status:" in result.output


def test_version():
    result = CliRunner().invoke(program, ["--version"])
    assert result.stdout == f"sevkvm {__version__}\n"
    assert result.exit_code == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_with_an_example(name):
    result = CliRunner().invoke(program, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "Examples:" in result.stdout
    assert f"sevkvm {name}" in result.stdout.split("Examples:")[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_leads_to_a_command(name):
    assert isinstance(program.get_command(click.Context(program), name), click.Command)
    assert COMMANDS[name].help[0].islower()
    assert not COMMANDS[name].help.endswith(".")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell):
    result = CliRunner().invoke(program, ["completion", shell])
    assert result.exit_code == 0
    assert f"_SEVKVM_COMPLETE={shell}_complete" in result.stdout


def test_completion_knows_the_commands():
    done = subprocess.run(
        [sys.executable, "-m", "sevkvm"],
        env={"_SEVKVM_COMPLETE": "bash_complete", "COMP_WORDS": "sevkvm comp", "COMP_CWORD": "1"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "plain,completion" in done.stdout
