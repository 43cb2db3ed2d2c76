"""A dump as several files of a size: FILE.000, FILE.001 and so on; ``cat`` in this order makes it one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sevkvm import errors
from sevkvm.dump.output import FileTarget, check_room, free_name

if TYPE_CHECKING:
    from sevkvm.dump.sink import Sink

    _Open = Callable[[int], AbstractContextManager[Sink]]

MAX_PARTS: Final = 500  # each is an open file until the end, and 1024 are commonly allowed


class SplitTarget:
    """The parts get their names when all are complete; ``paths`` has them then."""

    seekable = True

    def __init__(self, path: Path, part_nbytes: int, *, force: bool, check_space: bool = True) -> None:
        if part_nbytes <= 0:
            raise errors.UsageError("--split needs a size above 0")
        if not path.parent.is_dir():
            raise errors.UsageError(f"{path.parent} is not a directory", help="create it first")
        self._path = path
        self._part_nbytes = part_nbytes
        self._force = force
        self._check_space = check_space
        self.paths: list[Path] = []
        if not force:
            free_name(self._part(0))

    @contextmanager
    def open(self, nbytes: int) -> Iterator[Sink]:
        """Yield a sink over all parts. UsageError when the dump may need more than MAX_PARTS."""
        if nbytes > self._part_nbytes * MAX_PARTS:
            raise errors.UsageError(
                f"the dump may need {-(-nbytes // self._part_nbytes)} parts; {MAX_PARTS} is the most",
                help="choose a larger --split",
            )
        if self._check_space:
            check_room(self._path.parent, nbytes)
        with ExitStack() as parts:
            sink = _SplitSink(self._open_part, parts, self._part_nbytes)
            yield sink
            sink.finish()
            count = len(sink.parts)
        self.paths = [self._part(number) for number in range(count)]
        if self._force:  # parts of a longer dump of that name would be taken for this one's
            for number in range(count, MAX_PARTS):
                with contextlib.suppress(FileNotFoundError):
                    self._part(number).unlink()

    def _open_part(self, number: int) -> AbstractContextManager[Sink]:
        return FileTarget(self._part(number), force=self._force, check_space=False).open(self._part_nbytes)

    def _part(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number:03d}")


class _SplitSink:
    """One sequence of bytes over many sinks; each but the last is ``part_nbytes`` long."""

    seekable = True

    def __init__(self, open_part: _Open, stack: ExitStack, part_nbytes: int) -> None:
        self._open_part = open_part
        self._stack = stack
        self._part_nbytes = part_nbytes
        self.parts: list[Sink] = []
        self.offset = 0

    def write(self, data: bytes | memoryview) -> None:
        """Into the part of ``offset``, and the next ones."""
        view = memoryview(data)
        while view:
            part, room = self._here()
            step = min(room, len(view))
            part.write(view[:step])
            self.offset += step
            view = view[step:]

    def skip(self, nbytes: int) -> None:
        """Holes, in all parts on the way."""
        while nbytes:
            part, room = self._here()
            step = min(room, nbytes)
            part.skip(step)
            self.offset += step
            nbytes -= step

    def rewrite(self, offset: int, data: bytes) -> None:
        """Replace bytes of any parts."""
        view = memoryview(data)
        while view:
            number, within = divmod(offset, self._part_nbytes)
            step = min(self._part_nbytes - within, len(view))
            self.parts[number].rewrite(within, bytes(view[:step]))
            offset += step
            view = view[step:]

    def finish(self) -> None:
        """An empty dump is one empty part."""
        if not self.parts:
            self._here()

    def _here(self) -> tuple[Sink, int]:
        number, within = divmod(self.offset, self._part_nbytes)
        if number == len(self.parts):
            self.parts.append(self._stack.enter_context(self._open_part(number)))
        return self.parts[number], self._part_nbytes - within
