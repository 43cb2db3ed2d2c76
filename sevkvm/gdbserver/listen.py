"""Where gdb connects to: a Unix socket of the user's own, or a TCP port of this host."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from sevkvm import errors

_HOW = "unix:PATH or tcp:127.0.0.1:PORT"


class UnixAddress(NamedTuple):
    """A path; the socket there is for its owner alone."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"

    @property
    def for_gdb(self) -> str:
        """What gdb's ``target remote`` takes: it knows a path by its slash."""
        return self.path if "/" in self.path else f"./{self.path}"


class TcpAddress(NamedTuple):
    """A numeric host and a port; port 0 is any that is free."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp:{self.for_gdb}"

    @property
    def for_gdb(self) -> str:
        """What gdb's ``target remote`` takes."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Nobody from elsewhere can connect."""
        return ipaddress.ip_address(self.host).is_loopback


def parse_address(text: str, *, anywhere: bool = False) -> UnixAddress | TcpAddress:
    """``unix:PATH`` or ``tcp:HOST:PORT``; UsageError for another, or for a host that is not this one."""
    kind, _, rest = text.partition(":")
    if kind == "unix" and rest and "\0" not in rest:
        return UnixAddress(rest)
    host, _, port = rest.rpartition(":")
    host = host[1:-1] if host[:1] == "[" and host[-1:] == "]" else host
    host = "127.0.0.1" if host == "localhost" else host
    if kind != "tcp" or not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise errors.UsageError(f"'{text}' is no address to listen on", help=f"give {_HOW}")
    try:
        address = TcpAddress(str(ipaddress.ip_address(host)), int(port))
    except ValueError:
        raise errors.UsageError(f"'{host}' is not a numeric address", help=f"give {_HOW}") from None
    if not address.loopback and not anywhere:
        raise errors.UsageError(
            f"whoever can reach {text} could read the guest's memory",
            help="listen on a Unix socket or on loopback, and forward it through ssh; or say --listen-anywhere",
        )
    return address


@contextmanager
def listening(
    address: UnixAddress | TcpAddress,
) -> Iterator[tuple[socket.socket, UnixAddress | TcpAddress]]:
    """A listening socket and the address that it got; a Unix socket is removed at the end."""
    if isinstance(address, TcpAddress):
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address.host, address.port))
            listener.listen(1)
            yield listener, TcpAddress(address.host, listener.getsockname()[1])
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        _bind_path(listener, address.path)
        try:
            listener.listen(1)
            yield listener, address
        finally:
            with suppress(FileNotFoundError):
                Path(address.path).unlink()


def _bind_path(listener: socket.socket, path: str) -> None:
    """Bind with mode 0600; a socket that a killed server left behind is replaced, nothing else is."""
    if _abandoned(path):
        Path(path).unlink()
    mask = os.umask(0o177)
    try:
        listener.bind(path)
    except OSError as error:
        # the length of a path that is too long has no errno, and bind() names no file
        raise errors.UsageError(f"cannot listen on {path}: {error.strerror or error}") from error
    finally:
        os.umask(mask)


def _abandoned(path: str) -> bool:
    if not Path(path).is_socket():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError as error:
            return error.errno == errno.ECONNREFUSED
    return False
