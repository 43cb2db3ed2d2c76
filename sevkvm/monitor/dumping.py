"""``dump-guest-memory``: a dump of sevkvm's own, at QEMU's command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sevkvm import errors
from sevkvm.dump import DumpFormat, DumpOptions, check, dump_guest
from sevkvm.monitor.command import Command
from sevkvm.monitor.problem import failed
from sevkvm.monitor.saving import target
from sevkvm.pages.classify import PageKind, classify, uniform

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sevkvm.dump import DumpResult, Target
    from sevkvm.guest import Guest
    from sevkvm.monitor.arguments import Arguments
    from sevkvm.monitor.monitor import Monitor
    from sevkvm.pages.classify import PageMap

_COMPRESS: Final = {"zlib": "zlib", "lzo": "lzo", "snappy": "snappy"}


def dump_guest_memory(monitor: Monitor, given: Arguments) -> Iterator[str]:
    """An ELF core, or kdump-compressed. ``-d`` returns when the dump is done, as without it."""
    chosen = [flag for flag in ("windmp", *_COMPRESS) if flag in given.flags]
    if len(chosen) > 1:
        raise failed("only one of '-z|-l|-s|-w' can be set")
    if "begin" in given.numbers and "length" not in given.numbers:
        raise failed("Parameter 'length' is missing")
    if "windmp" in chosen:
        raise failed("win-dump is not available: sevkvm writes no Windows dumps")
    if "paging" in given.flags:
        raise failed("-p is not available: `sevkvm dump --gva` dumps by virtual address")
    begin = given.numbers.get("begin")
    options = dump_options(chosen[0] if chosen else "elf", begin, given.numbers.get("length"))
    result = write(monitor.guest, options, target(given.texts["filename"]))
    if not result.complete:
        monitor.hole()
        yield from (f"hole: {hole.nbytes} bytes at gpa 0x{hole.address:x}\n" for hole in result.holes[:16])


def dump_options(kind: str, begin: int | None, length: int | None) -> DumpOptions:
    """``kind``: elf, zlib, lzo or snappy; a range of guest-physical memory or all of it. Raises CommandProblem."""
    if begin is None or length is None:
        gpa = None
    elif length == 0:
        raise failed("Invalid parameter 'length'")
    else:
        gpa = (begin, begin + length)
    if kind in _COMPRESS:
        return DumpOptions(DumpFormat.KDUMP, gpa=gpa, compress=_COMPRESS[kind])
    return DumpOptions(DumpFormat.ELF, gpa=gpa)


def write(guest: Guest, options: DumpOptions, where: Target) -> DumpResult:
    """Hold the guest and dump it."""
    check(options, where)
    with guest.held():
        return dump_guest(guest, options, page_map(guest), where)


def page_map(guest: Guest) -> PageMap:
    """Which pages to decrypt: by the page tables, else all of an encrypted guest's."""
    if not guest.sev.encrypted or guest.contents is not None:
        return uniform(guest.slots, PageKind.PLAIN)
    try:
        forms = guest.forms()
    except errors.RegistersUnavailable:
        forms = []
    return classify(guest.memory, forms, guest.slots) if forms else uniform(guest.slots, PageKind.UNMAPPED)


COMMANDS: Final = (
    Command(
        "dump-guest-memory",
        "paging:-p,detach:-d,windmp:-w,zlib:-z,lzo:-l,snappy:-s,filename:F,begin:l?,length:l?",
        "[-p] [-d] [-z|-l|-s|-w] filename [begin length]",
        "dump guest memory into file 'filename'.\n"
        "\t\t\t-p: do paging to get guest's memory mapping.\n"
        "\t\t\t-d: return immediately (do not wait for completion).\n"
        "\t\t\t-z: dump in kdump-compressed format, with zlib compression.\n"
        "\t\t\t-l: dump in kdump-compressed format, with lzo compression.\n"
        "\t\t\t-s: dump in kdump-compressed format, with snappy compression.\n"
        "\t\t\t-w: dump in Windows crashdump format (can be used instead of ELF-dump converting),\n"
        "\t\t\t    for Windows x86 and x64 guests with vmcoreinfo driver only.\n"
        "\t\t\tbegin: the starting physical address.\n"
        "\t\t\tlength: the memory size, in bytes.",
        dump_guest_memory,
    ),
)
