from __future__ import annotations

import struct

import pytest

from sevkvm.lab.vmcoreinfo import find_vmcoreinfo, set_sme_mask

TEXT = b"OSRELEASE=6.1.0\nPAGESIZE=4096\nNUMBER(sme_mask)=0\nKERNELOFFSET=1000000\n"


def ram_with(text: bytes, gpa: int = 0x3000, kind: int = 0) -> bytearray:
    ram = bytearray(0x8000)
    note = struct.pack("<III", 11, len(text), kind) + b"VMCOREINFO\0\0" + text
    ram[gpa : gpa + len(note)] = note
    return ram


def test_the_note_is_found_at_the_start_of_a_page() -> None:
    note = find_vmcoreinfo(memoryview(ram_with(TEXT)))
    assert note is not None
    assert (note.gpa, note.text) == (0x3000, TEXT.decode())


@pytest.mark.parametrize(
    "ram",
    [
        bytearray(0x8000),
        ram_with(TEXT, gpa=0x3010),
        ram_with(TEXT, kind=1),
        ram_with(b"hello"),
        ram_with(b""),
        ram_with(b"OSRELEASE=\xff"),
    ],
)
def test_what_is_no_note_is_not_found(ram: bytearray) -> None:
    assert find_vmcoreinfo(memoryview(ram)) is None


@pytest.mark.parametrize("text", [TEXT, TEXT.replace(b"NUMBER(sme_mask)=0\n", b"")])
def test_the_mask_is_written_and_the_list_still_ends(text: bytes) -> None:
    ram = ram_with(text)
    found = find_vmcoreinfo(memoryview(ram))
    assert found is not None
    new = set_sme_mask(memoryview(ram), found, 47)
    again = find_vmcoreinfo(memoryview(ram))
    assert again == new
    assert again.text.count("NUMBER(sme_mask)=") == 1
    assert "NUMBER(sme_mask)=140737488355328\n" in again.text
    assert {"OSRELEASE=6.1.0", "KERNELOFFSET=1000000"} < set(again.text.splitlines())
    assert bytes(ram[0x3000 + again.nbytes : 0x3000 + again.nbytes + 12]) == bytes(12)
    assert not any(ram[:0x3000])
    assert not any(ram[0x4000:])
