"""One audit from start to end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sevkvm import errors
from sevkvm.audit import isolation, mappings, registers, sharing, tables
from sevkvm.audit.report import Findings, Report
from sevkvm.audit.rules import RULES, SWIOTLB_PRIVATE, Need, Rule
from sevkvm.audit.scene import Scene
from sevkvm.audit.swiotlb import Swiotlb, find_swiotlb
from sevkvm.pages.classify import classify
from sevkvm.paging import scan

if TYPE_CHECKING:
    from sevkvm.guest import Guest
    from sevkvm.linux.vmcoreinfo import VmcoreInfo
    from sevkvm.pages.pagemap import PageMap
    from sevkvm.paging.form import PagingForm
    from sevkvm.vcpu import VcpuState

MOST: Final = 32
_LIMITS: Final = scan.Limits(spans=1 << 19)


@dataclass(frozen=True)
class Wanted:
    """``rules``: those to ask. ``most``: findings listed of each rule and severity; all are counted.

    ``symbols``: search the kernel's own symbols, for its swiotlb; some thousand pages are read for it.
    """

    rules: Sequence[Rule] = RULES
    most: int = MOST
    symbols: bool = True


def audit(guest: Guest, wanted: Wanted | None = None) -> Report:
    """Look at the guest's tables, and judge.

    The guest stands still while tables are read, and runs while its kernel is searched for.
    Raises what ``Guest.forms`` raises: without page tables there is nothing to audit but registers.
    """
    wanted = wanted or Wanted()
    findings = Findings(wanted.rules, wanted.most)
    lacks: dict[Need, str] = {}
    forms = guest.forms()  # a search for them is made once, here
    encrypted = any(_has_cbit(form) for form in forms)
    info = _kernel(guest, findings, lacks, wanted, encrypted)
    swiotlb = None if info is None else _swiotlb(guest, info, lacks)
    with guest.held():
        states = _registers(guest, lacks)
        forms = guest.forms()
        pages = classify(guest.memory, forms, guest.slots, _LIMITS, plain_tables=True) if forms else None
        _judge_needs(guest, forms, pages, lacks)
        _skip(findings, lacks)
        registers.examine(states, findings)
        if pages is not None:
            _tables(guest, forms, pages, swiotlb, findings)
    roots = dict.fromkeys(form.root_gpa for form in forms)
    return findings.report(tuple(roots), None if info is None else info.osrelease)


def _tables(
    guest: Guest,
    forms: Sequence[PagingForm],
    pages: PageMap,
    swiotlb: Swiotlb | None,
    findings: Findings,
) -> None:
    # a vCPU in user mode may be on tables without the kernel; the whole ones are then in pages.forms
    every = tuple(dict.fromkeys([*pages.forms, *forms]))
    mapped = scan.leaves(guest.memory, every, limits=_LIMITS) if any(map(_has_cbit, every)) else None
    scene = Scene(guest.memory, guest.slots, every, pages, mapped, swiotlb, findings)
    mappings.examine(scene)
    sharing.examine(scene)
    tables.examine(scene)
    isolation.examine(scene)


def _has_cbit(form: PagingForm) -> bool:
    return form.cbit_pos is not None and form.levels >= 3


def _registers(guest: Guest, lacks: dict[Need, str]) -> Sequence[VcpuState]:
    try:
        return guest.registers()
    except errors.RegistersUnavailable as reason:
        lacks[Need.REGISTERS] = reason.message
        return ()


def _judge_needs(
    guest: Guest, forms: Sequence[PagingForm], pages: PageMap | None, lacks: dict[Need, str]
) -> None:
    if pages is None:
        why = "no vCPU uses page tables"
        lacks |= dict.fromkeys((Need.TABLES, Need.LONG_MODE, Need.NX, Need.CBIT, Need.DIRECT_MAP), why)
        return
    if not any(form.mode.long for form in forms):
        lacks[Need.LONG_MODE] = "32-bit page tables do not tell which half is the kernel's"
    if not any(form.nx and form.levels >= 3 for form in forms):
        lacks[Need.NX] = "no-execute is off: everything is executable"
    if not any(map(_has_cbit, forms)):
        lacks[Need.CBIT] = _why_no_cbit(guest)
    elif not pages.direct_maps:
        lacks[Need.DIRECT_MAP] = "no direct map was found"


def _why_no_cbit(guest: Guest) -> str:
    if guest.sev.encrypted:
        return "32-bit page tables have no C-bit: all memory is private"
    if guest.contents is not None:
        return "the dump's page tables have no C-bit: a plain guest, or dumped without --cbit keep"
    return "the guest is not encrypted"


def _kernel(
    guest: Guest, findings: Findings, lacks: dict[Need, str], wanted: Wanted, encrypted: bool
) -> VmcoreInfo | None:
    """The kernel's note, where a rule has a use for it."""
    lacks[Need.SWIOTLB] = "the kernel's symbols were not asked for"
    if not wanted.symbols or not encrypted or not findings.wants(SWIOTLB_PRIVATE):
        return None
    try:
        info = guest.vmcoreinfo()
    except (errors.BadGuestData, errors.RegistersUnavailable) as reason:
        lacks[Need.SWIOTLB] = reason.message
        return None
    if info is None:
        lacks[Need.SWIOTLB] = "no Linux kernel's VMCOREINFO was found"
    return info


def _swiotlb(guest: Guest, info: VmcoreInfo, lacks: dict[Need, str]) -> Swiotlb | None:
    cbit_pos = guest.sev.cbit_pos if guest.sev.encrypted else None
    ram_end = max((slot.end for slot in guest.slots), default=0)
    try:
        found = find_swiotlb(guest.memory, info, cbit_pos, ram_end)
    except errors.BadGuestData as reason:
        lacks[Need.SWIOTLB] = reason.message
        return None
    if found is None:
        lacks[Need.SWIOTLB] = "the kernel has no swiotlb"
    else:
        del lacks[Need.SWIOTLB]
    return found


def _skip(findings: Findings, lacks: dict[Need, str]) -> None:
    for rule, why in _skipped(lacks):
        findings.skip(rule, why)


def _skipped(lacks: dict[Need, str]) -> Iterator[tuple[Rule, str]]:
    for rule in RULES:
        why = next((lacks[need] for need in rule.needs if need in lacks), None)
        if why is not None:
            yield rule, why
