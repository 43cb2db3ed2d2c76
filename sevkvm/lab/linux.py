"""A real Linux as an encrypted guest: booted once under emulation, then sealed with a C-bit.

Both steps are kept in a cache (the boot takes seconds, the sealing about one), keyed by all that goes in: kernel,
busybox, machine, and the source of this package.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Final

from sevkvm.abi.kvm import Regs, Sregs
from sevkvm.abi.x86 import CR3_ADDRESS_MASK
from sevkvm.lab import debian, initrd
from sevkvm.lab.emulator import Emulator, Machine
from sevkvm.lab.files import (
    cache_directory,
    copy_sparse,
    mapped,
    one_at_a_time,
    prune,
    publish,
    write_private,
)
from sevkvm.lab.image import VcpuInit
from sevkvm.lab.seal import Seal, seal
from sevkvm.lab.sealed import PlainLinux, SealedLinux
from sevkvm.lab.vmcoreinfo import VmcoreInfo, find_vmcoreinfo, set_sme_mask

BOOT_SECONDS: Final = 120.0
DEFAULT_MACHINE: Final = Machine()
# A change of one of these may change what is kept.
_SOURCES: Final = (
    *("cpio", "emulator", "initrd", "keeper", "linux"),
    *("registers", "seal", "sealed", "vmcoreinfo"),
)
_UNUSED_SECONDS: Final = 14 * 24 * 3600

Progress = Callable[[str], None]


def silent(line: str) -> None:
    """Progress that nobody looks at."""


def plain_linux(
    machine: Machine = DEFAULT_MACHINE,
    *,
    cache: Path | None = None,
    kernel: Path | None = None,
    progress: Progress = silent,
    seconds: float = BOOT_SECONDS,
) -> PlainLinux:
    """A Linux booted on ``machine``, from the cache if it was booted before.

    ``kernel``: a ``vmlinuz``; by default the host's, or Debian's. ``progress`` gets one line at a time.
    LabUnavailable if kernel, busybox or QEMU cannot be had; TargetTimeout if the boot takes longer than ``seconds``.
    """
    cache = cache_directory() if cache is None else cache
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    vmlinuz = debian.find_kernel(cache, progress) if kernel is None else kernel
    archive = initrd.build(debian.find_busybox(cache, progress).read_bytes())
    final = cache / f"linux-{_key(vmlinuz.read_bytes(), archive, repr(machine).encode())}"
    with one_at_a_time(final):
        if not final.exists():
            prune(cache, "linux-*", _UNUSED_SECONDS)
            with publish(final) as directory, tempfile.TemporaryDirectory(prefix="sevkvm-lab-") as name:
                progress(f"booting {vmlinuz.name} under emulation")
                _boot(machine, vmlinuz, archive, directory, Path(name), progress, seconds)
    return _load_plain(final, machine)


def sealed_linux(
    machine: Machine = DEFAULT_MACHINE,
    *,
    cbit_pos: int = 51,
    cache: Path | None = None,
    kernel: Path | None = None,
    progress: Progress = silent,
    seconds: float = BOOT_SECONDS,
) -> SealedLinux:
    """:func:`plain_linux`, sealed with the C-bit at ``cbit_pos`` (47 and 51 are in use)."""
    plain = plain_linux(machine, cache=cache, kernel=kernel, progress=progress, seconds=seconds)
    final = plain.directory.with_name(f"{plain.directory.name}-c{cbit_pos}")
    with one_at_a_time(final):
        if not final.exists():
            with publish(final) as directory:
                progress(f"sealing: C-bit {cbit_pos} into the page tables of every process")
                _seal(plain, cbit_pos, directory)
    return _load_sealed(plain, final)


def _boot(
    machine: Machine,
    kernel: Path,
    archive: bytes,
    directory: Path,
    scratch: Path,
    progress: Progress,
    seconds: float,
) -> None:
    """Fill ``directory`` with ``ram`` and ``boot.json``; ``scratch`` is for what is needed meanwhile."""
    ram = directory / "ram"
    ram.touch(mode=0o600)
    initrd_path = write_private(scratch / "initrd", archive)
    with Emulator(machine, kernel, initrd_path, ram, scratch, seconds) as emulator:
        console = emulator.run_until(initrd.READY, progress)
        vcpus = emulator.stop()
    state = {"console": console, "vcpus": [_pack(vcpu) for vcpu in vcpus]}
    write_private(directory / "boot.json", json.dumps(state).encode())


def _seal(plain: PlainLinux, cbit_pos: int, directory: Path) -> None:
    """Fill ``directory`` with ``ram`` and ``seal.json``."""
    copy_sparse(plain.ram, directory / "ram")
    levels = plain.machine.levels
    top_gpa = plain.vcpus[0].sregs.cr3 & CR3_ADDRESS_MASK
    ram = mapped(directory / "ram", writable=True)
    done = seal(ram, top_gpa, levels=levels, cbit_pos=cbit_pos, private_ranges=plain.private_ranges)
    note = find_vmcoreinfo(ram)
    if note is not None:
        note = set_sme_mask(ram, note, cbit_pos)
    state = {"seal": asdict(done), "vmcoreinfo": None if note is None else asdict(note)}
    write_private(directory / "seal.json", json.dumps(state).encode())


def _load_plain(directory: Path, machine: Machine) -> PlainLinux:
    state = json.loads((directory / "boot.json").read_bytes())
    os.utime(directory)  # says to prune() that it is in use
    return PlainLinux(directory, machine, state["console"], tuple(_unpack(*each) for each in state["vcpus"]))


def _load_sealed(plain: PlainLinux, directory: Path) -> SealedLinux:
    state = json.loads((directory / "seal.json").read_bytes())
    os.utime(directory)
    done = Seal(**state["seal"])
    done.tables = {int(gpa): level for gpa, level in done.tables.items()}  # JSON made the keys strings
    note = VmcoreInfo(**state["vmcoreinfo"]) if state["vmcoreinfo"] else None
    cbit = 1 << done.cbit_pos
    vcpus = tuple(VcpuInit(vcpu.regs, vcpu.sregs._replace(cr3=vcpu.sregs.cr3 | cbit)) for vcpu in plain.vcpus)
    return SealedLinux(plain, directory, done, note, vcpus)


def _pack(vcpu: VcpuInit) -> tuple[str, str]:
    return vcpu.regs.pack().hex(), vcpu.sregs.pack().hex()


def _unpack(regs: str, sregs: str) -> VcpuInit:
    return VcpuInit(Regs.unpack(bytes.fromhex(regs)), Sregs.unpack(bytes.fromhex(sregs)))


def _key(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for name in _SOURCES:
        digest.update(hashlib.sha256(Path(__file__).with_name(f"{name}.py").read_bytes()).digest())
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:16]
