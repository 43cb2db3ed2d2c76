"""``sevkvm policy``: read and write guest policies."""

from __future__ import annotations

import inspect

import click

from sevkvm.cli.command import command as sevkvm_command
from sevkvm.cli.command import write_verbatim
from sevkvm.cli.options import GuestSession, guest_options, json_option
from sevkvm.cli.policy_encode import command as encode
from sevkvm.cli.policy_report import tell
from sevkvm.cli.values import ADDRESS


class _Group(click.Group):
    examples = inspect.cleandoc(
        """
        sevkvm policy decode 0x5
        sevkvm policy decode --pid 4242
        sevkvm policy encode --no-debug --no-key-sharing --es
        """
    )

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Examples as they are written."""
        write_verbatim(formatter, "Examples", self.examples)


@sevkvm_command(
    "decode",
    examples="""
    sevkvm policy decode 0x5
    # the 64 bits of SEV-SNP
    sevkvm policy decode --snp 0x30000
    # what a running guest was launched with, says the firmware
    sevkvm policy decode --pid 4242
    # what a command line asks for, of a guest that need not run, nor be encrypted
    sevkvm policy decode --qemu-args 'sev-guest,id=sev0,cbitpos=51,reduced-phys-bits=1,policy=0x3'
    sevkvm policy decode --pid 4242 --command-line
    # gate on it
    sevkvm policy decode --pid 4242 --strict > /dev/null || echo not fit for production
    """,
)
@click.argument("value", required=False, type=ADDRESS)
@click.option("--snp", is_flag=True, help="VALUE has the layout of SEV-SNP (64 bits).")
@click.option(
    "--qemu-args", metavar="TEXT", help="The value of QEMU's -object, or its command line, to take it from."
)
@click.option("--command-line", is_flag=True, help="Read the command line of --pid only; attach to nothing.")
@click.option("--strict", is_flag=True, help="Exit with 1 for warnings too.")
@guest_options
@json_option
def decode(
    session: GuestSession,
    value: int | None,
    snp: bool,
    qemu_args: str | None,
    command_line: bool,
    strict: bool,
    as_json: bool,
) -> None:
    """Explain every bit of a policy: VALUE, that of a running guest, or that of QEMU's command line.

    Tells what each bit means to the guest's owner and to sevkvm, and warns of contradictions. A running guest's comes
    from the firmware, also where it forbids debugging; a SEV-SNP guest's, which Linux does not tell, from QEMU's
    command line. Exit status: 0; 1 if no guest can be launched with it, or with --strict if there are warnings.
    """
    from sevkvm.cli.policy_source import from_guest, from_process, from_text, from_value

    context = click.get_current_context()
    guest_named = session.file is not None or any(
        session.arguments[name] is not None for name in ("pid", "vm_fd", "qmp", "libvirt")
    )
    if sum((value is not None, qemu_args is not None, guest_named)) > 1:
        raise click.UsageError("VALUE, --qemu-args and a guest exclude each other", context)
    if snp and value is None:
        raise click.UsageError("--snp says how to read VALUE", context)
    pid = session.arguments["pid"]
    if command_line and pid is None:
        raise click.UsageError("--command-line needs --pid", context)
    if session.file is not None:
        raise click.UsageError("a dump does not tell the policy of its guest", context)
    if value is not None:
        found = from_value(value, snp=snp)
    elif qemu_args is not None:
        found = from_text(qemu_args)
    else:
        found = from_process(pid) if command_line else from_guest(session)
    tell(found, as_json=as_json, strict=strict)


@click.group("policy", cls=_Group)
def command() -> None:
    """Read and write the policies of SEV, SEV-ES and SEV-SNP guests."""


command.add_command(decode)
command.add_command(encode)
