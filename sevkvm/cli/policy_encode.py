"""``sevkvm policy encode``: a policy's number from what it is to say."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import click

from sevkvm.abi import policybits as bits
from sevkvm.cli.command import SectionOption
from sevkvm.cli.command import command as sevkvm_command
from sevkvm.cli.options import json_option

_SEV, _SNP = "SEV and SEV-ES", "SEV-SNP (with --snp)"
_MASKS = {bit.name: bit.mask for bit in (*bits.SEV_BITS, *bits.SNP_BITS)}


class _Flag(NamedTuple):
    """An option that sets the bit called ``name``."""

    option: str
    name: str
    section: str
    help: str

    @property
    def parameter(self) -> str:
        """As Python gets it."""
        return self.option[2:].replace("-", "_")


_FLAGS = (
    _Flag("--no-key-sharing", "NOKS", _SEV, "Forbid sharing the key with other guests."),
    _Flag("--es", "ES", _SEV, "Require SEV-ES: encrypted registers."),
    _Flag("--no-send", "NOSEND", _SEV, "Forbid sending to another platform: no live migration."),
    _Flag("--domain", "DOMAIN", _SEV, "Forbid sending outside the domain."),
    _Flag("--sev-only", "SEV", _SEV, "Forbid sending to a platform without SEV."),
    _Flag("--smt", "SMT", _SNP, "Allow simultaneous multithreading on the host (QEMU's default)."),
    _Flag("--migration-agent", "MIGRATE_MA", _SNP, "Allow a migration agent."),
    _Flag("--single-socket", "SINGLE_SOCKET", _SNP, "Run on one socket only."),
    _Flag("--cxl", "CXL_ALLOW", _SNP, "Allow CXL devices and memory."),
    _Flag("--aes-256-xts", "MEM_AES_256_XTS", _SNP, "Require AES-256-XTS."),
    _Flag("--no-rapl", "RAPL_DIS", _SNP, "Require energy counters to be off."),
    _Flag("--ciphertext-hiding", "CIPHERTEXT_HIDING_DRAM", _SNP, "Require ciphertext to be hidden."),
    _Flag("--no-page-swap", "PAGE_SWAP_DISABLE", _SNP, "Forbid moving and swapping its pages."),
)


def _api(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[int, int]:
    if text is None:
        return 0, 0
    match = re.fullmatch(r"(\d{1,3})\.(\d{1,3})", text, re.ASCII)
    if match is None or max(int(match[1]), int(match[2])) > 0xFF:
        raise click.BadParameter(f"'{text}' is not MAJOR.MINOR, each at most 255", ctx, param)
    return int(match[1]), int(match[2])


def _flag_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """All of _FLAGS; the command gets the set of those given, as its argument ``wanted``."""

    @functools.wraps(function)
    def wrapper(**settings: Any) -> Any:
        wanted = tuple(flag for flag in _FLAGS if settings.pop(flag.parameter))
        return function(wanted=wanted, **settings)

    decorated: Callable[..., Any] = wrapper
    for flag in reversed(_FLAGS):
        option = click.option(
            flag.option, flag.parameter, cls=SectionOption, section=flag.section, is_flag=True, help=flag.help
        )
        decorated = option(decorated)
    return decorated


@sevkvm_command(
    "encode",
    examples="""
    # for production
    sevkvm policy encode --no-debug --no-key-sharing --es --no-send
    # for development: what sevkvm needs
    sevkvm policy encode --debug --es
    # 64 bits, with bit 17, which must be one
    sevkvm policy encode --snp --smt --api 1.51
    # into QEMU's command line
    qemu-system-x86_64 -object sev-guest,...,policy=$(sevkvm policy encode --no-debug --es) ...
    """,
)
@click.option("--snp", is_flag=True, help="Make a policy of SEV-SNP (64 bits).")
@click.option(
    "--debug/--no-debug",
    default=None,
    help="Allow or forbid debugging.  [default: allowed, as the number 0 says; with --snp forbidden]",
)
@click.option(
    "--api", callback=_api, metavar="MAJOR.MINOR", help="The least firmware API, of SNP the least ABI."
)
@click.option("--strict", is_flag=True, help="Exit with 1 if there is anything to warn of.")
@_flag_options
@json_option
def command(
    snp: bool,
    debug: bool | None,
    api: tuple[int, int],
    strict: bool,
    wanted: tuple[_Flag, ...],
    as_json: bool,
) -> None:
    """Print the number of a policy that says what the options say; warn of contradictions on stderr.

    What no option asks for stays clear: of SEV that allows, of SEV-SNP it forbids.
    """
    from sevkvm.cli.policy_report import finish, policy_json, warn_of
    from sevkvm.cli.policy_source import from_value
    from sevkvm.cli.render import print_json
    from sevkvm.memory.policyadvice import advice

    for flag in wanted:
        if flag.section != (_SNP if snp else _SEV):
            problem = f"{flag.option} is a bit of {'SEV and SEV-ES, not of SEV-SNP' if snp else 'SEV-SNP: add --snp'}"
            raise click.UsageError(problem, click.get_current_context())
    value = sum(_MASKS[flag.name] for flag in wanted)
    major, minor = api
    if snp:
        value |= bits.SNP_POLICY_MUST_BE_ONE | major << 8 | minor | (bits.SNP_POLICY_DEBUG if debug else 0)
    else:
        value |= major << 16 | minor << 24 | (bits.POLICY_NODBG if debug is False else 0)
    found = from_value(value, snp=snp, source="options")
    told = advice(found.policy)
    if as_json:
        print_json(policy_json(found, told))
    else:
        click.echo(f"0x{value:x}")
        warn_of(told)
    finish(told, strict=strict)
