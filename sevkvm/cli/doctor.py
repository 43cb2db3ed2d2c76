"""``sevkvm doctor``: can this host, and this guest, be looked into, and if not, what to do?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from sevkvm.cli.command import command as sevkvm_command
from sevkvm.cli.options import GuestSession, guest_options, json_option
from sevkvm.cli.render import print_json, printable

if TYPE_CHECKING:
    from sevkvm.doctor import Finding

_NAMING = ("pid", "vm_fd", "qmp", "libvirt", "slots", "cbit_pos")


@sevkvm_command(
    "doctor",
    examples="""
    sevkvm doctor
    # this guest too: may it be debugged, which way in is open?
    sevkvm doctor --pid 4242
    # go in once, and tell what it took
    sevkvm doctor --pid 4242 --attach
    # what fails, and what to do about it
    sevkvm doctor --json | jq '.. | objects | select(.result == "fail" and .help)'
    """,
)
@guest_options
@click.option("--attach", "attach_once", is_flag=True, help="Attach to the guest once, and measure it.")
@json_option
def command(session: GuestSession, attach_once: bool, as_json: bool) -> None:
    """Check every precondition: processor, kernel, devices, rights, and those of a guest.

    Prints a tree of PASS, FAIL, WARN and SKIP, with what to do about each. With --pid or another option that names a
    guest, that guest too; it is neither stopped nor touched unless --attach is given.

    The exit status is 0 if nothing fails, 5 if something fails that nobody can change (the processor, the guest's
    policy), else 1. With a guest named, it is about that guest alone.
    """
    from sevkvm import doctor
    from sevkvm.attach import AttachOptions

    context = click.get_current_context()
    if session.file is not None:
        raise click.UsageError("doctor looks at running guests, not at a dump", context)
    named = any(session.arguments[name] for name in _NAMING) or session.arguments["vm_fd"] == 0
    if attach_once and not named:
        raise click.UsageError("--attach needs --pid, or another option that names a guest", context)
    machine = doctor.Machine()
    findings = doctor.examine_host(machine)
    status = doctor.exit_status(findings)
    if named:
        opener = (lambda: session.open(need_debug=False)) if attach_once else None
        guest = doctor.examine_guest(machine, AttachOptions(**session.arguments), opener)
        findings = [*findings, guest]
        status = doctor.exit_status([guest])
    if as_json:
        print_json({"exit_status": status, "checks": [_as_json(each) for each in findings]})
    else:
        click.echo("\n".join(line for each in findings for line in lines(each)))
    context.exit(status)


def lines(finding: Finding, depth: int = 0) -> Iterator[str]:
    """The finding and all below it, as the terminal shows them."""
    detail = f": {finding.detail}" if finding.detail else ""
    indent = "  " * depth
    yield printable(f"[ {finding.outcome.name} ] {indent}- {finding.name}{detail}")
    if finding.help:
        yield printable(f"         {indent}  hint: {finding.help}")
    for child in finding.children:
        yield from lines(child, depth + 1)


def _as_json(finding: Finding) -> dict[str, Any]:
    return {
        "name": finding.name,
        "result": finding.outcome.value,
        "detail": finding.detail or None,
        "help": finding.help,
        "checks": [_as_json(child) for child in finding.children],
    }
