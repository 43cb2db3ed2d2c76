"""ELF cores of a guest made of bytes, read by pyelftools and by struct: not by our own code."""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from sevkvm import errors
from sevkvm.abi.elf import descriptor_flags
from sevkvm.abi.kvm import Segment
from sevkvm.dump import CbitMode, DumpFormat, DumpOptions, HoleReason, dump_guest, prepare
from sevkvm.dump.plan import SPARE_PHDRS
from sevkvm.memory.policy import SevInfo, SevKind
from tests.support.fakeguest import PAGE, FakeGuest, UniformPages, pattern, vcpu_state
from tests.support.tables import Tables


def dump(guest: FakeGuest, path: Path, **options):
    options = DumpOptions(**{"format": DumpFormat.ELF, **options})
    return dump_guest(guest, options, UniformPages(), prepare(str(path)))


def segments(path: Path):
    with path.open("rb") as file:
        elf = ELFFile(file)
        return [(s["p_vaddr"], s["p_paddr"], s.data()) for s in elf.iter_segments("PT_LOAD")]


def notes(path: Path) -> list[tuple[str, int | str, bytes]]:
    """Name, type and description, without pyelftools' interpretation of the description."""
    found = []
    with path.open("rb") as file:
        segment = next(iter(ELFFile(file).iter_segments("PT_NOTE")))
        data = segment.data()
    at = 0
    while at < len(data):
        name_nbytes, nbytes, kind = struct.unpack_from("<III", data, at)
        at += 12
        name = data[at : at + name_nbytes].rstrip(b"\0").decode()
        at += -(-name_nbytes // 4) * 4
        found.append((name, kind, data[at : at + nbytes]))
        at += -(-nbytes // 4) * 4
    return found


def test_the_header_is_what_crash_and_makedumpfile_want(tmp_path):
    dump(FakeGuest({0: pattern(PAGE)}, states=[vcpu_state(0)]), tmp_path / "core")
    with (tmp_path / "core").open("rb") as file:
        elf = ELFFile(file)
        assert (elf["e_type"], elf["e_machine"], elf["e_phoff"]) == ("ET_CORE", "EM_X86_64", 64)
        assert (elf["e_phnum"], elf["e_shnum"]) == (2, 0)
        first, second = elf.iter_segments()
        assert (first["p_type"], second["p_type"]) == ("PT_NOTE", "PT_LOAD")
        assert (first["p_align"], second["p_align"]) == (0, 0)
        assert second["p_filesz"] == second["p_memsz"] == PAGE


def test_one_segment_a_range_with_vaddr_and_paddr_its_gpa(tmp_path):
    low, high = pattern(20 * PAGE), pattern(5 * PAGE, seed=2)
    result = dump(FakeGuest({0: low, 0x100000: high}, states=[]), tmp_path / "core")
    assert segments(tmp_path / "core") == [(0, 0, low), (0x100000, 0x100000, high)]
    assert [(p.piece.gpa, p.piece.nbytes) for p in result.ranges] == [(0, 0x14000), (0x100000, 0x5000)]
    assert (tmp_path / "core").stat().st_size == result.file_nbytes


def test_adjacent_slots_are_one_segment(tmp_path):
    ram = pattern(6 * PAGE)
    dump(FakeGuest({0: ram[:0x2000], 0x2000: ram[0x2000:]}, states=[]), tmp_path / "core")
    assert segments(tmp_path / "core") == [(0, 0, ram)]


def test_registers_of_every_vcpu(tmp_path):
    states = [vcpu_state(0)._replace(kernel_gs_base=0xFFFF_8880_0000_5000), vcpu_state(1)]
    result = dump(FakeGuest({0: pattern(PAGE)}, states=states), tmp_path / "core")
    assert (result.vcpus, result.registers_missing) == (2, None)
    found = notes(tmp_path / "core")
    assert [(name, kind) for name, kind, _ in found] == [("CORE", 1), ("CORE", 1), ("QEMU", 0), ("QEMU", 0)]
    for state, (_, _, data) in zip(states, found[:2], strict=True):
        assert len(data) == 336
        assert struct.unpack_from("<I", data, 32) == (state.index + 1,)
        user_regs = struct.unpack_from("<27Q", data, 112)
        r, s = state.regs, state.sregs
        assert user_regs[0] == r.r15
        assert user_regs[4] == r.rbp
        assert user_regs[10] == r.rax
        assert user_regs[16:21] == (r.rip, s.cs.selector, r.rflags, r.rsp, s.ss.selector)
        assert user_regs[21:23] == (s.fs.base, s.gs.base)
    for state, (_, _, data) in zip(states, found[2:], strict=True):
        known = state.kernel_gs_base is not None
        assert struct.unpack_from("<II", data) == (1, len(data))
        assert len(data) == (0x1B8 if known else 0x1B0), "a field that is not known is not there"
        assert not known or struct.unpack_from("<Q", data, 0x1B0) == (state.kernel_gs_base,)
        assert struct.unpack_from("<Q", data, 8) == (state.regs.rax,)
        assert struct.unpack_from("<I", data, 152) == (state.sregs.cs.selector,)
        assert struct.unpack_from("<Q", data, 152 + 9 * 24 + 16) == (state.sregs.idt.base,)
        cr0, cr1, cr2, cr3, cr4 = struct.unpack_from("<5Q", data, 392)
        assert (cr0, cr1, cr2) == (state.sregs.cr0, 0, state.sregs.cr2)
        assert (cr3, cr4) == (state.sregs.cr3, state.sregs.cr4)


def test_without_registers_there_are_no_notes_and_the_reason_is_told(tmp_path):
    result = dump(FakeGuest({0: pattern(PAGE)}, states=None), tmp_path / "core")
    assert result.registers_missing == "registers are encrypted (SEV-ES)"
    assert result.vcpus == 0
    assert notes(tmp_path / "core") == []
    assert segments(tmp_path / "core") == [(0, 0, pattern(PAGE))]


@pytest.mark.parametrize(
    "guest", [{"states": [vcpu_state(0)]}, {"states": None}], ids=["registers", "no-registers"]
)
def test_a_file_of_a_guest_that_ran_meanwhile_says_so(tmp_path, guest):
    dump(FakeGuest({0: pattern(PAGE)}, **guest), tmp_path / "still")
    result = dump(FakeGuest({0: pattern(PAGE)}, **guest), tmp_path / "core", live=True)
    assert result.live
    *others, (name, kind, text) = notes(tmp_path / "core")
    assert (name, kind) == ("SEVKVM", 1)
    assert b"not one moment in time" in text
    assert others == notes(tmp_path / "still")
    # what is made of such a dump is not of one moment either
    converted = dump(FakeGuest({0: pattern(PAGE)}, was_live=True, **guest), tmp_path / "again")
    assert converted.live
    assert notes(tmp_path / "again") == [*others, (name, kind, text)]


def test_unreadable_bytes_are_in_no_segment(tmp_path):
    ram = pattern(30 * PAGE)
    guest = FakeGuest({0: ram}, bad_pages={0, 5 * PAGE, 29 * PAGE}, states=[vcpu_state(0)])
    result = dump(guest, tmp_path / "core")
    assert segments(tmp_path / "core") == [
        (0x1000, 0x1000, ram[0x1000:0x5000]),
        (0x6000, 0x6000, ram[0x6000 : 29 * PAGE]),
    ]
    assert len(notes(tmp_path / "core")) == 2, "the notes survive the rewritten headers"
    assert [hole.zero_filled for hole in result.holes] == [False] * 3
    assert not result.complete


def test_when_program_headers_run_out_the_smallest_holes_are_zeros_and_said_to_be(tmp_path):
    npages = 2 * (SPARE_PHDRS + 40)
    bad = set(range(0, npages * PAGE, 2 * PAGE)) | {PAGE}  # every other page, and one hole of three pages
    guest = FakeGuest({0: pattern(npages * PAGE)}, bad_pages=bad, states=[])
    result = dump(guest, tmp_path / "core")
    filled = [hole for hole in result.holes if hole.zero_filled]
    assert len(result.holes) - len(filled) == SPARE_PHDRS
    assert result.holes[0].nbytes == 3 * PAGE
    assert not result.holes[0].zero_filled
    loaded = segments(tmp_path / "core")
    assert sum(len(data) for _, _, data in loaded) == result.copied_nbytes + len(filled) * PAGE


def test_on_a_pipe_holes_are_zeros_and_said_to_be(tmp_path):
    ram = pattern(4 * PAGE)
    guest = FakeGuest({0: ram}, bad_pages={PAGE}, states=[])
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    received = []
    reader = threading.Thread(target=lambda: received.append(fifo.read_bytes()))
    reader.start()
    result = dump(guest, fifo)
    reader.join(timeout=20)
    (tmp_path / "core").write_bytes(received[0])
    assert segments(tmp_path / "core") == [(0, 0, ram[:PAGE] + bytes(PAGE) + ram[2 * PAGE :])]
    (hole,) = result.holes
    assert (hole.address, hole.reason, hole.zero_filled) == (PAGE, HoleReason.UNREADABLE, True)


def test_virtual_addresses_in_p_vaddr(tmp_path):
    ram = pattern(8 * PAGE)
    gva = 0xFFFF_8880_0000_0000
    tables = Tables()
    for page, gpa in enumerate((0x5000, 0x6000, 0x2000)):
        tables.map(gva + page * PAGE, gpa)
    guest = FakeGuest({0: ram}, states=[], tables=tables)
    dump(guest, tmp_path / "core", gva=(gva, gva + 0x10000))
    assert segments(tmp_path / "core") == [
        (gva, 0x5000, ram[0x5000:0x7000]),
        (gva + 0x2000, 0x2000, ram[0x2000:0x3000]),
    ]


def test_more_ranges_than_program_headers_is_a_usage_error(tmp_path, monkeypatch):
    monkeypatch.setattr("sevkvm.abi.elf.MAX_PHDRS", 20)  # PT_NOTE is one of them
    tables = Tables()
    for page in range(20):
        tables.map(page * 2 * PAGE, page % 8 * PAGE)
    guest = FakeGuest({0: pattern(8 * PAGE)}, states=[], tables=tables)
    with pytest.raises(errors.UsageError, match="program headers"):
        dump(guest, tmp_path / "core", gva=(0, 20 * 2 * PAGE))
    assert list(tmp_path.iterdir()) == []
    dump(guest, tmp_path / "core", gva=(0, 19 * 2 * PAGE))
    assert len(segments(tmp_path / "core")) == 19


def test_aliases_share_the_bytes_and_the_holes(tmp_path):
    ram = pattern(30 * PAGE)
    guest = FakeGuest({0: ram}, bad_pages={5 * PAGE}, states=[])
    guest.sev = SevInfo(SevKind.SEV, cbit_pos=47)
    result = dump(guest, tmp_path / "core", cbit=CbitMode.ALIAS)
    plain = [(0, 0, ram[:0x5000]), (0x6000, 0x6000, ram[0x6000:])]
    assert segments(tmp_path / "core") == plain + [
        (gva | 1 << 47, gpa | 1 << 47, data) for gva, gpa, data in plain
    ]
    assert result.cbit.mode is CbitMode.ALIAS
    assert (tmp_path / "core").stat().st_size == result.file_nbytes < 0x30000 + 30 * PAGE
    with (tmp_path / "core").open("rb") as file:
        offsets = [segment["p_offset"] for segment in ELFFile(file).iter_segments("PT_LOAD")]
    assert offsets[:2] == offsets[2:]


def test_aliases_are_one_more_reason_to_run_out_of_program_headers(tmp_path):
    npages = 2 * (SPARE_PHDRS + 40)
    bad = set(range(0, npages * PAGE, 2 * PAGE))
    guest = FakeGuest({0: pattern(npages * PAGE)}, bad_pages=bad, states=[])
    guest.sev = SevInfo(SevKind.SEV, cbit_pos=51)
    result = dump(guest, tmp_path / "core", cbit=CbitMode.ALIAS)
    assert sum(not hole.zero_filled for hole in result.holes) == SPARE_PHDRS // 2
    found = segments(tmp_path / "core")
    assert [(gpa | 1 << 51, data) for _, gpa, data in found[: len(found) // 2]] == [
        (gpa, data) for _, gpa, data in found[len(found) // 2 :]
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cbit": CbitMode.STRIP, "gva": (0, PAGE)}, "--gva"),
        ({"cbit": CbitMode.ALIAS, "gva": (0, PAGE)}, "--gva"),
        ({"cbit": CbitMode.ALIAS, "format": DumpFormat.LIME}, "lime"),
        ({"cbit": CbitMode.ALIAS, "format": DumpFormat.RAW}, "raw"),
    ],
)
def test_what_does_not_go_together_is_a_usage_error(tmp_path, options, message):
    with pytest.raises(errors.UsageError, match=message):
        dump(FakeGuest({0: pattern(PAGE)}), tmp_path / "core", **options)
    assert list(tmp_path.iterdir()) == []


def test_strip_refuses_a_guest_whose_tables_it_cannot_find(tmp_path):
    guest = FakeGuest({0: pattern(PAGE)}, states=[])
    guest.sev = SevInfo(SevKind.SEV, cbit_pos=51)
    with pytest.raises(errors.BadGuestData, match="VMCOREINFO"):
        dump(guest, tmp_path / "core", cbit=CbitMode.STRIP)
    assert list(tmp_path.iterdir()) == []
    # nobody can follow its tables: as it is
    result = dump(guest, tmp_path / "core")
    assert (result.cbit.mode, result.cbit.fallback) == (CbitMode.KEEP, None)
    assert "VMCOREINFO" in result.vmcoreinfo_missing


@pytest.mark.parametrize(
    ("segment", "flags"),
    [
        (Segment(type=11, s=1, present=1, l=1, g=1), 0xA09B00),  # 64-bit code
        (Segment(type=3, s=1, present=1, dpl=3, db=1, g=1), 0xC0F300),  # user data
        (Segment(type=3, s=1, present=1, unusable=1), 0x1300),
        (Segment(type=11, present=1, avl=1), 0x108B00),  # busy TSS
    ],
)
def test_segment_flags_are_the_descriptors_bits(segment, flags):
    assert descriptor_flags(segment) == flags
