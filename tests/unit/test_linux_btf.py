"""Members' offsets out of BTF that is built here, byte by byte."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sevkvm.errors import BadGuestData
from sevkvm.linux.btf import Btf

INT, STRUCT, UNION, FWD = 1, 4, 5, 7


class Builder:
    """Types in the order they are added; the first is number 1."""

    def __init__(self) -> None:
        self.names = b"\0"
        self.types = b""
        self.count = 0

    def name(self, text: str) -> int:
        whole = text.encode() + b"\0"
        if text and b"\0" + whole not in self.names:
            self.names += whole
        return self.names.index(b"\0" + whole) + 1 if text else 0

    def add(self, text: str, kind: int, size: int, tail: bytes = b"", vlen: int = 0, flag: int = 0) -> int:
        self.types += struct.pack("<III", self.name(text), flag << 31 | kind << 24 | vlen, size) + tail
        self.count += 1
        return self.count

    def struct(self, text: str, *members: tuple[str, int, int], kind: int = STRUCT, flag: int = 0) -> int:
        tail = b"".join(struct.pack("<III", self.name(name), of, bits) for name, of, bits in members)
        return self.add(text, kind, 64, tail, len(members), flag)

    def data(self, magic: int = 0xEB9F) -> bytes:
        lengths = (0, len(self.types), len(self.types), len(self.names))
        return struct.pack("<HBBI", magic, 1, 0, 24) + struct.pack("<4I", *lengths) + self.types + self.names


def number(builder: Builder) -> int:
    return builder.add("int", INT, 4, struct.pack("<I", 32))


def test_a_member_and_one_in_anonymous_structs_within_it() -> None:
    builder = Builder()
    word = number(builder)
    inner = builder.struct("", ("pgd", word, 8 * 40), ("x", word, 0))
    outer = builder.struct("", ("other", word, 0), ("", inner, 0), kind=UNION)
    builder.add("mm_struct", FWD, 0)  # a declaration is no definition
    builder.struct("mm_struct", ("mmap", word, 0), ("", outer, 8 * 16))
    btf = Btf(builder.data())
    assert btf.offset("mm_struct", "mmap") == 0
    assert btf.offset("mm_struct", "pgd") == 56


def test_bit_fields_share_the_word_with_their_width() -> None:
    builder = Builder()
    word = number(builder)
    builder.struct("flags", ("bits", word, 3 << 24 | 8), ("next", word, 64), flag=1)
    assert Btf(builder.data()).offset("flags", "next") == 8


def test_the_same_struct_twice_is_well_and_two_that_differ_are_not() -> None:
    builder = Builder()
    word = number(builder)
    builder.struct("same", ("a", word, 64))
    name = builder.names.index(b"\0same\0") + 1
    builder.types += struct.pack("<III", name, STRUCT << 24 | 1, 64)
    builder.types += struct.pack("<III", builder.names.index(b"\0a\0") + 1, word, 64)
    assert Btf(builder.data()).offset("same", "a") == 8
    builder.types = builder.types[:-4] + struct.pack("<I", 128)
    with pytest.raises(BadGuestData, match=r"same\.a"):
        Btf(builder.data()).offset("same", "a")


@pytest.mark.parametrize(("struct_name", "member"), [("nothing", "a"), ("thing", "b"), ("int", "a")])
def test_what_is_not_there(struct_name: str, member: str) -> None:
    builder = Builder()
    builder.struct("thing", ("a", number(builder), 0))
    with pytest.raises(BadGuestData):
        Btf(builder.data()).offset(struct_name, member)


def test_a_struct_that_contains_itself_many_times_ends() -> None:
    builder = Builder()
    builder.struct("loop", *[("", 1, 0)] * 1000)
    with pytest.raises(BadGuestData, match="circles"):
        Btf(builder.data()).offset("loop", "a")


def test_a_kind_that_nobody_knows() -> None:
    builder = Builder()
    builder.add("new", 31, 0)
    with pytest.raises(BadGuestData, match="kind 31"):
        Btf(builder.data())


@pytest.mark.parametrize("cut", [0, 10, 24, 30, -1])
def test_cut_off(cut: int) -> None:
    builder = Builder()
    builder.struct("thing", ("a", number(builder), 0))
    with pytest.raises(BadGuestData):
        Btf(builder.data()[:cut])


@given(st.binary(max_size=120), st.integers(0, 200))
def test_garbage_is_refused_or_answered(tail: bytes, at: int) -> None:
    builder = Builder()
    builder.struct("thing", ("a", number(builder), 0))
    data = bytearray(builder.data())
    data[at : at + len(tail)] = tail
    with suppress(BadGuestData):
        assert Btf(bytes(data)).offset("thing", "a") >= 0
