"""ioctl(2) for a VMM: the kernel's result, or an exception that knows the request's name."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from sevkvm import errors, native
from sevkvm.abi.kvm import request_name

START_HELP = "start it on an EPYC host, or under `sevkvm shim -- sevkvm lab`"


def ioctl(fd: int, request: int, argument: bytearray | int = 0) -> int:
    """Issue it with a number, or with the address of a buffer that the kernel may write; IoctlError."""
    value = argument if isinstance(argument, int) else native.address_of(argument)
    result = native.ioctl(fd, request, value)
    if result < 0:
        raise errors.IoctlError(request_name(request), -result)
    return result


def open_device(path: str, help: str) -> int:
    """Open a device for reading and writing; PlatformUnsupported with ``help`` where there is none."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError as error:
        raise errors.SevKvmError(
            f"{path}: {os.strerror(errno.EACCES)}", help=f"who may use it: ls -l {Path(path)}"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            raise
        raise errors.PlatformUnsupported(f"no {path}", help=help) from error


def open_kvm() -> int:
    """Open /dev/kvm."""
    return open_device("/dev/kvm", "load the KVM module, or use `sevkvm shim -- sevkvm lab`")
