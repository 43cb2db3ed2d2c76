"""Files that a SEV host has and this machine may not: as stat(2) tells of them, and what is in them.

Device nodes are there for everybody here, so their mode says so. The rest is kvm_amd's module parameters, as sysfs
shows them (``module_param(..., bool, 0444)``). A path is known only as it is written here.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import time
from dataclasses import dataclass
from typing import Final

from sevkvm.shim.firmware import Firmware

_PARAMETERS: Final = "/sys/module/kvm_amd/parameters"
_DIRECTORIES: Final = ("/sys/module/kvm_amd", _PARAMETERS)
# struct stat of x86-64 (arch/x86/include/uapi/asm/stat.h): 144 bytes
_STAT: Final = struct.Struct("<3Q3I4xQ3q6Q24x")
# struct statx (include/uapi/linux/stat.h): 256 bytes
_STATX: Final = struct.Struct("<IIQIIIH2x4Q16s16s16s16s4I112x")
_STATX_TIME: Final = struct.Struct("<qI4x")
_STATX_BASIC_STATS: Final = 0x7FF
_BLOCK_NBYTES: Final = 4096
_OWN_DEVICE: Final = 0x5E  # st_dev: none that a file system has


@dataclass(frozen=True)
class HostFile:
    """One file. ``device`` is (major, minor) of a node, ``content`` a text file's."""

    path: str
    mode: int
    inode: int
    device: tuple[int, int] = (0, 0)
    content: bytes = b""

    def stat(self, born: float) -> bytes:
        """``struct stat``."""
        times = [int(born), int(born % 1 * 1e9)] * 3
        rdev = os.makedev(*self.device)
        blocks = _BLOCK_NBYTES, 0
        return _STAT.pack(_OWN_DEVICE, self.inode, 1, self.mode, 0, 0, rdev, self._nbytes, *blocks, *times)

    def statx(self, born: float) -> bytes:
        """``struct statx``: the basic fields, whatever was asked for."""
        moment = _STATX_TIME.pack(int(born), int(born % 1 * 1e9))
        numbers = *self.device, os.major(_OWN_DEVICE), os.minor(_OWN_DEVICE)
        sizes = self.inode, self._nbytes, 0, 0
        return _STATX.pack(
            _STATX_BASIC_STATS, _BLOCK_NBYTES, 0, 1, 0, 0, self.mode, *sizes, *[moment] * 4, *numbers
        )

    def access(self, wanted: int) -> int:
        """access(2): 0 or -errno. Nobody may write or execute what has no such bit."""
        allowed = self.mode & 0o7
        return 0 if wanted & 0o7 & ~allowed == 0 else -errno.EACCES

    @property
    def _nbytes(self) -> int:
        return _BLOCK_NBYTES if self.content else 0  # sysfs says one page of every attribute


class HostFiles:
    """All of them, on one host. ``nodes``: path to (major, minor)."""

    def __init__(self, firmware: Firmware, nodes: dict[str, tuple[int, int]]) -> None:
        self._firmware = firmware
        self.born = time.time()
        self._files: dict[str, HostFile] = {}
        for path, device in nodes.items():
            self._add(path, stat.S_IFCHR | 0o666, device=device)
        for path in _DIRECTORIES:
            self._add(path, stat.S_IFDIR | 0o755)
        for name, answer in self._parameters().items():
            self._add(f"{_PARAMETERS}/{name}", stat.S_IFREG | 0o444, content=answer)

    def _parameters(self) -> dict[str, bytes]:
        es = b"Y\n" if self._firmware.es_enabled else b"N\n"
        return {"sev": b"Y\n", "sev_es": es, "sev_snp": b"N\n"}

    def _add(self, path: str, mode: int, device: tuple[int, int] = (0, 0), content: bytes = b"") -> None:
        self._files[path] = HostFile(path, mode, len(self._files) + 1, device, content)

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path."""
        return tuple(self._files)

    def get(self, path: str) -> HostFile | None:
        """The file at a path; None if it is none of these."""
        return self._files.get(path)

    def open(self, path: str, flags: int) -> int | None:
        """A descriptor of ours for a text file, -errno, or None if it is none of these."""
        file = self._files.get(path)
        if file is None or not file.content:
            return None
        if flags & os.O_ACCMODE != os.O_RDONLY:
            return -errno.EACCES
        content = os.memfd_create(os.path.basename(path), os.MFD_CLOEXEC)  # noqa: PTH119  a name, no path
        try:
            os.write(content, file.content)
            return os.open(f"/proc/self/fd/{content}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(content)
