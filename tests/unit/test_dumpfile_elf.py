"""ELF cores as others write them, and as nobody should: each byte is the file's own, or missing, or all is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sevkvm import errors
from sevkvm.dumpfile import DumpContents, Missing, open_contents
from sevkvm.dumpfile.image import MappedFile
from tests.support.elfcore import core, load, note

PAGE = 4096
A, B, C = (bytes([letter]) * PAGE for letter in b"abc")


class Opened:
    """A dump that was written to a file and opened."""

    def __init__(self, path: Path, data: bytes, file_format: str | None = None) -> None:
        path.write_bytes(data)
        self.image = MappedFile(str(path))
        self.contents: DumpContents = open_contents(self.image, file_format)

    def read(self, gpa: int, nbytes: int) -> bytes:
        """What there is from ``gpa`` on."""
        buffer = bytearray(nbytes)
        return bytes(buffer[: self.contents.store.readinto(gpa, memoryview(buffer))])


@pytest.fixture
def opened(tmp_path):
    kept = []

    def opener(data: bytes, file_format: str | None = None) -> Opened:
        kept.append(Opened(tmp_path / "dump", data, file_format))
        return kept[-1]

    yield opener
    for each in kept:
        each.image.__exit__(None, None, None)


def missing(dump: Opened) -> list[tuple[int, int]]:
    return [(gap.gpa, gap.nbytes) for gap in dump.contents.store.missing()]


def test_memory_is_found_by_its_physical_address(opened):
    dump = opened(core(load(0x1000, A + B, vaddr=0xFFFF888000001000), load(0x10_0000, C)))
    assert dump.contents.format == "elf"
    assert dump.contents.store.ranges == [(0x1000, 2 * PAGE), (0x10_0000, PAGE)]
    assert dump.read(0x1FF0, 32) == b"a" * 16 + b"b" * 16
    assert dump.read(0x2FFF, 2) == b"b"  # nothing behind it
    assert dump.read(0, 1) == b""
    assert dump.contents.store.why_missing(0) == "the dump holds nothing there"


def test_segments_that_touch_are_read_across(opened):
    dump = opened(core(load(0x2000, B), load(0x1000, A)))
    assert dump.read(0x1000, 2 * PAGE) == A + B
    assert dump.contents.store.ranges == [(0x1000, 2 * PAGE)]


def test_what_the_file_leaves_out_is_missing_and_not_zero(opened):
    dump = opened(core(load(0x1000, A, memory_nbytes=3 * PAGE), load(0x8000, b"", memory_nbytes=PAGE)))
    assert dump.read(0x1000, 3 * PAGE) == A
    assert missing(dump) == [(0x2000, 2 * PAGE), (0x8000, PAGE)]
    assert "left it out (PT_LOAD 0" in dump.contents.store.why_missing(0x3FFF)


def test_what_one_segment_leaves_out_another_may_hold(opened):
    dump = opened(core(load(0x1000, A, memory_nbytes=4 * PAGE), load(0x3000, C)))
    assert dump.read(0x3000, PAGE) == C
    assert missing(dump) == [(0x2000, PAGE), (0x4000, PAGE)]


def test_a_truncated_file_keeps_what_is_there(opened):
    whole = core(load(0x1000, A + B), load(0x10_0000, C))
    dump = opened(whole[: -PAGE - 100])
    assert dump.read(0x1000, 2 * PAGE) == A + B[:-100]
    assert dump.read(0x10_0000, 1) == b""
    assert missing(dump) == [(0x3000 - 100, 100), (0x10_0000, PAGE)]
    end = len(whole) - PAGE - 100
    assert dump.contents.store.why_missing(0x10_0000).startswith(
        f"the file is cut off at 0x{end:x}: PT_LOAD 1"
    )


def test_segments_that_show_the_same_bytes_may_overlap(opened):
    dump = opened(core(load(0x1000, A + B + C), load(0x2000, B), load(0x2000, offset=0, file_nbytes=0)))
    assert dump.read(0x1000, 3 * PAGE) == A + B + C
    # a view of the very same bytes of the file
    where = core(load(0x1000, A + B), load(0)).index(B)
    dump = opened(core(load(0x1000, A + B), load(0x2000, offset=where, file_nbytes=PAGE)))
    assert dump.read(0x1000, 2 * PAGE) == A + B


def test_segments_that_contradict_each_other_are_refused(opened):
    with pytest.raises(errors.BadDump, match="PT_LOAD 0 and PT_LOAD 1 overlap from gpa 0x2000 on"):
        opened(core(load(0x1000, A + B), load(0x2000, C)))


@pytest.mark.parametrize("bit", [47, 51])
def test_segments_shown_again_with_the_c_bit_are_no_memory_of_their_own(opened, bit):
    once = core(load(0x1000, A), load(0x10_0000, B + C), load(0), load(0))
    at = once.index(A)
    dump = opened(
        core(
            load(0x1000, A),
            load(0x10_0000, B + C),
            load(0x1000 | 1 << bit, offset=at, file_nbytes=PAGE),
            load(0x10_0000 | 1 << bit, offset=at + PAGE, file_nbytes=2 * PAGE),
        )
    )
    assert dump.contents.store.ranges == [(0x1000, PAGE), (0x10_0000, 2 * PAGE)]
    assert dump.contents.alias_bit == bit
    assert dump.read(0x10_0000, 2 * PAGE) == B + C


def test_memory_at_a_high_address_is_no_alias(opened):
    dump = opened(core(load(0x1000, A), load(0x1000 | 1 << 47, A)))
    assert dump.contents.alias_bit is None
    assert len(dump.contents.store.ranges) == 2


def test_more_program_headers_than_the_header_can_count(opened):
    dump = opened(core(load(0x1000, A), load(0x3000, C), xnum=True))
    assert dump.read(0x3000, PAGE) == C


def test_many_segments_in_any_order(opened):
    pages = [(number * 7919 % 5000) * PAGE for number in range(5000)]
    dump = opened(core(*(load(gpa, gpa.to_bytes(8, "little") * 512) for gpa in pages)))
    assert dump.contents.store.ranges == [(0, 5000 * PAGE)]
    assert all(dump.read(gpa, 8) == gpa.to_bytes(8, "little") for gpa in pages)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x7fELF", "the ELF header"),
        (core(load(0, A))[:100], "1 program headers"),
        (core(load(0, A), kind=2), "an executable, not a core"),
        (core(load(0, A), machine=183), "of machine 183"),
        (core(load(0, A), bits=1), "not a 64-bit"),
        (core(load(0, A), phentsize=32), "32 bytes each"),
        (core(load(0, A), phoff=1 << 63), "beyond its end"),
        (core(load(0, A), phnum=0), "without program headers"),
        (core(load(0, A), phnum=0xFFFE), "65534 program headers"),
        (core(load(0, A), phnum=0xFFFF, shoff=1 << 40), "the first section header"),
        (core(load(0, A, memory_nbytes=5)), "more bytes in the file"),
        (core(load((1 << 64) - PAGE, A)), "no processor has that"),
        (core(load(1 << 52, A)), "no processor has that"),
        (core(load(0, A, memory_nbytes=1 << 50)), "bytes that tell of 1024 TiB of memory"),
        (core(load(0, A), notes=note(b"CORE", 6, bytes(16))), "core of a process"),
        (core(load(0, A), notes=struct.pack("<III", 5, 1 << 31, 1)), "goes on beyond the end of its segment"),
        (core(load(0, A), notes=note(b"QEMU", 0, bytes(0x1B8))), "QEMU note of version 0"),
        (
            core(load(0, A), notes=note(b"QEMU", 0, struct.pack("<II", 1, 0x1B8))),
            "QEMU note of version 1 and",
        ),
        (core(load(0, A), notes=note(b"", 0, b"") * 20000), "more than"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_by_what_is_wrong(opened, data, says):
    with pytest.raises(errors.BadDump) as refused:
        opened(data)
    assert says in str(refused.value)
    assert "dump: " in str(refused.value)


def test_segments_without_end_are_refused_in_bounded_time(opened):
    data = core(*(load(number, offset=64, file_nbytes=40 * 56) for number in range(2000)))
    with pytest.raises(errors.BadDump, match="overlap"):
        opened(data)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 12), st.integers(0, 12), st.integers(0, 60)), max_size=8
    ),
    st.integers(0, 3000),
)
def test_any_segments_answer_as_the_headers_say_or_the_file_is_refused(tmp_path_factory, described, cut):
    """Units of 16 bytes; an oracle made of a dict looks up each byte by every segment that claims it."""
    loads = [
        load(16 * gpa, offset=64 + 16 * at, file_nbytes=16 * held, memory_nbytes=16 * (held + more))
        for gpa, held, more, at in described
    ]
    data = core(*loads, load(1 << 40, bytes(number * 37 & 0xFF for number in range(1024))))[: 3000 - cut]
    path = tmp_path_factory.mktemp("any") / "dump"
    claims: dict[int, set[int]] = {}
    for each in loads:
        assert each.offset is not None
        assert each.file_nbytes is not None
        for n in range(each.file_nbytes):
            if each.offset + n < len(data):
                claims.setdefault(each.paddr + n, set()).add(data[each.offset + n])
    try:
        dump = Opened(path, data)
    except errors.BadDump:
        return
    with dump.image:
        for gpa, values in claims.items():
            assert values == {dump.read(gpa, 1)[0]}
        for gpa in range(1200):
            if gpa not in claims:
                assert dump.read(gpa, 1) == b""
        gaps = dump.contents.store.missing()
        assert all(isinstance(gap, Missing) and gap.nbytes > 0 for gap in gaps)
        assert not any(gap.gpa <= gpa < gap.gpa + gap.nbytes for gap in gaps for gpa in claims)
