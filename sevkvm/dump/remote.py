"""Dumps to a URL that fsspec knows (``s3://bucket/name``, ``gs://``, ``sftp://``): the extra ``sevkvm[remote]``.

What is written appears under its name when it is complete and not before, as far as the store can do that: it is
written in a transaction of fsspec, which object stores carry out as one upload.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from sevkvm import errors
from sevkvm.dump.sink import Sink, write_error

_ZEROS = memoryview(bytes(1 << 20))


def is_url(name: str) -> bool:
    """``PROTOCOL://...``, rather than a path?"""
    return "://" in name


class RemoteTarget:
    """A file of a remote store. UsageError for a URL that cannot be used, and for what exists, without ``force``."""

    seekable = False

    def __init__(self, url: str, *, force: bool) -> None:
        self._url = url
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise errors.UsageError(
                f"{url}: URLs need the Python package fsspec", help="pip install 'sevkvm[remote]'"
            ) from error
        try:
            # an instance of our own: a transaction is the instance's
            self._store, self._path = url_to_fs(url, skip_instance_cache=True)
            exists = self._store.exists(self._path)
        except (ValueError, ImportError) as error:  # an unknown protocol, or the package for it is missing
            raise errors.UsageError(f"{url}: {error}", help="name another place with -o") from error
        except Exception as error:  # each store has exceptions of its own
            raise _told(url, error) from error
        if exists and not force:
            raise errors.UsageError(f"{url} exists", help="choose another name, or overwrite it with --force")

    @contextmanager
    def open(self, nbytes: int) -> Iterator[Sink]:
        """Yield a sink that never seeks; on a clean exit the upload is completed, on any exception it is given up."""
        ours: BaseException | None = None
        try:
            with self._store.transaction, closing(self._store.open(self._path, "wb")) as file:
                try:
                    yield _RemoteSink(file, self._url)
                except BaseException as error:
                    ours = error
                    raise
        except Exception as error:
            if ours is not None:
                raise ours from None
            raise _told(self._url, error) from error


class _RemoteSink:
    seekable = False

    def __init__(self, file: Any, url: str) -> None:
        self._file = file
        self._url = url
        self.offset = 0

    def write(self, data: bytes | memoryview) -> None:
        """Write all of ``data``."""
        try:
            self._file.write(bytes(data))
        except Exception as error:  # as above
            raise _told(self._url, error) from error
        self.offset += len(data)

    def skip(self, nbytes: int) -> None:
        """Write zeros."""
        while nbytes:
            step = min(nbytes, len(_ZEROS))
            self.write(_ZEROS[:step])
            nbytes -= step

    def rewrite(self, offset: int, data: bytes) -> None:
        """What is uploaded cannot be changed, and nobody asks that of a sink that does not seek."""
        raise errors.SevKvmError(f"{self._url}: cannot write at 0x{offset:x} again")


def _told(url: str, error: Exception) -> errors.SevKvmError:
    if isinstance(error, OSError) and error.errno is not None:
        return write_error(error, url)
    return errors.SevKvmError(f"{url}: {type(error).__name__}: {error}")
