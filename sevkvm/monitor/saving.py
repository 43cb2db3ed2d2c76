"""``memsave`` and ``pmemsave``: a range of memory as a file.

Unlike QEMU's, the file appears under its name only when all of it is there, and nobody else may read it (0600):
memory that cannot be read is an error, not zeros. It replaces a file of that name, as QEMU does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

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
    save(virtual_reader(monitor), *_given(given))
    return iter(())


def pmemsave(monitor: Monitor, given: Arguments) -> Iterator[str]:
    """Guest-physical memory."""
    save(physical_reader(monitor), *_given(given))
    return iter(())


def target(name: str) -> FileTarget:
    """A file to write, or CommandProblem in QEMU's words; nothing exists yet."""
    path = Path(name)
    try:
        if not name or not path.parent.is_dir():
            raise failed(f"Could not open '{name}': No such file or directory")
        if path.is_dir():
            raise failed(f"Could not open '{name}': Is a directory")
        if path.exists() and not path.is_file():
            raise failed(f"Could not open '{name}': it is no regular file")
    except OSError as error:  # a name that is too long
        raise failed(f"Could not open '{name}': {error.strerror}") from error
    if "\0" in name:
        raise failed("Could not open a file with NUL in its name")
    return FileTarget(path, force=True)


def _given(given: Arguments) -> tuple[int, int, str]:
    return given.numbers["val"], given.numbers["size"], given.texts["filename"]


def save(reader: Reader, address: int, size: int, filename: str) -> None:
    """Write ``size`` bytes; CommandProblem and no file if any of them cannot be read."""
    with target(filename).open(size) as sink:
        at, end = address, address + size
        while at < end:
            want = min(end - at, PAGE_NBYTES - at % PAGE_NBYTES)
            data = reader(at, want) if at < 1 << 64 else b""
            if len(data) < want:
                raise failed(f"Invalid addr 0x{address:016x}/size {size} specified")
            sink.write(data)
            at += want


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
