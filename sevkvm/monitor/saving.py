"""``memsave`` and ``pmemsave``: a range of memory as a file.

Unlike QEMU's, the file appears under its name only when all of it is there, and nobody else may read it (0600):
memory that cannot be read is an error, not zeros. It replaces a file of that name, as QEMU does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from sevkvm import errors
from sevkvm.abi.x86 import PAGE_NBYTES
from sevkvm.dump.output import FileTarget
from sevkvm.monitor.command import Command
from sevkvm.monitor.memory import physical_reader, virtual_reader
from sevkvm.monitor.problem import failed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sevkvm.monitor.arguments import Arguments
    from sevkvm.monitor.examine import Reader
    from sevkvm.monitor.monitor import Monitor


def memsave(monitor: Monitor, given: Arguments) -> Iterator[str]:
    """Guest-virtual memory."""
    _save(virtual_reader(monitor), given)
    return iter(())


def pmemsave(monitor: Monitor, given: Arguments) -> Iterator[str]:
    """Guest-physical memory."""
    _save(physical_reader(monitor), given)
    return iter(())


def target(name: str) -> FileTarget:
    """A file to write, or CommandProblem in QEMU's words; nothing exists yet."""
    path = Path(name)
    if not name or not path.parent.is_dir():
        raise failed(f"Could not open '{name}': No such file or directory")
    if path.is_dir():
        raise failed(f"Could not open '{name}': Is a directory")
    if path.exists() and not path.is_file():
        raise failed(f"Could not open '{name}': it is no regular file")
    return FileTarget(path, force=True)


def _save(reader: Reader, given: Arguments) -> None:
    address, size = given.numbers["val"], given.numbers["size"]
    with target(given.texts["filename"]).open(size) as sink:
        at, end = address, min(address + size, 1 << 64)
        while at < end:
            want = min(end - at, PAGE_NBYTES - at % PAGE_NBYTES)
            data = reader(at, want)
            if len(data) < want:
                raise failed(f"Invalid addr 0x{address:016x}/size {size} specified")
            sink.write(data)
            at += want
        if end - address < size:
            raise errors.UsageError("there is no memory beyond the last address")


COMMANDS: Final = (
    Command(
        "memsave",
        "val:l,size:i,filename:s",
        "addr size file",
        "save to disk virtual memory dump starting at 'addr' of size 'size'",
        memsave,
        still=True,
    ),
    Command(
        "pmemsave",
        "val:l,size:i,filename:s",
        "addr size file",
        "save to disk physical memory dump starting at 'addr' of size 'size'",
        pmemsave,
        still=True,
    ),
)
