"""What becomes of the C-bit in a dump: ``--cbit auto|keep|strip|alias``.

Readers of dumps follow the guest's page tables, whose entries have the C-bit among their address bits. Some take it
off themselves (crash, makedumpfile, libkdumpfile: ``sme_mask`` in the VMCOREINFO note tells them), others look for
memory at that address (drgn, volatility3). docs/dump.md has the table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sevkvm import errors
from sevkvm.dump.options import WITH_ALIASES, WITH_VMCOREINFO, CbitMode
from sevkvm.dump.strip import StrippedMemory, with_sme_mask
from sevkvm.linux.roots import find_roots
from sevkvm.paging.scan import leaves

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sevkvm.dump.kernel import KernelFacts
    from sevkvm.dump.options import DumpOptions
    from sevkvm.dump.reader import DumpSource, Memory
    from sevkvm.paging.form import PagingForm
    from sevkvm.vcpu import VcpuState


@dataclass(frozen=True)
class CbitOutcome:
    """What was done: ``mode`` is never AUTO, and None for a guest without a C-bit.

    table_gpas: the table pages that were stripped, ascending. unknown: where more tables may be that were not looked
    for, and why. fallback: why AUTO did not strip.
    """

    mode: CbitMode | None
    table_gpas: Sequence[int] = ()
    unknown: tuple[str, ...] = ()
    fallback: str | None = None

    @property
    def tables(self) -> int:
        """How many table pages were stripped."""
        return len(self.table_gpas)


@dataclass(frozen=True)
class CbitView:
    """A guest's memory as the file shall show it; ``kernel`` has the VMCOREINFO text that is true of it.

    stripped_mask: the C-bit where it is taken out, else 0.
    """

    outcome: CbitOutcome
    memory: Memory
    kernel: KernelFacts
    alias_mask: int = 0
    stripped_mask: int = 0

    def registers(self, states: Sequence[VcpuState]) -> list[VcpuState]:
        """With a CR3 that goes with the page tables: libkdumpfile starts from it."""
        mask = ~self.stripped_mask
        return [each._replace(sregs=each.sregs._replace(cr3=each.sregs.cr3 & mask)) for each in states]


def cbit_view(guest: DumpSource, kernel: KernelFacts, options: DumpOptions) -> CbitView:
    """How ``guest`` goes into the file.

    Raises BadGuestData where STRIP was asked for and not every process's page tables can be found, PlatformUnsupported
    where the C-bit's position is needed and not known.
    """
    mode = options.cbit
    if not guest.sev.encrypted:
        return CbitView(CbitOutcome(None), guest.memory, kernel)
    if mode is CbitMode.AUTO and not _is_for_linux_readers(kernel, options):
        mode = CbitMode.KEEP
    if mode is CbitMode.KEEP:
        return CbitView(CbitOutcome(mode), guest.memory, kernel)
    cbit_pos = guest.sev.cbit_pos
    if cbit_pos is None:
        raise errors.PlatformUnsupported(
            "the position of the C-bit is not known", help="say it with --cbit-pos, or use --cbit keep"
        )
    fallback = "page tables change while the guest runs" if options.live and mode is CbitMode.AUTO else None
    if mode is not CbitMode.ALIAS and fallback is None:
        try:
            return _stripped(guest, kernel, cbit_pos)
        except errors.BadGuestData as error:
            if mode is CbitMode.STRIP:
                raise
            fallback = error.message
    if options.format in WITH_ALIASES:
        outcome = CbitOutcome(CbitMode.ALIAS, fallback=fallback)
        return CbitView(outcome, guest.memory, kernel, alias_mask=1 << cbit_pos)
    return CbitView(CbitOutcome(CbitMode.KEEP, fallback=fallback), guest.memory, kernel)


def _is_for_linux_readers(kernel: KernelFacts, options: DumpOptions) -> bool:
    return kernel.info is not None and options.gva is None and options.format in WITH_VMCOREINFO


def _stripped(guest: DumpSource, kernel: KernelFacts, cbit_pos: int) -> CbitView:
    if kernel.info is None:
        raise errors.BadGuestData(
            f"not every process's page tables can be found: {kernel.missing or 'no VMCOREINFO is known'}",
            help=_HELP,
        )
    roots = find_roots(guest.memory, kernel.info, cbit_pos, _vcpus_forms(guest))
    found = leaves(guest.memory, roots.forms)
    if found.limits_hit:
        raise errors.BadGuestData("the guest has more page tables than are looked at", help=_HELP)
    return CbitView(
        CbitOutcome(CbitMode.STRIP, found.table_gpas, roots.unknown),
        StrippedMemory(guest.memory, found.table_gpas, cbit_pos),
        replace(kernel, vmcoreinfo=with_sme_mask(kernel.vmcoreinfo, 0)),
        stripped_mask=1 << cbit_pos,
    )


def _vcpus_forms(guest: DumpSource) -> Sequence[PagingForm]:
    try:
        return guest.forms()
    except (errors.RegistersUnavailable, errors.BadGuestData):
        return ()  # the kernel's own lead to all the others


_HELP = "use --cbit alias or --cbit keep"
