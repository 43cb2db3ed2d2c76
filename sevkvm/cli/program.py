"""The program ``sevkvm``: a group that loads its commands when they are used, and its manual page."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import click

from sevkvm import __version__
from sevkvm.cli import manual, run
from sevkvm.cli.command import write_verbatim
from sevkvm.cli.signals import unwinding_signals
from sevkvm.cli.table import COMMANDS


class Program(click.Group):
    """The top-level command."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of one command."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = importlib.import_module(f"sevkvm.cli.{entry.module}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Like click's, but a misspelt name is answered with what it may have meant."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, n=1)
            ctx.fail(f"no command '{args[0]}'" + (f"; did you mean '{near[0]}'?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The manual page; no command is imported for it."""
        formatter.write_text(f"sevkvm {__version__} - {manual.PURPOSE}")
        self.format_usage(ctx, formatter)
        for paragraph in manual.DESCRIPTION:
            formatter.write_paragraph()
            formatter.write_text(paragraph)
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, entry in COMMANDS.items():
            sections.setdefault(entry.section, []).append((name, entry.help))
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)
        with formatter.section("Options"):
            options = (param.get_help_record(ctx) for param in self.get_params(ctx))
            formatter.write_dl([option for option in options if option])
        for heading, rows in manual.LISTS.items():
            with formatter.section(heading):
                formatter.write_dl(rows)
        for heading, text in manual.BLOCKS.items():
            write_verbatim(formatter, heading, text)

    def invoke(self, ctx: click.Context) -> None:
        """Run the chosen command."""
        run.let_through_click(lambda: super(Program, self).invoke(ctx))

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run and exit; errors, signals and exit status are those of :mod:`sevkvm.cli.run`."""

        def call() -> Any:
            return super(Program, self).main(
                args, prog_name or "sevkvm", complete_var, standalone_mode=False, **extra
            )

        if not standalone_mode:
            return call()
        with unwinding_signals():
            status = run.exit_status_of(call)
        sys.exit(status)


@click.group(
    "sevkvm",
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
)
@click.version_option(__version__, "-V", "--version", prog_name="sevkvm", message="%(prog)s %(version)s")
def program() -> None:
    """See :mod:`sevkvm.cli.manual`."""
