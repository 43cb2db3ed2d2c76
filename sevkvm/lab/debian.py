"""A kernel and a static busybox: the host's own, or unpacked from Debian's packages into a cache.

Nothing is installed; ``apt-get download`` needs no rights. Every command has a time limit.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sevkvm import errors
from sevkvm.lab.files import write_private

KERNEL_META_PACKAGES: Final = ("linux-image-cloud-amd64", "linux-image-amd64")
BUSYBOX_PACKAGE: Final = "busybox-static"
BOOT_DIRECTORY = Path("/boot")
_QUERY_SECONDS: Final = 60
_DOWNLOAD_SECONDS: Final = 600
_FILE_NBYTES_MAX: Final = 64 << 20  # a kernel image is 14 MB

Progress = Callable[[str], None]


class LabUnavailable(errors.SevKvmError):
    """The lab's Linux cannot be had here; the message says what is missing."""


def find_kernel(cache: Path, progress: Progress) -> Path:
    """A bootable ``vmlinuz``: of this host, of the cache, or downloaded into it."""
    installed = [path for path in BOOT_DIRECTORY.glob("vmlinuz-*") if _readable(path)]
    if installed:
        return max(installed, key=lambda path: path.stat().st_mtime)
    cached = sorted(cache.glob("vmlinuz-*"))
    if cached:
        return cached[-1]
    return _from_package(_kernel_package(), r"\./boot/(vmlinuz-.+)", cache, progress)


def find_busybox(cache: Path, progress: Progress) -> Path:
    """A statically linked busybox: of this host, of the cache, or downloaded into it."""
    for path in (Path("/bin/busybox"), Path("/usr/bin/busybox"), cache / "busybox"):
        if _readable(path) and is_static(path.read_bytes()):
            return path
    return _from_package(BUSYBOX_PACKAGE, r"\./(?:usr/)?bin/(busybox)", cache, progress)


def is_static(elf: bytes) -> bool:
    """Does this 64-bit ELF executable name no interpreter (PT_INTERP)?"""
    if elf[:5] != b"\x7fELF\x02" or len(elf) < 64:
        return False
    offset = int.from_bytes(elf[32:40], "little")
    size = int.from_bytes(elf[54:56], "little")
    count = int.from_bytes(elf[56:58], "little")
    types = [int.from_bytes(elf[offset + i * size :][:4], "little") for i in range(count)]
    return 3 not in types


def _readable(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return bool(file.read(1))
    except OSError:
        return False  # some distributions keep kernels for root only


def _run(argv: list[str], seconds: int, cwd: Path | None = None) -> str:
    if shutil.which(argv[0]) is None:
        raise LabUnavailable(f"{argv[0]} not found", help=_HELP)
    try:
        done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise LabUnavailable(f"{argv[0]} did not finish within {seconds} s", help=_HELP) from error
    if done.returncode:
        raise LabUnavailable(f"{' '.join(argv)}: {done.stderr.strip()[-300:]}", help=_HELP)
    return done.stdout


def _kernel_package() -> str:
    """The package with the image, which a meta package depends on."""
    for meta in KERNEL_META_PACKAGES:
        match = re.search(
            r"Depends: (linux-image-\d\S+)", _run(["apt-cache", "depends", meta], _QUERY_SECONDS)
        )
        if match:
            return match.group(1)
    raise LabUnavailable("apt knows no Linux kernel package", help=_HELP)


def _from_package(package: str, pattern: str, cache: Path, progress: Progress) -> Path:
    """Download a package and keep the one member whose path matches; its group 1 is the file's name."""
    with tempfile.TemporaryDirectory(prefix=".download-", dir=cache) as name:
        directory = Path(name)
        progress(f"downloading {package}")
        _run(["apt-get", "download", "-q", package], _DOWNLOAD_SECONDS, directory)
        (deb,) = directory.glob("*.deb")
        progress(f"unpacking {package}")
        unpacked = directory / "data.tar"
        with unpacked.open("wb") as out:
            subprocess.run(
                ["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=out, timeout=_DOWNLOAD_SECONDS, check=True
            )
        with tarfile.open(unpacked) as tar:
            for member in tar:
                match = re.fullmatch(pattern, member.name)
                file = tar.extractfile(member) if match and member.isfile() else None
                if match and file and member.size <= _FILE_NBYTES_MAX:
                    return write_private(cache / match.group(1), file.read())
    raise LabUnavailable(f"{package} has no file {pattern}", help=_HELP)


_HELP: Final = (
    "install a kernel and a static busybox (Debian: apt install linux-image-cloud-amd64 busybox-static), or let "
    "apt download them (apt-get update)"
)
