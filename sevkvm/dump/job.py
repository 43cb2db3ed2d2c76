"""One dump from start to end: what to read, in which format, to which target, and what came of it."""

from __future__ import annotations

from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sevkvm import errors
from sevkvm.dump.cbit import CbitOutcome, cbit_view
from sevkvm.dump.copy import Copier, Progress
from sevkvm.dump.exclude import excluding
from sevkvm.dump.formats import Contents, make_writer
from sevkvm.dump.kernel import KernelFacts, find_kernel_facts
from sevkvm.dump.options import WITH_REGISTERS, WITH_VMCOREINFO, CbitMode, DumpOptions, check
from sevkvm.dump.pieces import NO_LOSS, Hole, Piece, physical_pieces, virtual_pieces, whole_ram
from sevkvm.dump.plan import DumpFormat, Placed, merge_placed
from sevkvm.dump.unmapped import SharedUnmapped, Unmapped, without_unmapped
from sevkvm.dump.views import views
from sevkvm.dump.virtual import mappings

if TYPE_CHECKING:
    from sevkvm.dump.output import Target
    from sevkvm.dump.reader import DumpSource, PageMap
    from sevkvm.vcpu import VcpuState


@dataclass(frozen=True)
class DumpResult:
    """What the file holds. ``ranges`` are as planned, with their place in the file; ``holes`` what is missing.

    registers_missing: why an ELF file has no registers, or None. live: it shows no single moment. cbit: what became of
    it. osrelease: of the kernel whose VMCOREINFO note is in the file, or None; then vmcoreinfo_missing may tell why.
    excluded: bytes left out on purpose, by what they were: ``cache``, ``cache_private``, ``user``, ``free``, ``bad``
    (broken memory); excluded_ranges: these, as ``(gpa, end)``, ascending.
    """

    format: DumpFormat
    file_nbytes: int
    copied_nbytes: int
    ranges: tuple[Placed, ...]
    holes: tuple[Hole, ...]
    vcpus: int
    registers_missing: str | None
    live: bool
    cbit: CbitOutcome
    osrelease: str | None
    vmcoreinfo_missing: str | None
    excluded: dict[str, int]
    excluded_ranges: tuple[tuple[int, int], ...] = ()

    @property
    def complete(self) -> bool:
        """Every byte that was asked for and is guest memory is in the file; else the exit code is 6."""
        return all(hole.reason in NO_LOSS for hole in self.holes)


def dump_guest(
    guest: DumpSource,
    options: DumpOptions,
    page_map: PageMap,
    target: Target,
    progress: Progress | None = None,
    kernel: KernelFacts | None = None,
) -> DumpResult:
    """Dump guest memory into ``target``. ``kernel``: what its kernel says of itself, if that was looked for.

    Unreadable pages become holes of the result; UsageError, before the target is opened, when the range holds no
    guest memory. Whatever else is raised (firmware refusal, VMM gone, disk full) leaves no file behind.
    """
    check(options, target)
    live = options.live or guest.was_live
    with nullcontext() if options.live else guest.held():
        start, end, pieces, holes = _select(guest, options)
        if options.unmapped is Unmapped.SKIP:
            pieces, holes = without_unmapped(pieces, holes, page_map)
        elif options.unmapped is Unmapped.SHARED:
            page_map = SharedUnmapped(page_map)
        states, registers_missing = _registers(guest, options.format)
        view = cbit_view(guest, kernel or _kernel(guest, options), options)
        excluding_map = excluding(guest, view.kernel, options.exclude, pieces, page_map)
        shown = views(guest, view.kernel) if options.virtual else []
        states = view.registers(states)
        writer = make_writer(
            options, Contents(pieces, holes, start, end, states, view.kernel, view.alias_mask, shown, live)
        )
        with target.open(writer.layout.nbytes) as sink:
            with closing(writer.begin(sink)) as intake:
                copier = Copier(view.memory, excluding_map, intake, progress)
                copier.copy(writer.layout)
                lost = writer.finish(sink, copier.holes)
            file_nbytes = sink.offset
    return DumpResult(
        options.format,
        file_nbytes,
        copier.copied_nbytes,
        tuple(merge_placed(writer.layout.placed)),
        tuple(sorted([*writer.layout.holes, *lost])),
        len(states),
        registers_missing,
        live,
        view.outcome,
        view.kernel.osrelease if options.format in WITH_VMCOREINFO else None,
        view.kernel.missing if options.format in WITH_VMCOREINFO else None,
        excluding_map.nbytes_by_type,
        excluding_map.ranges,
    )


def _select(guest: DumpSource, options: DumpOptions) -> tuple[int, int, list[Piece], list[Hole]]:
    if options.gva is None:
        start, end = options.gpa or whole_ram(guest.slots, rom_last=options.format is not DumpFormat.KDUMP)
        return start, end, *physical_pieces(guest.slots, start, end)
    if options.gpa is not None:
        raise errors.UsageError("--gpa and --gva exclude each other")
    start, end = options.gva
    mapped = mappings(guest.memory, guest.paging(), start, end)
    return start, end, *virtual_pieces(mapped, guest.slots, start, end)


def _kernel(guest: DumpSource, options: DumpOptions) -> KernelFacts:
    """What the file tells of the kernel, or page tables are found by; a search costs time."""
    wanted = options.format in WITH_VMCOREINFO or options.cbit is CbitMode.STRIP
    return find_kernel_facts(guest) if wanted and options.gva is None else KernelFacts()


def _registers(guest: DumpSource, file_format: DumpFormat) -> tuple[list[VcpuState], str | None]:
    if file_format not in WITH_REGISTERS:
        return [], None
    try:
        return guest.registers(), None
    except errors.RegistersUnavailable as reason:
        return [], reason.message
