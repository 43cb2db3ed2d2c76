"""The debug symbols of the lab's kernel: readers find types and variables by them.

Debian has them in a package of 280 MB, of which one file is kept in the lab's cache, a smaller copy of it. They are
downloaded only where SEVKVM_TEST_DEBUG_SYMBOLS=1 says so; scripts/test does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from sevkvm.lab.files import cache_directory, one_at_a_time
from tests.support.readers.isf import write_isf

PERMISSION = "SEVKVM_TEST_DEBUG_SYMBOLS"
_SECONDS = 900
_ROOM_NBYTES = 3 << 30


def require_vmlinux(release: str) -> Path:
    """The kernel's ``vmlinux`` with DWARF and symbols."""
    path = cache_directory() / f"vmlinux-{release}"
    if not path.exists():
        if os.environ.get(PERMISSION) != "1":
            pytest.skip(f"no debug symbols of Linux {release}; {PERMISSION}=1 downloads Debian's (280 MB)")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with one_at_a_time(path):
            if not path.exists():
                _download(release, path)
    return path


def require_isf(release: str) -> Path:
    """A directory of symbol tables for volatility3 with this kernel's."""
    vmlinux = require_vmlinux(release)
    directory = cache_directory() / f"isf-{release}"
    table = directory / "linux" / "kernel.json.xz"
    if not table.exists():
        table.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with one_at_a_time(directory), tempfile.TemporaryDirectory(dir=directory) as scratch:
            if not table.exists():
                made = Path(scratch) / table.name
                write_isf(vmlinux, made)
                made.replace(table)
    return directory


def _download(release: str, path: Path) -> None:
    for program in ("apt-get", "dpkg-deb", "tar", "objcopy"):
        if shutil.which(program) is None:
            pytest.skip(f"no debug symbols of Linux {release}: {program} not found")
    if shutil.disk_usage(path.parent).free < _ROOM_NBYTES:
        pytest.skip(f"no debug symbols of Linux {release}: less than 3 GiB free in {path.parent}")
    package = f"linux-image-{release}-dbg"
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        scratch = Path(name)
        done = subprocess.run(
            ["apt-get", "download", "-q", package],
            cwd=scratch,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
        if done.returncode:
            pytest.skip(f"no debug symbols: apt-get download {package}: {done.stderr.strip()[-200:]}")
        (deb,) = scratch.glob("*.deb")
        member = f"./usr/lib/debug/boot/vmlinux-{release}"
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as unpacking:
            argv = ["tar", "-x", "-C", str(scratch), "--strip-components=5", member]
            subprocess.run(argv, stdin=unpacking.stdout, timeout=_SECONDS, check=True)
        # Half of it is relocations, which nobody needs of a kernel that is linked.
        small = scratch / "small"
        subprocess.run(["objcopy", "-R", ".rela*", scratch / path.name, small], timeout=_SECONDS, check=True)
        small.replace(path)
