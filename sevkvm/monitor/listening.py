"""Where to listen: ``unix:PATH`` (mode 0600) or ``tcp:HOST:PORT`` (loopback only, unless told)."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from sevkvm import errors

_SUN_PATH_NBYTES: Final = 107  # sockaddr_un of linux/un.h, without the final zero
_HELP: Final = "unix:PATH, or tcp:127.0.0.1:PORT"
_BACKLOG: Final = 16


@contextmanager
def listening(text: str, *, anywhere: bool = False) -> Iterator[tuple[socket.socket, str]]:
    """The socket, and its address as ``text`` would name it (a port 0 is some free port).

    Raises UsageError for what is no address, or no loopback address without ``anywhere``.
    """
    if text.startswith("unix:"):
        path = Path(text.removeprefix("unix:"))
        with _unix(path) as listener:
            yield listener, text
        return
    host, port = _tcp_address(text, anywhere)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise errors.UsageError(f"cannot listen on {text}: {error.strerror}") from error
        listener.listen(_BACKLOG)
        shown = f"[{host}]" if family == socket.AF_INET6 else host
        yield listener, f"tcp:{shown}:{listener.getsockname()[1]}"


def _tcp_address(text: str, anywhere: bool) -> tuple[str, int]:
    match = re.fullmatch(r"tcp:(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+|localhost)):([0-9]{1,5})", text)
    try:
        host = ipaddress.ip_address(
            "127.0.0.1" if match and match[2] == "localhost" else match[1] or match[2] if match else ""
        )
    except ValueError:
        raise errors.UsageError(f"--listen {text!r} is no address", help=_HELP) from None
    assert match is not None
    if int(match[3]) > 65535:
        raise errors.UsageError(f"--listen {text!r} is no address", help=_HELP)
    if not host.is_loopback and not anywhere:
        raise errors.UsageError(
            f"{host} can be reached by others, who could then read the guest's memory",
            help="listen on 127.0.0.1 or on a Unix socket; --listen-anywhere if the network is to be trusted",
        )
    return str(host), int(match[3])


@contextmanager
def _unix(path: Path) -> Iterator[socket.socket]:
    if not path.name or len(os.fsencode(path)) > _SUN_PATH_NBYTES:
        raise errors.UsageError(
            f"'{path}' cannot be a socket's path", help=f"{_SUN_PATH_NBYTES} bytes at most"
        )
    _clear(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        before = os.umask(0o177)  # never there with another mode
        try:
            listener.bind(str(path))
        except OSError as error:
            raise errors.UsageError(f"cannot listen on {path}: {error.strerror}") from error
        finally:
            os.umask(before)
        inode = path.stat().st_ino
        try:
            listener.listen(_BACKLOG)
            yield listener
        finally:
            with suppress(OSError):
                if path.lstat().st_ino == inode:
                    path.unlink()


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens on any more; UsageError for anything else of that name."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return
    if stat.S_ISSOCK(mode):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
                return
            except OSError:
                pass
    raise errors.UsageError(f"{path} exists", help="choose another path, or remove it")
