"""Dumps whose bytes were tampered with: an error of ours or an answer, and never made-up memory."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sevkvm.attach import DumpOptions, open_dump
from sevkvm.errors import SevKvmError
from tests.support.elfcore import core, load, note
from tests.support.kdumpfile import flattened, kdump

PAGE = 4096
A, B = b"a" * PAGE, b"b" * PAGE
NOTES = (
    note(b"CORE", 1, bytes(336))
    + note(b"QEMU", 0, struct.pack("<II", 1, 0x1B8).ljust(0x1B8, b"\0"))
    + note(b"VMCOREINFO", 0, b"OSRELEASE=6.1\nNUMBER(sme_mask)=0\n")
)
KDUMP = kdump({0: A, 1: B, 7: A}, left_out=[3], notes=NOTES)
FILES: dict[str, bytes] = {
    "elf": core(load(0, A), load(0x8000, B, memory_nbytes=3 * PAGE), notes=NOTES),
    "xnum": core(load(0, A), load(0x8000, B), notes=NOTES, xnum=True),
    "kdump": KDUMP,
    "flattened": flattened(
        [(0, KDUMP[:464]), *((at, KDUMP[at : at + 777]) for at in range(PAGE, len(KDUMP), 777))]
    ),
    "lime": struct.pack("<IIQQQ", 0x4C694D45, 1, 0, PAGE - 1, 0)
    + A
    + struct.pack("<IIQQQ", 0x4C694D45, 1, 0x8000, 0x8000 + PAGE - 1, 0)
    + B,
}
INTERESTING = [0, 1, 0x7F, 0x80, 0xFF]


def interesting_places(data: bytes) -> list[int]:
    """Where bytes are that are no memory: headers, tables, notes."""
    return [at for at in range(len(data)) if data[at] not in b"ab" or at < 600]


@pytest.mark.parametrize("kind", FILES)
@settings(max_examples=150, deadline=None)
@given(draws=st.data())
def test_a_tampered_file_is_refused_or_answers(kind: str, draws: st.DataObject, tmp_path_factory) -> None:
    original = FILES[kind]
    data = bytearray(original)
    places = interesting_places(original)
    for _ in range(draws.draw(st.integers(1, 4))):
        at = draws.draw(st.sampled_from(places))
        width = draws.draw(st.sampled_from([1, 2, 4, 8]))
        value = (
            draws.draw(st.sampled_from(INTERESTING))
            if draws.draw(st.booleans())
            else draws.draw(st.integers(0, 255))
        )
        data[at : at + width] = bytes([value]) * min(width, len(data) - at)
    cut = draws.draw(st.integers(0, len(data) - 1)) if draws.draw(st.booleans()) else 0
    path = tmp_path_factory.mktemp("fuzz") / "dump"
    path.write_bytes(bytes(data[: len(data) - cut]))
    touch(path, lambda page: page.strip(b"ab") == b"" or page in bytes(data))


def touch(path: Path, is_of_the_file: Callable[[bytes], bool]) -> None:
    """Ask it everything; what it calls memory must be bytes of the file."""
    try:
        with open_dump(DumpOptions(str(path))) as guest:
            assert guest.contents is not None
            guest.contents.store.missing()
            for gpa in (0, PAGE, 0x3000, 0x7000, 0x8000, 0x9000):
                try:
                    page = guest.read_physical(gpa, 64)
                except SevKvmError:
                    continue
                assert is_of_the_file(page) or guest.contents.format.startswith("kdump")
            with contextlib.suppress(SevKvmError):
                guest.translate(0xFFFF_8880_0000_0000, guest.paging())
    except SevKvmError:
        return
