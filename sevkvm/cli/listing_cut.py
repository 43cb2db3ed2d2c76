"""Only the first lines of a list."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Record = TypeVar("Record")


class Cut:
    """Lets ``limit`` lines through (None: all). ``more``: there was another one."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self.more = False

    def records(self, records: Iterable[Record]) -> Iterator[Record]:
        """Of records that become a line each."""
        for number, record in enumerate(records):
            if number == self._limit:
                self.more = True
                return
            yield record

    def text(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Of chunks of whole lines."""
        left = self._limit
        for chunk in chunks:
            if left is None:
                yield chunk
                continue
            lines = chunk.count(b"\n")
            if lines > left:
                self.more = True
                if left:
                    yield b"".join(chunk.splitlines(keepends=True)[:left])
                return
            left -= lines
            yield chunk
