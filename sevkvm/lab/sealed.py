"""The lab's Linux as data: what was booted, what was sealed, and what is known to be in it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Final

from sevkvm.abi.x86 import CR3_ADDRESS_MASK
from sevkvm.lab.emulator import Machine
from sevkvm.lab.files import mapped
from sevkvm.lab.image import Image, Landmark, Region, Slot, VcpuInit
from sevkvm.lab.initrd import KEEPERS
from sevkvm.lab.keeper import SECRET_GVA, SECRET_NBYTES
from sevkvm.lab.seal import Seal, translate
from sevkvm.lab.vmcoreinfo import VmcoreInfo

# A PC's video memory and ROMs: not RAM to the guest, though QEMU keeps bytes there. Never private.
LEGACY_HOLE: Final = (0xA_0000, 0x10_0000)


@dataclass(frozen=True)
class PlainLinux:
    """A booted Linux before sealing."""

    directory: Path
    machine: Machine
    console: str
    vcpus: tuple[VcpuInit, ...]

    @property
    def ram(self) -> Path:
        """RAM from gpa 0 up, page tables without C-bit; a sparse file."""
        return self.directory / "ram"

    @cached_property
    def facts(self) -> dict[str, str]:
        """What the guest said of itself: ``version``, ``vmcoreinfo``, ``keeper.NAME.pid``, ``symbol.NAME``."""
        said = [line.partition("sevkvm-fact ") for line in self.console.splitlines()]
        facts = (fact.partition("=") for before, mark, fact in said if mark and not before)
        return {name: value for name, _, value in facts}

    @property
    def private_ranges(self) -> tuple[tuple[int, int], ...]:
        """Guest RAM as half-open gpa ranges; the rest of the file is the legacy hole."""
        return (0, LEGACY_HOLE[0]), (LEGACY_HOLE[1], self.machine.ram_nbytes)

    @cached_property
    def image(self) -> Image:
        """For a launcher: a plain guest, for comparison."""
        return _image(self, self.ram, self.vcpus, None)


@dataclass(frozen=True)
class SealedLinux:
    """The same Linux as a SEV guest. ``vcpus`` have the C-bit in CR3."""

    plain: PlainLinux
    directory: Path
    seal: Seal
    vmcoreinfo: VmcoreInfo | None
    vcpus: tuple[VcpuInit, ...]

    @property
    def ram(self) -> Path:
        """The plaintext from gpa 0 up: what a dump must return, byte for byte; a sparse file."""
        return self.directory / "ram"

    @cached_property
    def image(self) -> Image:
        """For a launcher: private RAM, shared legacy hole; the file stays mapped as long as the image lives."""
        return _image(self.plain, self.ram, self.vcpus, self.seal.cbit_pos)

    @cached_property
    def keeper_roots(self) -> dict[str, int]:
        """The gpa of each keeper process's top table, by the keeper's name."""
        found: dict[str, int] = {}
        ram = mapped(self.ram)
        for root in self.seal.roots:
            gpa = translate(ram, root, self.seal.levels, SECRET_GVA, self.seal.cbit_pos)
            secret = b"" if gpa is None else bytes(ram[gpa : gpa + SECRET_NBYTES])
            found |= {keeper.name: root for keeper in KEEPERS if keeper.secret == secret}
        return found


def _image(plain: PlainLinux, ram: Path, vcpus: tuple[VcpuInit, ...], cbit_pos: int | None) -> Image:
    nbytes = plain.machine.ram_nbytes
    data = mapped(ram)
    regions = tuple(
        Region(
            start,
            end - start,
            private=cbit_pos is not None and (start, end) != LEGACY_HOLE,
            data=data[start:end],
        )
        for start, end in pairwise((0, *LEGACY_HOLE, nbytes))
    )
    slots = (Slot(0, nbytes, "ram"),)
    return Image(slots, regions, vcpus, cbit_pos, landmarks=_landmarks(plain))


def _landmarks(plain: PlainLinux) -> tuple[Landmark, ...]:
    """The kernel's banner, through the first vCPU's tables."""
    gva = int(plain.facts.get("symbol.linux_banner", "0"), 16)
    root = plain.vcpus[0].sregs.cr3 & CR3_ADDRESS_MASK
    gpa = translate(mapped(plain.ram), root, plain.machine.levels, gva, None)
    nbytes = len(plain.facts.get("version", ""))
    return () if gpa is None or not nbytes else (Landmark("linux_banner", gva, gpa, nbytes),)
