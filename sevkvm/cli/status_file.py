"""``sevkvm status --file``: what a dump holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sevkvm.cli.render import hexadecimal, print_facts, print_json, print_table, size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sevkvm.dumpfile import DumpContents
    from sevkvm.guest import Guest

_SHOWN = 64
_CBIT_SOURCES = {
    "option": "said by --cbit-pos",
    "vmcoreinfo": "told by the guest's VMCOREINFO",
    "alias": "the dump shows its memory again with this bit set",
    "cr3": "the vCPUs' CR3 has it, and leads to memory only without it",
}


def show(guest: Guest, contents: DumpContents, *, as_json: bool) -> None:
    """Print it."""
    missing = contents.store.missing()
    if as_json:
        print_json(_as_json(guest, contents))
        return
    print_facts(_facts(guest, contents))
    rows = [("held", start, nbytes, "") for start, nbytes in held(contents)]
    rows += [("missing", gap.gpa, gap.nbytes, gap.why) for gap in missing]
    rows.sort(key=lambda row: row[1])
    cells = [
        (f"0x{gpa:x}", f"0x{gpa + nbytes:x}", size(nbytes), kind, why) for kind, gpa, nbytes, why in rows
    ]
    print_table(("GPA", "END", "SIZE", "", ""), cells[:_SHOWN], indent="  ")
    if len(cells) > _SHOWN:
        print_facts([("", f"and {len(cells) - _SHOWN} more ranges; --json lists all")])


def held(contents: DumpContents) -> Iterator[tuple[int, int]]:
    """``(gpa, nbytes)`` of what the dump holds, ascending: the guest's memory less what is missing of it."""
    missing = iter(contents.store.missing())
    gap = next(missing, None)
    for start, nbytes in contents.store.ranges:
        at, end = start, start + nbytes
        while gap is not None and gap.gpa < end:
            if at < gap.gpa:
                yield at, gap.gpa - at
            at = gap.gpa + gap.nbytes
            gap = next(missing, None)
        if at < end:
            yield at, end - at


def _facts(guest: Guest, contents: DumpContents) -> Iterator[tuple[str, str]]:
    yield "dump", f"{guest.name}, {contents.format}, {size(contents.file_nbytes)}"
    info = guest.sev
    if info.cbit_pos is None and not contents.cpus and contents.vmcoreinfo is None:
        yield "C-bit", "not told by the file (else --cbit-pos)"
    elif info.cbit_pos is None:
        yield (
            "C-bit",
            "none is known: a plain guest, or page tables that were stripped of it (else --cbit-pos)",
        )
    else:
        yield "C-bit", f"bit {info.cbit_pos}, {_CBIT_SOURCES[info.cbit_source or '']}"
    known = ", ".join(str(index) for index in guest.vcpu_indexes)
    yield "vCPUs", f"{len(contents.cpus)} (index {known})" if known else "no registers"
    yield "VMCOREINFO", "none" if contents.vmcoreinfo is None else size(len(contents.vmcoreinfo))
    if contents.live:
        yield "moment", "none: the guest ran while it was made (dump --live)"
    missing = sum(gap.nbytes for gap in contents.store.missing())
    yield "memory", f"{size(guest.slots.nbytes)}" + (f", {size(missing)} of it missing" if missing else "")


def _as_json(guest: Guest, contents: DumpContents) -> dict[str, Any]:
    return {
        "file": guest.name,
        "format": contents.format,
        "file_size": contents.file_nbytes,
        "vcpus": len(guest.vcpu_indexes),
        "vcpu_indexes": list(guest.vcpu_indexes),
        "cbit_pos": guest.sev.cbit_pos,
        "cbit_source": guest.sev.cbit_source,
        "vmcoreinfo": contents.vmcoreinfo is not None,
        "live": contents.live,
        "memory_size": guest.slots.nbytes,
        "ranges": [{"gpa": hexadecimal(gpa), "size": nbytes} for gpa, nbytes in held(contents)],
        "missing": [
            {"gpa": hexadecimal(gap.gpa), "size": gap.nbytes, "reason": gap.why}
            for gap in contents.store.missing()
        ],
    }
