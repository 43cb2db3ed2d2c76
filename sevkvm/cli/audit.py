"""``sevkvm audit``: what a guest's kernel should not have mapped so."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from sevkvm.cli.command import command as sevkvm_command
from sevkvm.cli.options import GuestSession, guest_options, json_option
from sevkvm.cli.values import number
from sevkvm.errors import EXIT_FAILURE, EXIT_HOLES

if TYPE_CHECKING:
    from sevkvm.audit.rules import Rule

_MOST_FINDINGS = 1 << 16
_STDOUT = "-"


@sevkvm_command(
    "audit",
    examples="""
    sevkvm audit --pid 4242
    # a gate: exit status 1 if there is an error or a warning
    sevkvm audit --pid 4242 --fail-on warning --json > audit.json
    # for whatever collects SARIF
    sevkvm audit --pid 4242 --sarif audit.sarif
    # of a dump that keeps the C-bit (dump --cbit keep)
    sevkvm audit --file guest.core
    # one rule alone; all but some
    sevkvm audit --pid 4242 --rule kernel-writable-executable
    sevkvm audit --pid 4242 --ignore SEVKVM011 --ignore SEVKVM012
    # every rule, what it means and what to do
    sevkvm audit --rules
    """,
)
@click.option("--rules", "list_rules", is_flag=True, help="Print every rule, and look at no guest.")
@click.option("--rule", "only", multiple=True, metavar="ID", help="Ask this rule (id or name); repeatable.")
@click.option("--ignore", multiple=True, metavar="ID", help="Do not ask this rule; repeatable.")
@click.option(
    "--fail-on",
    type=click.Choice(["error", "warning", "note"]),
    help="Exit with 1 if there is a finding so severe, or worse.",
)
@click.option("--sarif", "sarif_name", metavar="FILE", help="Write SARIF 2.1.0; - is stdout.")
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@click.option(
    "--max-findings",
    "most",
    type=number(1, _MOST_FINDINGS),
    default=32,
    show_default=True,
    metavar="N",
    help="Findings listed of each rule and severity; all are counted.",
)
@click.option("--no-symbols", is_flag=True, help="Do not search Linux's own symbols for its swiotlb.")
@guest_options
@json_option
def command(
    session: GuestSession,
    list_rules: bool,
    only: tuple[str, ...],
    ignore: tuple[str, ...],
    fail_on: str | None,
    sarif_name: str | None,
    force: bool,
    most: int,
    no_symbols: bool,
    as_json: bool,
) -> None:
    """Judge a guest by its own page tables and control registers.

    Looks for kernel memory that is writable and executable or that user mode can reach, for shared pages that hold page
    tables or kernel text, memory mapped both private and shared, private mappings of devices, corrupt entries, and
    protections that are off; and tells how much is shared. Each finding comes with the addresses and the entries that
    show it. Rules that cannot be asked (a guest without encryption has no C-bit) are listed with the reason.

    The tables are those of every vCPU, or of --cr3; of a Linux guest whose registers are encrypted (SEV-ES) the
    kernel's own are found. The guest stands still while they are read.

    Exit status 0: all was looked at, and nothing reaches --fail-on. 1: something does. 6: nothing does, but some of the
    tables could not be looked at.
    """
    from sevkvm.audit.rules import Severity

    context = click.get_current_context()
    if sarif_name == _STDOUT and as_json:
        raise click.UsageError("stdout can take one answer only", context)
    rules = _chosen(only, ignore)
    if list_rules:
        _print_rules(rules, as_json=as_json)
        return
    from sevkvm.audit import Wanted, audit
    from sevkvm.cli.audit_report import print_report, report_json
    from sevkvm.cli.render import print_json
    from sevkvm.dump.output import prepare

    target = None
    if sarif_name not in (None, _STDOUT):
        target = prepare(sarif_name, force=force, check_space=False)
    with session.open() as guest:
        report = audit(guest, Wanted(rules, most, not no_symbols))
    if sarif_name is not None:
        from sevkvm.audit.sarif import sarif

        log = sarif(report, guest.name, rules)
        if target is None:
            print_json(log)
        else:
            data = (json.dumps(log, indent=2) + "\n").encode()
            with target.open(len(data)) as sink:
                sink.write(data)
    if as_json:
        print_json(report_json(guest, report))
    elif sarif_name != _STDOUT:
        print_report(guest, report)
    if fail_on is not None and report.reaches(Severity(fail_on)):
        context.exit(EXIT_FAILURE)
    if report.cut:
        context.exit(EXIT_HOLES)


def _chosen(only: tuple[str, ...], ignore: tuple[str, ...]) -> tuple[Rule, ...]:
    """The rules that are asked; a usage error for a name that is none, and for none left."""
    from sevkvm.audit.rules import RULES

    names = {name.lower(): rule for rule in RULES for name in (rule.id, rule.name)}
    for name in (*only, *ignore):
        if name.lower() not in names:
            raise click.UsageError(
                f"there is no rule '{name}': see `sevkvm audit --rules`", click.get_current_context()
            )
    wanted = {names[name.lower()] for name in only} or set(RULES)
    wanted -= {names[name.lower()] for name in ignore}
    if not wanted:
        raise click.UsageError("no rule is left to ask", click.get_current_context())
    return tuple(rule for rule in RULES if rule in wanted)


def _print_rules(rules: tuple[Rule, ...], *, as_json: bool) -> None:
    from sevkvm.cli.audit_report import print_rules, rules_json
    from sevkvm.cli.render import print_json

    if as_json:
        print_json(rules_json(rules))
    else:
        print_rules(rules)
