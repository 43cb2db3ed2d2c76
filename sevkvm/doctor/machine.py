"""Everything that the doctor looks at, in one object: roots of file systems and a few questions.

Tests hand in a made-up machine; nothing else in this package touches the system.
"""

from __future__ import annotations

import ctypes
import grp
import importlib.util
import os
import pwd
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sevkvm import native
from sevkvm.abi.sev import PlatformStatus
from sevkvm.host.holders import SameFile
from sevkvm.host.procfs import PROC
from sevkvm.host.sevdev import SevDevice

_VERSION_SECONDS = 5.0


class Owner(NamedTuple):
    """Of a file: numeric ids, and the permission bits of its mode."""

    uid: int
    gid: int
    mode: int


def owner_of(path: Path) -> Owner | None:
    """None where there is no such file."""
    try:
        told = path.stat()
    except OSError:
        return None
    return Owner(told.st_uid, told.st_gid, told.st_mode & 0o7777)


def may_read_and_write(path: Path) -> bool:
    """May we, by our effective ids? Nothing is opened."""
    return os.access(path, os.R_OK | os.W_OK, effective_ids=True)


def platform_status(path: str) -> PlatformStatus:
    """PLATFORM_STATUS of the secure processor: it changes nothing. Raises what SevDevice raises."""
    with SevDevice(path) as device:
        return device.platform_status()


def program_version(name: str) -> str | None:
    """The first line of ``NAME --version``; empty if it says nothing, None if there is no such program."""
    path = shutil.which(name)
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_VERSION_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout[:1000].decode(errors="replace").partition("\n")[0]


def has_module(name: str) -> bool:
    """Is this Python module installed?"""
    return importlib.util.find_spec(name) is not None


def has_library(name: str) -> bool:
    """Can this C library be loaded?"""
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class Machine:
    """A host. ``deputy_check(pid)`` raises what attaching would refuse; ``release()`` is uname's."""

    proc: Path = PROC
    sys: Path = Path("/sys")
    dev: Path = Path("/dev")
    cpuid: Callable[[int], tuple[int, int, int, int]] = native.cpuid
    release: Callable[[], str] = lambda: os.uname().release
    owner_of: Callable[[Path], Owner | None] = owner_of
    may_use: Callable[[Path], bool] = may_read_and_write
    platform_status: Callable[[str], PlatformStatus] = platform_status
    program_version: Callable[[str], str | None] = program_version
    has_module: Callable[[str], bool] = has_module
    has_library: Callable[[str], bool] = has_library
    same_file: SameFile = native.same_file
    deputy_check: Callable[[int], None] = native.deputy_check

    def text(self, path: Path) -> str | None:
        """A small file without the white space around it; None where it cannot be read."""
        try:
            return path.read_text(errors="replace").strip()
        except OSError:
            return None

    def namespace(self, pid: int | str, kind: str) -> str | None:
        """``kind:[INODE]`` as /proc tells it; None where it does not."""
        try:
            return str((self.proc / str(pid) / "ns" / kind).readlink())
        except OSError:
            return None


def user_name(uid: int) -> str:
    """A user's name, or ``uid N``."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return f"uid {uid}"


def group_name(gid: int) -> str:
    """A group's name, or ``gid N``."""
    try:
        return grp.getgrgid(gid).gr_name
    except (KeyError, OverflowError):
        return f"gid {gid}"
