"""What gdb's ``monitor`` command answers: QEMU's ``x`` and ``xp``."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from sevkvm.cli.values import parse_address
from sevkvm.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sevkvm.guest import Guest

_MOST_NBYTES = 1 << 20


def examining(guest: Guest) -> Callable[[str], Iterator[str]]:
    """A monitor that knows two commands."""

    def monitor(line: str) -> Iterator[str]:
        from sevkvm.monitor.examine import examine, parse_format, short_reads

        name, *words = line.split()[:4] or ["help"]
        if name not in ("x", "xp") or not 1 <= len(words) <= 2 or (len(words) == 2 and words[0][0] != "/"):
            yield "x /FMT GVA and xp /FMT GPA print memory; nothing else is known here\n"
            return
        fmt = parse_format(words[0] if len(words) == 2 else "/")
        if fmt.nbytes > _MOST_NBYTES:
            raise UsageError(f"more than {_MOST_NBYTES} bytes", help="`sevkvm x` prints any amount")
        try:
            address = parse_address(words[-1])
        except ValueError as error:
            raise UsageError(str(error)) from None
        read = (
            guest.read_physical
            if name == "xp"
            else functools.partial(guest.read_virtual, form=guest.paging())
        )
        for text in examine(short_reads(read), fmt, address):
            yield text + "\n"

    return monitor
