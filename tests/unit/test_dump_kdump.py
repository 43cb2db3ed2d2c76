"""kdump-compressed files of a guest made of bytes, read by a reader that shares nothing with the writer."""

from __future__ import annotations

import importlib.util
import os
import random
import struct
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sevkvm import errors
from sevkvm.abi import lzo
from sevkvm.abi.kdump import Utsname
from sevkvm.doctor.machine import has_library
from sevkvm.dump import DumpFormat, DumpOptions, HoleReason, KernelFacts, dump_guest, kernel_facts, prepare
from sevkvm.dump.kdump_plan import set_bits
from sevkvm.memory.source import Slot, SlotMap
from tests.support.fakeguest import PAGE, FakeGuest, ListedPages, UniformPages, pattern, vcpu_state
from tests.support.kdumpread import KdumpFile

NEEDS = {"zlib": "zlib", "zstd": "zstandard", "snappy": "cramjam", "lzo": "lzokay", "none": "zlib"}
if not has_library(lzo.NAME):
    NEEDS["lzo"] = "liblzo2"
FLAGS = {"zlib": 1, "lzo": 2, "snappy": 4, "zstd": 0x20, "none": 0}
CODECS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(not importlib.util.find_spec(module), reason=f"no {module}"),
    )
    for name, module in NEEDS.items()
]


def dump(guest: FakeGuest, path: Path, kernel: KernelFacts | None = None, page_map=None, **options):
    options = DumpOptions(format=DumpFormat.KDUMP, **options)
    return dump_guest(guest, options, page_map or UniformPages(), prepare(str(path)), kernel=kernel)


def noise(npages: int) -> bytes:
    return random.Random(5).randbytes(npages * PAGE)


def pages_of(ram: dict[int, bytes]) -> dict[int, bytes]:
    return {
        (gpa + at) // PAGE: data[at : at + PAGE]
        for gpa, data in ram.items()
        for at in range(0, len(data), PAGE)
    }


@pytest.mark.parametrize("compress", CODECS)
def test_every_page_is_read_back(tmp_path, compress):
    ram = {
        0: pattern(300 * PAGE),
        0x200000: bytes(40 * PAGE) + noise(70) + pattern(9 * PAGE),
        0x900000: noise(3),
    }
    result = dump(FakeGuest(ram), tmp_path / "vmcore", compress=compress)
    file = KdumpFile(tmp_path / "vmcore")
    expected = pages_of(ram)
    assert {pfn: page for pfn, (page, _, _) in file.pages.items()} == expected
    assert file.ram == sorted(expected)
    assert file.flags == FLAGS[compress]
    assert {flags for _, _, flags in file.pages.values()} <= {0, FLAGS[compress]}
    assert file.pages[0][2] == FLAGS[compress]
    assert result.complete
    assert result.file_nbytes == len(file.data)


def test_pages_of_zeros_share_one(tmp_path):
    dump(FakeGuest({0: pattern(PAGE) + bytes(3000 * PAGE) + pattern(PAGE, seed=2)}), tmp_path / "vmcore")
    file = KdumpFile(tmp_path / "vmcore")
    assert len({offset for page, offset, _ in file.pages.values() if not any(page)}) == 1
    assert len(file.data) - file.data_offset < 3 * PAGE


def test_equal_pages_are_kept_once_far_apart_too(tmp_path):
    same = random.Random(6).randbytes(PAGE)
    ram = noise(200)
    parts = [same, same, ram[: 100 * PAGE], same, ram[100 * PAGE :], same]
    dump(FakeGuest({0: b"".join(parts)}), tmp_path / "vmcore")
    file = KdumpFile(tmp_path / "vmcore")
    assert {pfn: page for pfn, (page, _, _) in file.pages.items()} == pages_of({0: b"".join(parts)})
    offsets = [offset for page, offset, _ in file.pages.values() if page == same]
    assert len(offsets) == 4
    assert len(set(offsets)) == 1


def test_a_page_that_does_not_shrink_is_stored_as_it_is(tmp_path):
    ram = noise(4)
    dump(FakeGuest({0: ram}), tmp_path / "vmcore")
    file = KdumpFile(tmp_path / "vmcore")
    assert [flags for _, _, flags in file.pages.values()] == [0] * 4
    assert len(file.data) == file.data_offset + 5 * PAGE  # and the page of zeros


@pytest.mark.parametrize("bad", [[0], [5, 6, 7], [19], list(range(20))])
def test_unreadable_pages_are_ram_that_is_not_in_the_file(tmp_path, bad):
    ram = {0: pattern(20 * PAGE), 0x100000: noise(5)}
    guest = FakeGuest(ram, bad_pages=[number * PAGE for number in bad])
    result = dump(guest, tmp_path / "vmcore")
    file = KdumpFile(tmp_path / "vmcore")
    expected = pages_of(ram)
    assert file.ram == sorted(expected)
    assert {pfn: page for pfn, (page, _, _) in file.pages.items()} == {
        pfn: page for pfn, page in expected.items() if pfn not in bad
    }
    assert not result.complete
    assert not any(hole.zero_filled for hole in result.holes)


def test_skipped_and_private_pages(tmp_path):
    ram = pattern(6 * PAGE)
    page_map = ListedPages((PAGE, PAGE, False, "direct"), (3 * PAGE, PAGE, True, "direct"))
    result = dump(FakeGuest({0: ram}), tmp_path / "vmcore", page_map=page_map)
    pages = KdumpFile(tmp_path / "vmcore").pages
    assert sorted(pages) == [1, 3]
    assert pages[1][0] == ram[PAGE : 2 * PAGE]
    assert pages[3][0] == bytes(byte ^ 0xFF for byte in ram[3 * PAGE : 4 * PAGE])
    assert {hole.reason for hole in result.holes} == {HoleReason.SKIPPED}


@settings(max_examples=40, deadline=None)
@given(
    kinds=st.lists(st.tuples(st.sampled_from("zdsbn"), st.integers(1, 40)), min_size=1, max_size=30),
    split=st.integers(0, 40),
)
def test_any_mixture_of_pages(tmp_path_factory, kinds, split):
    """Zeros, data, the same page again, bad pages, noise; in one slot or in two."""
    data, bad = bytearray(), set()
    for kind, npages in kinds:
        start = len(data)
        if kind == "b":
            bad |= set(range(start, start + npages * PAGE, PAGE))
        data += {
            "z": bytes(npages * PAGE),
            "d": pattern(npages * PAGE, seed=start),
            "s": pattern(PAGE) * npages,
            "b": bytes(npages * PAGE),
            "n": noise(npages),
        }[kind]
    at = min(split * PAGE, len(data) - PAGE)
    ram = {0x40000: bytes(data[:at]), 0x40000000 + at: bytes(data[at:])} if at else {0x40000: bytes(data)}
    bad_gpas = {page + (0x40000 if page < at or not at else 0x40000000) for page in bad}
    path = tmp_path_factory.mktemp("kdump") / "vmcore"
    result = dump(FakeGuest(ram, bad_pages=bad_gpas), path)
    # between samples that failed, good pages may be given up too: the result says so
    lost = {
        gpa
        for hole in result.holes
        if hole.reason is not HoleReason.NOT_RAM
        for gpa in range(hole.address, hole.address + hole.nbytes, PAGE)
    }
    assert bad_gpas <= lost
    expected = {pfn: page for pfn, page in pages_of(ram).items() if pfn * PAGE not in lost}
    assert {pfn: page for pfn, (page, _, _) in KdumpFile(path).pages.items()} == expected


def test_the_header_tells_time_processors_and_notes(tmp_path):
    began = time.time()
    states = [vcpu_state(0), vcpu_state(1)]
    facts = KernelFacts(b"OSRELEASE=6.1\nA=1\n", Utsname("Linux", "host", "6.1", "#1 SMP"), -0x1000000)
    dump(FakeGuest({0: pattern(PAGE)}, states=states), tmp_path / "vmcore", facts)
    file = KdumpFile(tmp_path / "vmcore")
    assert began - 1 <= file.seconds + file.microseconds / 1e6 <= time.time()
    assert file.nr_cpus == 2
    assert file.utsname == ["Linux", "host", "6.1", "#1 SMP", "x86_64", ""]
    assert file.phys_base == -0x1000000
    assert file.vmcoreinfo == b"OSRELEASE=6.1\nA=1\n"
    namesz, descsz, kind = struct.unpack_from("<III", file.notes)
    assert (file.notes[12 : 12 + namesz], descsz, kind) == (b"CORE\0", 336, 1)
    assert file.notes.count(b"CORE\0") == 2
    assert file.notes.count(b"QEMU\0") == 2
    assert b"VMCOREINFO\0\0" + file.vmcoreinfo in file.notes


def test_rom_above_all_ram_is_only_there_if_it_was_asked_for(tmp_path):
    guest = FakeGuest({0: pattern(4 * PAGE), 0x100000: pattern(2 * PAGE), 0x200000: pattern(2 * PAGE)})
    guest.slots = SlotMap(
        Slot(slot.gpa, slot.nbytes, slot.hva, slot.name, readonly=slot.gpa > 0x4000) for slot in guest.slots
    )
    assert dump(guest, tmp_path / "a").complete
    assert KdumpFile(tmp_path / "a").ram == list(range(4))
    dump(guest, tmp_path / "b", gpa=(0, 0x202000))
    assert KdumpFile(tmp_path / "b").ram == [*range(4), 0x100, 0x101, 0x200, 0x201]


def test_what_is_not_known_is_not_there(tmp_path):
    result = dump(FakeGuest({0: pattern(PAGE)}), tmp_path / "vmcore")
    file = KdumpFile(tmp_path / "vmcore")
    assert result.registers_missing
    assert (file.notes, file.vmcoreinfo, file.phys_base) == (b"", b"", 0)
    assert file.utsname == ["", "", "", "", "x86_64", ""]


TEXT = (
    "OSRELEASE=6.1.0\nSYMBOL(init_uts_ns)=ffffffff81000000\nOFFSET(uts_namespace.name)=4\n"
    "NUMBER(phys_base)=-325058560\n"
)
UTS = b"".join(field.ljust(65, b"\0") for field in (b"Linux", b"lab", b"6.1.0", b"#1", b"x86_64", b"(none)"))


def test_the_system_name_is_the_guests_own():
    asked = []

    def read(gva: int, nbytes: int) -> bytes:
        asked.append((gva, nbytes))
        return UTS

    facts = kernel_facts(TEXT, read)
    assert asked == [(0xFFFFFFFF81000004, 390)]
    assert facts.utsname == Utsname("Linux", "lab", "6.1.0", "#1", "x86_64", "(none)")
    assert facts.phys_base == -325058560
    assert facts.vmcoreinfo == TEXT.encode()


def unreadable(gva: int, nbytes: int) -> bytes:
    raise errors.MemoryFault("gva", gva)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (TEXT, unreadable),
        (TEXT, lambda gva, nbytes: b"\xff" * nbytes),
        (TEXT.replace("6.1.0", "6.2.0"), lambda gva, nbytes: UTS),
        ("OSRELEASE=6.1.0\n", unreadable),
        ("OSRELEASE=6.1.0\nSYMBOL(init_uts_ns)=zz\nNUMBER(phys_base)=x\n", unreadable),
    ],
)
def test_a_system_name_that_cannot_be_had_is_made_of_the_note(text, read):
    utsname = kernel_facts(text, read).utsname
    assert utsname == Utsname(sysname="Linux", release=text[10:15])


def test_names_of_any_length_fit_their_fields():
    packed = Utsname("L" * 70, version="é").pack()
    assert len(packed) == 390
    assert packed[:66] == b"L" * 64 + b"\0\0"
    assert Utsname.unpack(packed).version == "?"


@settings(max_examples=60)
@given(first=st.integers(0, 200), count=st.integers(0, 200))
def test_bits_are_set_from_the_lowest_on(first, count):
    bitmap = bytearray(50)
    set_bits(bitmap, first, count)
    assert int.from_bytes(bitmap, "little") == ((1 << count) - 1) << first


def test_a_pipe_is_refused_before_anything_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    guest = FakeGuest({0: pattern(PAGE)})
    with pytest.raises(errors.UsageError, match="cannot go to a pipe"):
        dump(guest, tmp_path / "pipe")
    assert guest.memory.reads == 0
    assert guest.hold_count == 0


@pytest.mark.parametrize("options", [{"gva": (0, PAGE)}, {"gpa": (8, PAGE)}, {"compress": "rar"}])
def test_what_the_format_cannot_hold_is_refused(tmp_path, options):
    with pytest.raises(errors.UsageError):
        dump(FakeGuest({0: pattern(PAGE)}), tmp_path / "vmcore", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_c_library_is_named(tmp_path, monkeypatch):
    def absent() -> None:
        raise OSError("no such library")

    monkeypatch.setattr(lzo, "library", absent)
    with pytest.raises(errors.UsageError, match=r"liblzo2\.so\.2") as caught:
        dump(FakeGuest({0: pattern(PAGE)}), tmp_path / "vmcore", compress="lzo")
    assert caught.value.help == "install it (Debian: apt install liblzo2-2)"


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(errors.UsageError, match="zstandard") as caught:
        dump(FakeGuest({0: pattern(PAGE)}), tmp_path / "vmcore", compress="zstd")
    assert caught.value.help == "pip install 'sevkvm[dump]'"


@pytest.mark.parametrize("isal", [False, True])
def test_zlib_by_whichever_library_there_is(tmp_path, monkeypatch, isal):
    if isal:
        pytest.importorskip("isal", reason="not installed: isal (the extra sevkvm[dump])")
    else:
        monkeypatch.setitem(sys.modules, "isal.isal_zlib", None)
    data = pattern(3 * PAGE) + noise(1)
    dump(FakeGuest({0: data}), tmp_path / "vmcore", compress="zlib")
    file = KdumpFile(tmp_path / "vmcore")  # reads with Python's own zlib
    assert {pfn: page for pfn, (page, _, _) in file.pages.items()} == pages_of({0: data})


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("dump-")}


def test_no_thread_and_no_file_is_left_after_a_failed_read(tmp_path):
    guest = FakeGuest({0: noise(600)})

    def refuse(gpa: int) -> None:
        if gpa >= 400 * PAGE:
            raise errors.FirmwareError("DBG_DECRYPT", 7, "POLICY_FAILURE")

    guest.memory.on_read = refuse
    with pytest.raises(errors.FirmwareError):
        dump(guest, tmp_path / "vmcore")
    assert list(tmp_path.iterdir()) == []
    assert not threads()


def test_a_full_disk_ends_the_dump(tmp_path, monkeypatch):
    from sevkvm.dump.sink import FdSink

    write = FdSink.write

    def fail(self, data):
        if self.offset > 300 * PAGE:
            raise errors.SevKvmError("no space left")
        write(self, data)

    monkeypatch.setattr(FdSink, "write", fail)
    guest = FakeGuest({0: noise(2000)})
    with pytest.raises(errors.SevKvmError, match="no space left"):
        dump(guest, tmp_path / "vmcore")
    assert list(tmp_path.iterdir()) == []
    assert not threads()
    assert guest.memory.reads < 250  # of 250: it did not read on to the end
