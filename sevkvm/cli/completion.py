"""``sevkvm completion``: the script that teaches a shell sevkvm's commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from sevkvm.cli.command import command as sevkvm_command
from sevkvm.errors import UsageError


@sevkvm_command(
    "completion",
    examples="""
    # try it in this shell
    eval "$(sevkvm completion bash)"
    # keep it
    sevkvm completion bash > ~/.local/share/bash-completion/completions/sevkvm
    sevkvm completion fish > ~/.config/fish/completions/sevkvm.fish
    """,
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script of a shell.

    It completes commands, options, file names, and after --pid the processes that run a VM.
    """
    from sevkvm.cli.program import program

    completion_class = get_completion_class(shell)
    if completion_class is None:
        raise UsageError(f"this click cannot complete for {shell}")
    # source() would first run bash to learn its version; the script alone is enough.
    completion = completion_class(program, {}, "sevkvm", "_SEVKVM_COMPLETE")
    click.echo(completion.source_template % completion.source_vars())
