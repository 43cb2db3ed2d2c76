"""The VMCOREINFO note as bytes: what a kernel writes, and what nobody should believe."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sevkvm.errors import BadGuestData
from sevkvm.linux.vmcoreinfo import HEAD_NBYTES, TEXT_NBYTES_MAX, VmcoreInfo, extent, parse
from tests.support.fakekernel import elf_note

# as Debian's 6.1 writes it, cut down
TEXT = b"""\
OSRELEASE=6.1.0-56-cloud-amd64
BUILD-ID=3b43fad5034874490492495d552c0af6a5fab235
PAGESIZE=4096
SYMBOL(init_uts_ns)=ffffffff9e3f9b60
OFFSET(uts_namespace.name)=0
SYMBOL(swapper_pg_dir)=ffffffff9e210000
NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-129
NUMBER(phys_base)=-325058560
SYMBOL(init_top_pgt)=ffffffff9e210000
NUMBER(pgtable_l5_enabled)=0
KERNELOFFSET=1b800000
NUMBER(KERNEL_IMAGE_SIZE)=1073741824
NUMBER(sme_mask)=2251799813685248
"""


def read(page: bytes, gpa: int = 0x5000) -> VmcoreInfo:
    """As a search reads it: the head tells how much."""
    nbytes = extent(page[:HEAD_NBYTES])
    assert nbytes
    return parse(gpa, page.ljust(nbytes, b"\0")[:nbytes])


@pytest.mark.parametrize("bare", [False, True])
def test_what_a_kernel_writes(bare: bool) -> None:
    info = read(TEXT.ljust(4096, b"\0") if bare else elf_note(TEXT).ljust(8192, b"\0"))
    assert (info.gpa, info.bare, info.text.encode()) == (0x5000, bare, TEXT)
    assert info.osrelease == "6.1.0-56-cloud-amd64"
    assert info.build_id == "3b43fad5034874490492495d552c0af6a5fab235"
    assert info.swapper_gva == info.symbols["init_top_pgt"] == 0xFFFF_FFFF_9E21_0000
    assert info.symbols["init_uts_ns"] == 0xFFFF_FFFF_9E3F_9B60
    assert info.numbers["PAGE_BUDDY_MAPCOUNT_VALUE"] == -129
    assert info.phys_base == -325058560
    assert info.root_gpa == 0x1E21_0000 - 325058560 == 0xAC1_0000
    assert info.levels == 4
    assert info.kernel_offset == 0x1B80_0000
    assert info.sme_mask == 1 << 51
    assert info.values["OFFSET(uts_namespace.name)"] == "0"
    assert not info.crashed


def test_five_levels_and_a_crash() -> None:
    info = read(elf_note(TEXT.replace(b"l5_enabled)=0", b"l5_enabled)=1") + b"CRASHTIME=1700000000\n"))
    assert (info.levels, info.crashed) == (5, True)


def test_older_names_of_the_top_table_and_no_phys_base() -> None:
    text = TEXT.replace(b"SYMBOL(swapper_pg_dir)=ffffffff9e210000\n", b"").replace(
        b"init_top_pgt", b"init_level4_pgt"
    )
    assert read(elf_note(text)).swapper_gva == 0xFFFF_FFFF_9E21_0000
    info = read(elf_note(TEXT.replace(b"NUMBER(phys_base)", b"SYMBOL(phys_base)")))
    assert (info.phys_base, info.root_gpa) == (None, None)


def test_a_text_longer_than_a_page() -> None:
    text = TEXT + b"".join(b"NUMBER(n%d)=%d\n" % (n, n) for n in range(300))
    assert len(text) > 4096
    assert read(elf_note(text)).numbers["n299"] == 299


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ((b"PAGESIZE=4096", b"PAGESIZE=16384"), "PAGESIZE"),
        ((b"PAGESIZE=4096\n", b""), "PAGESIZE"),
        ((b"6.1.0-56-cloud-amd64", b""), "OSRELEASE"),
        ((b"6.1.0-56-cloud-amd64", b"6" * 65), "OSRELEASE"),
        ((b"ffffffff9e210000", b"somewhere"), "swapper_pg_dir"),
        ((b"KERNELOFFSET=1b800000", b"KERNELOFFSET=-1"), "KERNELOFFSET"),
        ((b"NUMBER(phys_base)=-325058560\n", b"NUMBER(phys_base)=1\nNUMBER(phys_base)=2\n"), "twice"),
        ((b"6.1.0", b"6.1\xff0"), "not the text"),
        ((b"6.1.0", b"6.1\x000"), "not the text"),
        ((b"6.1.0", b"6.1\x1b[0"), "not the text"),
        ((b"\nBUILD", b"\n\nBUILD"), "not the text"),
        ((b"248\n", b"248"), "not the text"),
    ],
)
def test_what_no_kernel_writes_is_refused(change: tuple[bytes, bytes], complaint: str) -> None:
    with pytest.raises(BadGuestData, match=complaint) as caught:
        read(elf_note(TEXT.replace(*change)))
    assert "0x5000" in caught.value.message


@pytest.mark.parametrize(
    "head",
    [
        b"",
        bytes(HEAD_NBYTES),
        b"OSRELEASE",
        b" OSRELEASE=6.1",
        struct.pack("<III12s", 12, 100, 0, b"VMCOREINFO") + b"OSRELEASE=6.1",
        struct.pack("<III12s", 11, 100, 1, b"VMCOREINFO") + b"OSRELEASE=6.1",
        struct.pack("<III12s", 11, TEXT_NBYTES_MAX + 1, 0, b"VMCOREINFO") + b"OSRELEASE=6.1",
        struct.pack("<III12s", 11, 100, 0, b"VMCOREINFX") + b"OSRELEASE=6.1",
        struct.pack("<III12s", 11, 100, 0, b"VMCOREINFO") + b"CRASHTIME=6.1",
    ],
)
def test_what_does_not_begin_like_one_is_not_parsed(head: bytes) -> None:
    assert extent(head[:HEAD_NBYTES]) == 0


LINE = st.sampled_from(
    [*TEXT.splitlines(keepends=True), b"SYMBOL(x)=g\n", b"NUMBER(y)=99999999999999999999\n"]
)


@given(st.lists(st.one_of(LINE, st.binary(max_size=40))).map(b"".join), st.booleans())
@example(b"NUMBER(phys_base)=-99999999999999999999\n" + TEXT[31:], False)
def test_hostile_notes_parse_or_are_bad_guest_data(rest: bytes, bare: bool) -> None:
    text = (b"OSRELEASE=1\n" + rest)[:TEXT_NBYTES_MAX]
    page = text if bare else elf_note(text)
    try:
        info = read(page)
    except BadGuestData:
        return
    assert info.text.isascii()
    assert info.text.encode() in page
    assert 0 <= info.swapper_gva < 1 << 64
    assert info.root_gpa is None or isinstance(info.root_gpa, int)


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    nbytes = extent(data[:HEAD_NBYTES])
    assert 0 <= nbytes <= TEXT_NBYTES_MAX + 24
    with pytest.raises(BadGuestData):  # never a whole one by chance, and never anything else
        parse(0, data)
