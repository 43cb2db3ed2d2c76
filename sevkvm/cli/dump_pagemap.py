"""``dump --pagemap FILE``: how each page of the guest was read, in the shape of ``pages --json``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sevkvm.cli.render import hexadecimal
from sevkvm.errors import UsageError

if TYPE_CHECKING:
    from sevkvm.dump import DumpOptions, DumpResult, Target
    from sevkvm.guest import Guest
    from sevkvm.pages.classify import PageMap

_ROOM_NBYTES = 4096  # that a file system must have left; what it takes is known when it is written


def pagemap_target(name: str, output: str, *, force: bool, gva: bool) -> Target:
    """Where it goes: a file that is not there yet. UsageError for what it cannot be, as the dump's own."""
    from sevkvm.dump import prepare

    if gva:
        raise UsageError("--pagemap and --gva exclude each other", help="it tells of guest-physical pages")
    if name == "-":
        raise UsageError("--pagemap needs the name of a file")
    taken = (output, f"{output}.json", f"{output}.sha256")
    if os.path.realpath(name) in map(os.path.realpath, taken):
        raise UsageError(f"--pagemap {name} would be written over", help="name another file")
    return prepare(name, force=force)


def write_pagemap(
    target: Target, guest: Guest, options: DumpOptions, pages: PageMap, result: DumpResult
) -> None:
    """The file, once the dump has its name; the guest may run again, or be gone."""
    with target.open(_ROOM_NBYTES) as sink:
        for line in _lines(guest, options, pages, result):
            sink.write(line.encode())


def _lines(guest: Guest, options: DumpOptions, pages: PageMap, result: DumpResult) -> Iterator[str]:
    """One JSON object, a run a line: there may be millions."""
    from sevkvm.dump.decisions import decisions

    head = {
        "sev": guest.sev.kind.value,
        "cbit_pos": guest.sev.cbit_pos,
        "live": result.live,
        "unmapped": options.unmapped.value,
        "cbit": result.cbit.mode.value if result.cbit.mode else None,
    }
    yield json.dumps(head)[:-1] + ', "runs": [\n'
    before = ""
    for gpa, nbytes, kind, read_as in decisions(pages, guest.slots, result, options.unmapped):
        run = {"gpa": hexadecimal(gpa), "size": nbytes, "kind": kind.value, "read_as": read_as.value}
        yield before + json.dumps(run)
        before = ",\n"
    yield "\n]}\n"
