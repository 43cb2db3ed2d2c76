"""The shape of a command's help: description, its options by kind, examples."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import click


class SectionOption(click.Option):
    """An option that ``--help`` lists under a heading of its own."""

    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class Command(click.Command):
    """A command whose help ends in examples (shell lines, ``#`` comments between them)."""

    def __init__(self, *args: Any, examples: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = inspect.cleandoc(examples)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The command's own options first, then one block for each section."""
        blocks: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                blocks.setdefault(getattr(param, "section", "Options"), []).append(record)
        for heading, records in blocks.items():
            with formatter.section(heading):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Examples as they are written, never re-wrapped."""
        super().format_epilog(ctx, formatter)
        write_verbatim(formatter, "Examples", self.examples)


def write_verbatim(formatter: click.HelpFormatter, heading: str, text: str) -> None:
    """A block whose lines are kept as they are."""
    with formatter.section(heading):
        for line in text.splitlines():
            formatter.write(f"{'':{formatter.current_indent}}{line}".rstrip() + "\n")


def command(name: str, *, examples: str) -> Callable[[Callable[..., Any]], Command]:
    """``@click.command`` with examples; the function's docstring is the description."""

    def decorate(function: Callable[..., Any]) -> Command:
        return click.command(name, cls=Command, examples=examples)(function)

    return decorate
