"""The kernel's own walker is the judge: random tables, thousands of addresses, equal answers."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from sevkvm.paging.form import PagingForm, PagingMode
from sevkvm.paging.scan import leaves
from sevkvm.paging.walk import translate
from tests.support.plainvm import PlainVm
from tests.support.qemu import require_kvm
from tests.support.tables import GIB1, NX, PS, RW, US, P

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.kvm

RAM = 16 << 20
TABLES_PER_LEVEL = 6
ADDRESSES = 2000


@dataclass
class RamReader:
    """Tables straight from the VM's memory, with ``cbit`` set in every present entry on the way."""

    vm: PlainVm
    cbit: int = 0
    cache: dict[int, bytes] = field(default_factory=dict)

    def read_tables(self, gpas: Sequence[int], *, keep: bool = True) -> list[bytes | None]:
        return [self._cached(gpa) if gpa + 4096 <= RAM else None for gpa in gpas]

    def _cached(self, gpa: int) -> bytes:
        if gpa not in self.cache:
            self.cache[gpa] = self._read(gpa)
        return self.cache[gpa]

    def _read(self, gpa: int) -> bytes:
        entries = struct.unpack_from("<512Q", self.vm.ram, gpa)
        return struct.pack("<512Q", *(entry | self.cbit if entry & P else entry for entry in entries))


def random_tables(rng: random.Random, vm: PlainVm, levels: int, nx: bool) -> int:
    """Fill the VM's first pages with tables: mostly sound ones, some cyclic, reserved or out of memory."""
    gpas = {level: [0x1000 * (level * 8 + i) for i in range(TABLES_PER_LEVEL)] for level in range(1, 6)}
    for level in range(1, levels + 1):
        for table in gpas[level]:
            entries = [random_entry(rng, level, gpas, 3 if nx else 30) for _ in range(512)]
            struct.pack_into("<512Q", vm.ram, table, *entries)
    return gpas[levels][0]


def random_entry(rng: random.Random, level: int, gpas: dict[int, list[int]], nx_in: int) -> int:
    """``nx_in``: one entry in so many has bit 63 set."""
    flags = P | rng.choice([0, RW]) | rng.choice([0, US]) | rng.choice([0, 0x7F << 52])
    flags |= 0 if rng.randrange(nx_in) else NX
    kind = rng.random()
    if kind < 0.1:
        return rng.getrandbits(64) & ~P
    if level == 1:
        # bit 7 is PAT here
        return rng.randrange(1 << 24) << 12 | flags | rng.choice([0, PS])
    if kind < 0.2:
        page_nbytes = 1 << 12 + 9 * (level - 1)
        return rng.randrange(16) * min(page_nbytes, GIB1) | flags | PS | rng.choice([0, 1 << 12])
    if kind < 0.25:  # not aligned to the page's size
        return rng.randrange(1 << 20) << 12 | flags | PS
    if kind < 0.3:  # any page of the tables, of whatever level
        return rng.choice(gpas[rng.randrange(1, 6)]) | flags
    if kind < 0.35:  # where there is no memory
        return RAM + rng.randrange(1 << 20) * 4096 | flags
    return rng.choice(gpas[level - 1]) | flags


def random_gva(rng: random.Random, levels: int) -> int:
    bits = 12 + 9 * levels
    gva = rng.getrandbits(bits)
    return gva | (1 << 64) - (1 << bits) if gva >> bits - 1 else gva


@pytest.fixture
def vm() -> PlainVm:
    require_kvm()
    return PlainVm(RAM)


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("nx", [True, False], ids=["nx", "no-nx"])
@pytest.mark.parametrize("seed", range(2))
def test_kvm_finds_what_we_find(vm: PlainVm, levels: int, nx: bool, seed: int) -> None:
    rng = random.Random(f"{levels} {nx} {seed}")
    with vm:
        if nx and not vm.has_nx:
            pytest.skip("this KVM's CPUID has no NX")
        root = random_tables(rng, vm, levels, nx)
        if not vm.set_paging(root, levels=levels, nx=nx):
            pytest.skip(f"this KVM does not take {levels}-level paging")
        plain = PagingForm(PagingMode(levels), root, nx=nx)
        encrypted = PagingForm(PagingMode(levels), root, 51, nx=nx)
        spans = list(leaves(RamReader(vm, 1 << 51), [encrypted]).ranges(True))
        plain_reader, sealed_reader = RamReader(vm), RamReader(vm, 1 << 51)
        hits = giants = 0
        for _ in range(ADDRESSES):
            gva = random_gva(rng, levels)
            theirs = vm.translate(gva)
            ours = translate(plain_reader, plain, gva)
            if ours.page_nbytes == GIB1 and not vm.has_giant_pages:
                giants += 1
                assert theirs is None, hex(gva)
                continue
            assert ours.gpa == theirs, (hex(gva), ours)
            # the same tables with the C-bit everywhere: the same answer, and private
            sealed = translate(sealed_reader, encrypted, gva)
            assert (sealed.gpa, sealed.fault) == (ours.gpa, ours.fault)
            assert sealed.private == (sealed.gpa is not None)
            if ours.gpa is not None:
                hits += 1
                assert any(start <= ours.gpa < end for start, end in spans)
        assert hits > ADDRESSES // 10  # or nothing has been compared
        assert vm.has_giant_pages or giants
