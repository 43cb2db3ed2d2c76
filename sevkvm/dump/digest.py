"""SHA-256 of a dump while it is written, in a thread of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sevkvm.dump.pipeline import Pipeline

if TYPE_CHECKING:
    from sevkvm.dump.output import Target
    from sevkvm.dump.sink import Sink

_ZEROS: Final = bytes(1 << 20)
_DEPTH: Final = 64  # spans of at most a copier's chunk each


class DigestTarget:
    """``target`` with a digest: of what was written, or read again where that was not written in its order."""

    def __init__(self, target: Target, path: Path) -> None:
        self._target = target
        self._path = path
        self._sink: _DigestSink | None = None
        self.seekable = target.seekable

    @contextmanager
    def open(self, nbytes: int) -> Iterator[Sink]:
        """As the target's."""
        with self._target.open(nbytes) as sink:
            self._sink = _DigestSink(sink)
            try:
                yield self._sink
            except BaseException:
                self._sink.forget()
                raise

    def hexdigest(self) -> str:
        """Of the complete file. To be called when the guest runs again: it may take a while."""
        done = self._sink.hexdigest() if self._sink is not None else None
        return done if done is not None else file_digest(self._path)


class _DigestSink:
    """Hashes what goes on to ``sink``, until something is rewritten."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._hash = hashlib.sha256()
        self._pipeline: Pipeline[bytes | int, None] | None = Pipeline(
            lambda: self._update, lambda done: None, workers=1, depth=_DEPTH
        )
        self.offset = sink.offset
        self.seekable = sink.seekable

    def write(self, data: bytes | memoryview) -> None:
        """Hand on, and hash a copy."""
        if self._pipeline is not None:
            self._pipeline.put(bytes(data))
        self._sink.write(data)
        self.offset = self._sink.offset

    def skip(self, nbytes: int) -> None:
        """Hand on, and hash zeros."""
        if self._pipeline is not None:
            self._pipeline.put(nbytes)
        self._sink.skip(nbytes)
        self.offset = self._sink.offset

    def rewrite(self, offset: int, data: bytes) -> None:
        """From here on a digest of the bytes in their order is not to be had."""
        self.forget()
        self._sink.rewrite(offset, data)

    def forget(self) -> None:
        """End the thread; there will be no digest."""
        if self._pipeline is not None:
            self._pipeline.close()
            self._pipeline = None

    def hexdigest(self) -> str | None:
        """Of everything that was written; None if that is not what is in the file."""
        if self._pipeline is None:
            return None
        try:
            self._pipeline.finish()
        finally:
            self.forget()
        return self._hash.hexdigest()

    def _update(self, number: int, span: bytes | int) -> None:
        if isinstance(span, bytes):
            self._hash.update(span)
            return
        while span:
            step = min(span, len(_ZEROS))
            self._hash.update(_ZEROS[:step] if step < len(_ZEROS) else _ZEROS)
            span -= step


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sha256sum_line(digest: str, path: Path) -> str:
    """A line of ``sha256sum``, to be checked in the file's directory. A name with a newline is escaped as there."""
    name = path.name
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    mark = "\\" if escaped != name else ""
    return f"{mark}{digest}  {escaped}\n"
