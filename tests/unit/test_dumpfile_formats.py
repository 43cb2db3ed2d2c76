"""Raw and LiME files, and files that are no dump."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from sevkvm import errors
from sevkvm.dumpfile import DumpContents, open_contents
from sevkvm.dumpfile.image import MappedFile

PAGE = 4096
A, B = b"a" * PAGE, b"b" * PAGE


def lime_range(first: int, data: bytes, *, last: int | None = None, magic: int = 0x4C694D45) -> bytes:
    return struct.pack("<IIQQQ", magic, 1, first, first + len(data) - 1 if last is None else last, 0) + data


def read(contents: DumpContents, gpa: int, nbytes: int) -> bytes:
    buffer = bytearray(nbytes)
    return bytes(buffer[: contents.store.readinto(gpa, memoryview(buffer))])


@pytest.fixture
def dump(tmp_path):
    def opener(data: bytes, *args, **kwargs) -> DumpContents:
        path = tmp_path / "dump"
        path.write_bytes(data)
        images.append(MappedFile(str(path)))
        return open_contents(images[-1], *args, **kwargs)

    images: list[MappedFile] = []
    yield opener
    for image in images:
        image.__exit__(None, None, None)


def test_lime_ranges_are_where_their_headers_say(dump):
    contents = dump(lime_range(0x1000, A) + lime_range(0x10_0000, B[:100]))
    assert contents.format == "lime"
    assert contents.store.ranges == [(0x1000, PAGE), (0x10_0000, 100)]
    assert read(contents, 0x1800, PAGE) == A[0x800:]
    assert read(contents, 0x10_0000, PAGE) == B[:100]


def test_a_truncated_lime_file_keeps_what_is_there(dump):
    contents = dump((lime_range(0, A) + lime_range(0x10_0000, B))[:-1000])
    assert read(contents, 0x10_0000, PAGE) == B[:-1000]
    assert [(gap.gpa, gap.nbytes) for gap in contents.store.missing()] == [(0x10_0000 + PAGE - 1000, 1000)]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (lime_range(0, A) + b"EMiL", "the header of LiME range 1"),
        (lime_range(0, A) + bytes(PAGE), f"no LiME header of version 1 at file offset 0x{PAGE + 32:x}"),
        (lime_range(0x1000, A, last=0xFFF), "ends at gpa 0xfff, before it begins"),
        (lime_range(0x1000, A, last=(1 << 64) - 1), "no processor has that"),
        (lime_range(0x1000, A) + lime_range(0x1000, B), "overlap from gpa 0x1000 on"),
    ],
)
def test_a_damaged_lime_file_is_refused_by_what_is_wrong(dump, data, says):
    with pytest.raises(errors.BadDump) as refused:
        dump(data)
    assert says in str(refused.value)


def test_a_raw_file_is_memory_from_0_on(dump):
    contents = dump(A + B)
    assert contents.format == "raw"
    assert contents.store.ranges == [(0, 2 * PAGE)]
    assert read(contents, PAGE, 2 * PAGE) == B


def test_a_sparse_file_reads_as_its_zeros(dump, tmp_path):
    nbytes = 64 << 20
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(nbytes)
        file.seek(32 << 20)
        file.write(A)
    with MappedFile(str(path)) as image:
        contents = open_contents(image)
        assert read(contents, 0, nbytes) == bytes(32 << 20) + A + bytes((32 << 20) - PAGE)
        assert read(contents, (32 << 20) + 5, 128 << 10) == A[5:] + bytes((128 << 10) - PAGE + 5)
        for gpa in range(0, nbytes, 1 << 20):
            assert read(contents, gpa, 1 << 20) == (A if gpa == 32 << 20 else b"").ljust(1 << 20, b"\0")


def test_ranges_of_a_raw_file_can_be_told(dump):
    contents = dump(A + B, None, [(0x8000, PAGE, PAGE), (0x4000, PAGE, 0)])
    assert contents.store.ranges == [(0x4000, PAGE), (0x8000, PAGE)]
    assert read(contents, 0x8000, PAGE) == B
    assert read(contents, 0, 1) == b""


def test_a_told_range_beyond_the_file_is_missing(dump):
    contents = dump(A, None, [(0, 2 * PAGE, 0)])
    assert read(contents, 0, 2 * PAGE) == A
    assert contents.store.why_missing(PAGE).startswith("the file is cut off at 0x1000")


def test_only_raw_files_can_be_told_their_ranges(dump):
    with pytest.raises(errors.UsageError, match="lime format, which tells by itself"):
        dump(lime_range(0, A), None, [(0, PAGE, 0)])


@pytest.mark.parametrize(
    ("data", "looks_like"),
    [
        (b"\x1f\x8b\x08" + bytes(100), "gzip data"),
        (b"\x28\xb5\x2f\xfd" + bytes(PAGE - 4), "zstd data"),
        (b"QFI\xfb" + bytes(PAGE - 4), "a qcow2 disk image"),
        (b"QEVM" + bytes(PAGE - 4), "a QEMU migration stream"),
        (b"LibvirtQemudSave" + bytes(PAGE), "a domain that libvirt saved"),
        (b"AVML" + bytes(PAGE), "an AVML file"),
        (b"#!/bin/sh\necho hello\n", "text"),
        (bytes(range(200)), "nothing that is known here"),
    ],
)
def test_a_file_that_is_no_dump_says_what_it_looks_like(dump, data, looks_like):
    with pytest.raises(errors.BadDump, match=f"this looks like {looks_like}"):
        dump(data)


def test_a_told_format_is_believed(dump):
    assert dump(bytes(range(200)), "raw").store.ranges == [(0, 200)]
    with pytest.raises(errors.BadDump, match="LiME"):
        dump(A, "lime")


def test_what_cannot_be_mapped_is_refused(tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(errors.BadDump, match="it is empty"):
        MappedFile(str(tmp_path / "empty"))
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(errors.UsageError, match="not a regular file"):
            MappedFile(str(path))
    with pytest.raises(FileNotFoundError):
        MappedFile(str(tmp_path / "nothing"))
