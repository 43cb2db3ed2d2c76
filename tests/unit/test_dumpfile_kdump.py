"""kdump-compressed files, flattened or not: every page is the file's own, or missing with a reason."""

from __future__ import annotations

import random
import struct
import sys
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sevkvm import errors
from sevkvm.abi import lzo
from sevkvm.doctor.machine import has_library
from sevkvm.dumpfile import DumpContents, open_contents
from sevkvm.dumpfile.bitmap import PageBitmap
from sevkvm.dumpfile.image import MappedFile
from tests.support.elfcore import note
from tests.support.kdumpfile import bitmap, flattened, kdump

PAGE = 4096


def page(number: int) -> bytes:
    return struct.pack("<Q", number) * 512


PAGES = {pfn: page(pfn) for pfn in (1, 2, 3, 9, 40000)}


@pytest.fixture
def dump(tmp_path):
    def opener(data: bytes) -> DumpContents:
        (tmp_path / "dump").write_bytes(data)
        images.append(MappedFile(str(tmp_path / "dump")))
        return open_contents(images[-1])

    images: list[MappedFile] = []
    yield opener
    for image in images:
        image.__exit__(None, None, None)


def read(contents: DumpContents, gpa: int, nbytes: int) -> bytes:
    buffer = bytearray(nbytes)
    return bytes(buffer[: contents.store.readinto(gpa, memoryview(buffer))])


def gaps(contents: DumpContents) -> list[tuple[int, int]]:
    return [(gap.gpa, gap.nbytes) for gap in contents.store.missing()]


def test_pages_are_found_by_the_bitmaps(dump):
    contents = dump(kdump(PAGES, left_out=[4, 5, 10]))
    assert contents.format == "kdump"
    assert contents.store.ranges == [(0x1000, 5 * PAGE), (0x9000, 2 * PAGE), (40000 * PAGE, PAGE)]
    assert read(contents, 0x1000, 16 * PAGE) == page(1) + page(2) + page(3)
    assert read(contents, 40000 * PAGE + 4000, PAGE) == page(40000)[4000:]
    assert read(contents, 0, 1) == read(contents, 0x4000, 1) == b""
    assert gaps(contents) == [(0x4000, 2 * PAGE), (0xA000, PAGE)]
    assert "left this page out" in contents.store.why_missing(0x5000)
    assert contents.store.why_missing(0x8000) == "the dump holds nothing there"


def test_pages_that_were_left_out_are_zero_only_where_the_file_says_so(dump):
    zeros_only = dump(kdump(PAGES, left_out=[4], dump_level=1))
    assert read(zeros_only, 0x4000, PAGE) == bytes(PAGE)
    assert gaps(zeros_only) == []
    assert read(zeros_only, 0x8000, PAGE) == b""  # no RAM
    others_too = dump(kdump(PAGES, left_out=[4], dump_level=31))
    assert read(others_too, 0x4000, PAGE) == b""


def test_a_page_that_is_stored_as_it_is(dump):
    contents = dump(kdump(PAGES, flags={2: 0}, packed={2: page(7)}))
    assert read(contents, 0x1000, 3 * PAGE) == page(1) + page(7) + page(3)


@pytest.mark.parametrize("name", ["zstandard", "cramjam", "lzokay"])
def test_other_compressions(dump, name, monkeypatch):
    flag, packed = {"zstandard": 0x20, "cramjam": 4, "lzokay": 2}[name], page(2)
    module = pytest.importorskip(name)
    if name == "lzokay" and not has_library(lzo.NAME):
        pytest.skip(f"no {lzo.NAME}")
    if name == "zstandard":
        packed = module.ZstdCompressor().compress(page(2))
    elif name == "cramjam":
        packed = bytes(module.snappy.compress_raw(page(2)))
    else:
        packed = module.compress(page(2))
    contents = dump(kdump(PAGES, flags={2: flag}, packed={2: packed}))
    assert read(contents, 0x2000, PAGE) == page(2)
    damaged = dump(kdump(PAGES, flags={2: flag}, packed={2: packed[:-4]}))
    assert read(damaged, 0x1000, 3 * PAGE) == page(1)


def test_lzo_is_unpacked_within_a_page_or_not_at_all(dump, monkeypatch):
    lzokay = pytest.importorskip("lzokay")
    for packed in (lzokay.compress(bytes(PAGE + 1)), lzokay.compress(bytes(PAGE - 1)), b"", b"\x12\0\x20"):
        contents = dump(kdump(PAGES, flags={2: 2}, packed={2: packed}))
        assert read(contents, 0x1000, 3 * PAGE) == page(1)
        assert "the page is damaged in the file" in contents.store.why_missing(0x2000)

    def absent() -> None:
        raise OSError("no such library")

    monkeypatch.setattr(lzo, "library", absent)
    with pytest.raises(errors.SevKvmError, match=r"the library liblzo2\.so\.2 is needed"):
        read(contents, 0x2000, 1)


@pytest.mark.parametrize(("name", "flag"), [("zstandard", 0x20), ("cramjam", 4)])
def test_a_compression_that_is_not_installed_is_named(dump, monkeypatch, name, flag):
    monkeypatch.setitem(sys.modules, name, None)
    contents = dump(kdump(PAGES, flags={2: flag}, packed={2: b"\x80\x20 anything"}))
    with pytest.raises(errors.SevKvmError, match=f"the Python module {name} is needed"):
        read(contents, 0x2000, 1)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"packed": {2: b"no zlib"}}, "zlib says"),
        ({"packed": {2: zlib.compress(page(2))[:-20]}}, "unpacks to"),
        ({"packed": {2: zlib.compress(bytes(1 << 24))}}, "its descriptor says|unpacks to 4097 bytes"),
        ({"packed": {2: zlib.compress(bytes(100))}}, "unpacks to 100 bytes"),
        ({"flags": {2: 0}}, "unpacks to"),
        ({"flags": {2: 0x40 | 5}}, "not known"),
        ({"descs": {2: struct.pack("<QIIQ", 1 << 60, 10, 1, 0)}}, "lies beyond its end"),
        ({"descs": {2: struct.pack("<QIIQ", 0, 1 << 31, 1, 0)}}, "descriptor says 2147483648 bytes"),
    ],
)
def test_a_damaged_page_is_missing_and_the_others_are_there(dump, wrong, why):
    contents = dump(kdump(PAGES, **wrong))
    assert read(contents, 0x1000, 3 * PAGE) == page(1)
    assert read(contents, 0x3000, PAGE) == page(3)
    said = contents.store.why_missing(0x2000)
    assert said.startswith("the page is damaged in the file: ")
    assert any(part in said for part in why.split("|"))


def test_a_truncated_file_keeps_what_is_there(dump):
    contents = dump(kdump(PAGES)[:-30])
    assert read(contents, 0x9000, PAGE) == page(9)
    assert read(contents, 40000 * PAGE, 1) == b""
    assert "lies beyond its end" in contents.store.why_missing(40000 * PAGE)


def test_one_file_of_a_set_holds_its_part(dump):
    contents = dump(kdump(PAGES, split=1, start=3, end=100))
    assert read(contents, 0x3000, PAGE) == page(3)
    assert read(contents, 0x9000, PAGE) == page(9)
    assert read(contents, 0x2000, 1) == b""
    assert gaps(contents) == [(0x1000, 2 * PAGE), (40000 * PAGE, PAGE)]
    assert contents.store.why_missing(0x1000) == "the page is in another file of the set"
    assert contents.remarks


def test_notes_and_the_text_of_vmcoreinfo(dump):
    text = b"OSRELEASE=6.1\n"
    assert dump(kdump(PAGES, vmcoreinfo=text)).vmcoreinfo == text
    assert dump(kdump(PAGES, notes=note(b"VMCOREINFO", 0, text))).vmcoreinfo == text
    assert dump(kdump(PAGES, vmcoreinfo=text, version=2)).vmcoreinfo is None


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (kdump(PAGES)[:100], "the kdump header"),
        (kdump(PAGES)[:4100], "the kdump sub-header"),
        (kdump(PAGES)[:8200], "the bitmap of memory"),
        (kdump(PAGES, version=7), "version 7"),
        (kdump(PAGES, version=0), "version 0"),
        (kdump(PAGES, block=65536), "65536 bytes"),
        (kdump(PAGES, mapnr=1 << 41), "highest page"),
        (kdump(PAGES, mapnr=0), "highest page"),
        (kdump(PAGES, mapnr=1 << 39), "too short for"),
        (kdump(PAGES, bitmap_blocks=1 << 31), "the bitmap of memory"),
        (b"KDUMP   ", "the kdump header"),
        (b"DISKDUMP" + bytes(4088), "a diskdump"),
    ],
)
def test_a_damaged_header_is_refused_by_what_is_wrong(dump, data, says):
    with pytest.raises(errors.BadDump) as refused:
        dump(data)
    assert says in str(refused.value)


# ---- flattened


def cut(data: bytes, size: int) -> list[tuple[int, bytes]]:
    return [(at, data[at : at + size]) for at in range(0, len(data), size)]


def test_a_flattened_file_is_what_its_writes_made(dump):
    data = kdump(PAGES)
    writes = [
        (0, b"\xff" * PAGE),
        *cut(data, 1000),
    ]  # the header is written again at the end, as by makedumpfile
    random.Random(1).shuffle(writes[1:])
    contents = dump(flattened(writes))
    assert contents.format == "kdump-flattened"
    assert read(contents, 0x1000, 3 * PAGE) == page(1) + page(2) + page(3)
    assert contents.file_nbytes > len(data)


def test_what_no_write_reached_is_zero_in_a_file_that_is_complete(dump):
    data = kdump(PAGES)
    assert data[464:PAGE] == bytes(PAGE - 464)
    writes = [(0, data[:464]), (PAGE, data[PAGE:])]  # as QEMU writes its header
    assert read(dump(flattened(writes)), 0x9000, PAGE) == page(9)
    raw = kdump({1: page(1), 2: bytes(PAGE)}, packed={2: bytes(PAGE)}, flags={2: 0})
    gone = [(0, raw[:-PAGE]), (len(raw) - 1, raw[-1:])]
    assert read(dump(flattened(gone)), 0x2000, PAGE) == bytes(PAGE)
    assert read(dump(flattened(gone, end=False)), 0x2000, PAGE) == b""


def test_a_truncated_flattened_file_keeps_what_is_there(dump):
    contents = dump(flattened(cut(kdump(PAGES), 500), end=False)[:-20])
    assert read(contents, 0x9000, PAGE) == page(9)
    assert "not in the flattened file" in contents.store.why_missing(40000 * PAGE)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (flattened([(0, b"\x7fELF" + bytes(100))]), "not of a kdump file"),
        (flattened([]), "the start of what was flattened"),
        (flattened([(-5, b"abc")]), "writes 3 bytes at -5"),
        (flattened([(0, b"")]), "writes 0 bytes"),
        (b"makedumpfile\0" + bytes(100), "type 0 and version 0"),
        (b"makedumpfile\0", "the flattened header"),
    ],
)
def test_a_damaged_flattened_file_is_refused_by_what_is_wrong(dump, data, says):
    with pytest.raises(errors.BadDump) as refused:
        dump(data)
    assert says in str(refused.value)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 900)), min_size=1, max_size=40), st.data())
def test_later_writes_win(tmp_path_factory, places, draws):
    whole = bytearray(kdump({1: page(1)}, left_out=[2]))
    writes = [(0, bytes(whole))]
    for number, (offset, nbytes) in enumerate(places):
        # into the sub-header's block, where nothing is looked at
        at = PAGE + 200 + offset
        writes.append((at, bytes([number + 1]) * nbytes))
        whole[at : at + nbytes] = writes[-1][1]
    from sevkvm.dumpfile.flattened import FlattenedFile

    path = tmp_path_factory.mktemp("flat") / "dump"
    path.write_bytes(flattened(writes))
    with MappedFile(str(path)) as image:
        inner = FlattenedFile(image)
        assert inner.nbytes == len(whole)
        for _ in range(5):
            at = draws.draw(st.integers(0, len(whole) - 1))
            nbytes = draws.draw(st.integers(0, len(whole) - at))
            assert bytes(inner.take(at, nbytes, "it")) == whole[at : at + nbytes]


# ---- bitmaps


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(0, 20000), max_size=200), st.lists(st.integers(0, 20000), max_size=20))
def test_bitmaps_count(pfns, asked):
    full = set(range(5000, 11000)) | pfns
    pages = PageBitmap(memoryview(bitmap(full, 4096)))
    assert pages.count == len(full)
    assert sorted(pfn for first, end in pages.runs() for pfn in range(first, end)) == sorted(full)
    for pfn in asked:
        assert (pfn in pages) == (pfn in full)
        assert pages.rank(pfn) == sum(other < pfn for other in full)
    assert pages.rank(8 * 4096) == len(full)
