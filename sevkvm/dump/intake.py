"""What takes the memory of a dump as it is read: the seam between the copy loop and a file format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sevkvm.dump.plan import Placed
    from sevkvm.dump.sink import Sink


class Intake(Protocol):
    """Takes one dump's memory, piece after piece in the layout's order, each byte exactly once.

    unit: bytes that hang together; what cannot be read whole in such units, counted from a piece's start, is lost.
    """

    unit: int

    def start(self, placed: Placed) -> None:
        """The next bytes are this piece's, from its first on."""
        ...

    def write(self, data: memoryview) -> None:
        """Bytes that were read. The buffer is used again once this returns."""
        ...

    def zeros(self, nbytes: int) -> None:
        """Bytes that were read as zero."""
        ...

    def lose(self, nbytes: int) -> None:
        """Bytes that cannot be had."""
        ...

    def close(self) -> None:
        """Let go of everything; nothing is written any more. Always called, after a failure too."""
        ...


class Straight:
    """Every byte at its offset of the layout; zero and lost bytes are holes of a file, zeros in a pipe."""

    unit = 1

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def start(self, placed: Placed) -> None:
        """Go to its offset."""
        self._sink.skip(placed.offset - self._sink.offset)

    def write(self, data: memoryview) -> None:
        """Straight on."""
        self._sink.write(data)

    def zeros(self, nbytes: int) -> None:
        """Sparse where the sink can."""
        self._sink.skip(nbytes)

    def lose(self, nbytes: int) -> None:
        """As if they were zero: that they are not is told beside the file."""
        self._sink.skip(nbytes)

    def close(self) -> None:
        """It holds nothing."""
