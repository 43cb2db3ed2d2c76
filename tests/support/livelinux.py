"""A real Linux that runs under emulation, for as long as a test needs it: it echoes what is typed on its console.

with live_linux(directory) as guest:
    guest.type(b"hello\\n")
    guest.wait_for(b"hello")

Its kernel is the lab's, without KASLR: functions are where its ``vmlinux`` says. Typing needs nobody's help, so that
a debugger may have the guest stopped meanwhile.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sevkvm.lab import cpio
from sevkvm.lab.debian import LabUnavailable, find_busybox, find_kernel
from sevkvm.lab.files import cache_directory
from sevkvm.memory.source import Slot
from tests.support.qemu import QemuVmm, qemu, require_qemu

RAM_NBYTES = 128 << 20
_READY = b"sevkvm-live"
_SCRIPT = b"#!/bin/busybox sh\necho sevkvm-live\nexec /bin/busybox cat\n"
_BOOT_SECONDS = 120.0


@dataclass
class LiveLinux:
    """``release``: of its kernel. ``typed``: a path to write what is typed to."""

    vmm: QemuVmm
    release: str
    typed: Path
    console: int = field(repr=False)
    seen: bytes = b""

    @property
    def slots(self) -> list[Slot]:
        """RAM but for the first MiB, in which the firmware shows other things."""
        low = 1 << 20
        return [Slot(low, RAM_NBYTES - low, self.vmm.gpa2hva(low), "ram")]

    def type(self, text: bytes) -> None:
        """On its keyboard, so to speak."""
        self.typed.open("r+b", buffering=0).write(text)

    def wait_for(self, text: bytes, seconds: float = 60.0) -> bytes:
        """What it prints up to ``text``, which is taken off."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.console], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no {text!r} in {self.seen[-2000:]!r}"
            self.seen += os.read(self.console, 65536)
        before, _, self.seen = self.seen.partition(text)
        return before


@contextmanager
def live_linux(directory: Path) -> Iterator[LiveLinux]:
    """Boot it, which takes seconds; a skip that says why where it cannot be had."""
    require_qemu()
    cache = cache_directory()
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        busybox, kernel = find_busybox(cache, print), find_kernel(cache, print)
    except LabUnavailable as error:
        pytest.skip(f"{error} ({error.help})")
    initrd = directory / "initrd"
    initrd.write_bytes(_archive(busybox.read_bytes()))
    serial = directory / "serial"
    for end in ("in", "out"):
        os.mkfifo(f"{serial}.{end}", 0o600)
    console = os.open(f"{serial}.out", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    extra = ["-cpu", "EPYC", "-chardev", f"pipe,id=serial,path={serial}", "-serial", "chardev:serial"]
    extra += ["-no-reboot", "-kernel", str(kernel), "-initrd", str(initrd)]
    extra += ["-append", "console=ttyS0 nokaslr quiet panic=-1 mitigations=off cryptomgr.notests"]
    try:
        with qemu(accel="tcg", ram=f"{RAM_NBYTES >> 20}M", stopped=False, extra=extra) as vmm:
            release = kernel.name.removeprefix("vmlinuz-")
            guest = LiveLinux(vmm, release, Path(f"{serial}.in"), console)
            guest.wait_for(_READY, _BOOT_SECONDS)
            yield guest
    finally:
        os.close(console)


def _archive(busybox: bytes) -> bytes:
    entries = [cpio.directory(name) for name in ("bin", "dev")]
    entries.append(cpio.character_device("dev/console", 5, 1))
    entries += [cpio.program("bin/busybox", busybox), cpio.program("init", _SCRIPT)]
    return cpio.archive(entries)
