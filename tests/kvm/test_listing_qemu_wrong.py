"""Where QEMU 7.2's monitor is wrong: what it prints, what we print, and why. One test a difference.

A later QEMU that prints something else makes these fail: then they have told their news.
"""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Iterator

import pytest

from sevkvm.paging.listing import Listing
from sevkvm.paging.walk import translate
from tests.support.emulated import PAGED_MODES, Emulated, Mode, emulated
from tests.support.ours import form_of, our_mem, our_tlb
from tests.support.randomtables import RandomTables
from tests.support.refwalk import NX, PS, RW, US, P, reference_leaves, reference_mem, reference_tlb

pytestmark = pytest.mark.kvm

GIB = 1 << 30
TOP, MIDDLE, LOWER, LOWEST = 0x1000, 0x2000, 0x3000, 0x4000


@pytest.fixture(scope="module")
def started() -> Iterator[Emulated]:
    with emulated() as machine:
        yield machine


@pytest.fixture
def machine(started: Emulated) -> Emulated:
    started.ram[TOP : LOWEST + 4096] = bytes(4 * 4096)
    return started


def put(machine: Emulated, gpa: int, entries: dict[int, int], code: str = "Q") -> None:
    for index, entry in entries.items():
        struct.pack_into(f"<{code}", machine.ram, gpa + index * struct.calcsize(code), entry)


def ours(machine: Emulated, mode: Mode, *, nx: bool = True) -> tuple[str, str]:
    machine.set_paging(mode, TOP, nx=nx)
    form = form_of(mode, TOP, nx=nx)
    return our_tlb(machine.reader(), form), our_mem(machine.reader(), form)


def our_gpa(machine: Emulated, mode: Mode, gva: int, *, nx: bool = True) -> int | None:
    return translate(machine.reader(), form_of(mode, TOP, nx=nx), gva).gpa


def test_five_level_runs_take_present_for_not_present(machine: Emulated) -> None:
    """Entries of the two levels of large pages count when they are *not* present; so this is soon over."""
    put(machine, TOP, {0: MIDDLE | P | RW | US})
    put(machine, MIDDLE, {0: LOWER | P | RW | US})
    put(machine, LOWER, {index: index * GIB | P | RW | PS for index in range(512)} | {5: PS | RW | US})
    _, mem = ours(machine, "5level")
    assert machine.info_mem() == "0000000140000000-0000000180000000 0000000040000000 urw\n"
    assert mem == (
        "0000000000000000-0000000140000000 0000000140000000 -rw\n"
        "0000000180000000-0000008000000000 0000007e80000000 -rw\n"
    )


def test_pae_leaves_have_nx_in_their_address(machine: Emulated) -> None:
    put(machine, TOP, {2: MIDDLE | P})
    put(machine, MIDDLE, {0: LOWER | P | RW, 1: 0xABCD_E0_0000 | NX | P | PS})
    put(machine, LOWER, {3: 0x1234_5000 | NX | P | RW})
    tlb, _ = ours(machine, "pae")
    assert machine.info_tlb() == (
        "0000000080003000: 8000000012345000 X-------W\n"  #
        "0000000080200000: 800000abcde00000 X-P------\n"
    )
    assert tlb == (
        "0000000080003000: 0000000012345000 X-------W\n"  #
        "0000000080200000: 000000abcde00000 X-P------\n"
    )


@pytest.mark.parametrize("seed", range(2))
def test_pae_is_right_but_for_the_bits_above_the_address(machine: Emulated, seed: int) -> None:
    tables = RandomTables(random.Random(f"pae nx {seed}"), "pae")
    tables.write(machine.ram)
    machine.set_paging("pae", tables.cr3)
    form = form_of("pae", tables.cr3)
    theirs = machine.info_tlb()
    assert re.search("^.{16}: 8", theirs, re.MULTILINE)
    assert our_tlb(machine.reader(), form) == re.sub(
        "^(.{16}: ).{3}", r"\g<1>000", theirs, flags=re.MULTILINE
    )
    assert our_mem(machine.reader(), form) == machine.info_mem()


def test_pse36_loses_the_high_address_bits(machine: Emulated) -> None:
    """Bits 39:32 of a 4 MiB page's gpa are in bits 20:13; ``gva2gpa`` knows it."""
    put(machine, TOP, {1: 0x0040_0000 | 0xA5 << 13 | P | PS | RW}, "I")
    tlb, _ = ours(machine, "pse")
    assert machine.info_tlb() == "0000000000400000: 0000000000400000 --P-----W\n"
    assert tlb == "0000000000400000: 000000a500400000 --P-----W\n"
    assert machine.gva2gpa(0x40_1234) == our_gpa(machine, "pse", 0x40_1234) == 0xA5_0040_1234


def test_the_two_highest_address_bits_are_lost(machine: Emulated) -> None:
    """``info tlb`` masks with bits 49:12, ``gva2gpa`` with 51:12."""
    put(machine, TOP, {0: MIDDLE | P | RW})
    put(machine, MIDDLE, {0: LOWER | P | RW})
    put(machine, LOWER, {0: LOWEST | P | RW})
    put(machine, LOWEST, {7: 0xF_0000_0000_9000 | P | RW})
    tlb, _ = ours(machine, "4level")
    assert machine.info_tlb() == "0000000000007000: 0003000000009000 --------W\n"
    assert tlb == "0000000000007000: 000f000000009000 --------W\n"
    assert machine.gva2gpa(0x7000) == our_gpa(machine, "4level", 0x7000) == 0xF_0000_0000_9000


def test_cbit_47_is_taken_for_an_address_and_51_is_dropped(machine: Emulated) -> None:
    """QEMU knows of no C-bit. At 51 it goes unseen, at 47 even the walk ends where there is no memory."""
    for cbit_pos, expected in ((51, "0000000000200000: 0000000000400000 --P-----W\n"), (47, "")):
        cbit = 1 << cbit_pos
        put(machine, TOP, {0: MIDDLE | cbit | P | RW})
        put(machine, MIDDLE, {0: LOWER | cbit | P | RW})
        put(machine, LOWER, {1: 0x40_0000 | cbit | P | RW | PS})
        machine.set_paging("4level", TOP)
        assert machine.info_tlb() == expected
        tlb = our_tlb(machine.reader(), form_of("4level", TOP, cbit_pos))
        assert tlb == "0000000000200000: 0000000000400000 --P-----W\n"
    put(machine, TOP, {0: MIDDLE | P | RW})
    put(machine, MIDDLE, {0: LOWER | P | RW})
    assert machine.info_tlb() == "0000000000200000: 0000800000400000 --P-----W\n"


def test_runs_go_on_across_the_middle_of_the_address_space(machine: Emulated) -> None:
    """The text follows QEMU, odd as it is: no address lies between the halves, 2**47 is extended to the upper one,
    2**64 is shown as 2**48, and a size is extended too. Records that are not text keep the halves apart.
    """
    put(machine, MIDDLE, {index: index * GIB | P | RW | PS for index in range(512)})
    expected = {
        range(255, 257): "00007f8000000000-ffff808000000000 0000010000000000 -rw\n",
        range(255, 256): "00007f8000000000-ffff800000000000 0000008000000000 -rw\n",
        range(511, 512): "ffffff8000000000-0001000000000000 0000008000000000 -rw\n",
        range(256): "0000000000000000-ffff800000000000 ffff800000000000 -rw\n",
        range(256, 512): "ffff800000000000-0001000000000000 ffff800000000000 -rw\n",
        range(512): "0000000000000000-0001000000000000 0001000000000000 -rw\n",
    }
    for indexes, text in expected.items():
        machine.ram[TOP:MIDDLE] = bytes(4096)
        put(machine, TOP, dict.fromkeys(indexes, MIDDLE | P | RW))
        _, mem = ours(machine, "4level")
        assert machine.info_mem() == mem == text
        runs = list(Listing(machine.reader(), form_of("4level", TOP)).runs())
        assert len(runs) == (2 if {255, 256} <= set(indexes) else 1)
        assert sum(run.nbytes for run in runs) == len(indexes) * 512 * GIB


def test_reserved_bits_do_not_stop_it(machine: Emulated) -> None:
    """The processor would fault, so we list nothing there (and count it in the report)."""
    put(machine, TOP, {0: MIDDLE | P | RW, 1: MIDDLE | PS | P | RW})
    put(machine, MIDDLE, {0: GIB | P | RW | PS, 1: GIB | 1 << 13 | P | RW | PS, 2: GIB | P | RW | PS | NX})
    tlb, mem = ours(machine, "4level", nx=False)
    theirs = machine.info_tlb()
    assert theirs == (
        "0000000000000000: 0000000040000000 --P-----W\n"
        "0000000040000000: 0000000040000000 --P-----W\n"
        "0000000080000000: 0000000040000000 X-P-----W\n"
        "0000008000000000: 0000000040000000 --P-----W\n"
        "0000008040000000: 0000000040000000 --P-----W\n"
        "0000008080000000: 0000000040000000 X-P-----W\n"
    )
    assert tlb == "0000000000000000: 0000000040000000 --P-----W\n"
    assert mem == "0000000000000000-0000000040000000 0000000040000000 -rw\n"
    assert machine.gva2gpa(GIB) == GIB
    assert our_gpa(machine, "4level", GIB, nx=False) is None


def test_reserved_bits_of_large_pages_shine_through_in_the_32_bit_modes(machine: Emulated) -> None:
    """Bit 21 of a 4 MiB page and bit 20 of PAE's 2 MiB page stay in the address."""
    put(machine, TOP, {0: 0x80_0000 | 1 << 21 | P | PS}, "I")
    assert ours(machine, "pse") == ("", "")
    assert machine.info_tlb() == "0000000000000000: 0000000000a00000 --P------\n"
    put(machine, TOP, {0: MIDDLE | P})
    put(machine, MIDDLE, {0: 0x80_0000 | 1 << 20 | P | PS})
    assert ours(machine, "pae") == ("", "")
    assert machine.info_tlb() == "0000000000000000: 0000000000900000 --P------\n"


@pytest.mark.parametrize("nx", [True, False], ids=["nx", "no-nx"])
@pytest.mark.parametrize("mode", PAGED_MODES)
def test_random_reserved_bits(machine: Emulated, mode: Mode, nx: bool) -> None:
    """QEMU lists what the naive walker lists without a look at them, we what it lists with one."""
    tables = RandomTables(random.Random(f"unsound {mode} {nx}"), mode, unsound=True)
    tables.write(machine.ram)
    machine.set_paging(mode, tables.cr3, nx=nx)
    everything = reference_leaves(machine.read, mode, tables.cr3)
    sound = reference_leaves(machine.read, mode, tables.cr3, sound=True, nx=nx)
    assert sound
    assert (len(sound) < len(everything)) == (mode != "32")
    if mode in ("4level", "5level"):
        assert machine.info_tlb() == reference_tlb(everything)
    form, reader = form_of(mode, tables.cr3, nx=nx), machine.reader()
    assert our_tlb(reader, form) == reference_tlb(sound)
    assert our_mem(reader, form) == reference_mem(sound)


def test_gva2gpa_prints_0_without_0x_and_wraps_at_4_gib(machine: Emulated) -> None:
    put(machine, TOP, {0: P | PS}, "I")
    machine.set_paging("pse", TOP)
    assert machine.vmm.hmp("gva2gpa 0") == "gpa: 0\n"
    assert machine.vmm.hmp("gva2gpa 0x10") == "gpa: 0x10\n"
    assert machine.vmm.hmp("gva2gpa 0x100000010") == "gpa: 0x10\n"
    assert our_gpa(machine, "pse", 0x10) == 0x10
    assert our_gpa(machine, "pse", 0x1_0000_0010) is None
