"""What ``--cbit strip`` changes of a real Linux: the tables of every process, and nothing else."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from elftools.elf.elffile import ELFFile

from sevkvm.dump import CbitMode, DumpFormat, DumpOptions, dump_guest, prepare
from sevkvm.errors import BadGuestData
from sevkvm.lab.files import mapped
from sevkvm.lab.initrd import KEEPERS
from sevkvm.lab.keeper import SECRET_GVA, SECRET_NBYTES
from sevkvm.linux.roots import find_roots
from tests.support.fakeguest import UniformPages
from tests.support.readers.dumps import GUESTS, Dumps, sealed
from tests.support.readers.sealedguest import SealedGuest
from tests.support.walker import leaves, lookup, table_pages

pytestmark = pytest.mark.kvm


@pytest.fixture(params=GUESTS, ids=lambda guest: f"{guest[0]}-level-c{guest[1]}")
def cell(request: pytest.FixtureRequest) -> tuple[int, int, str]:
    return (*request.param, "strip")


def ram_of(path, nbytes: int) -> memoryview:
    """Guest RAM from gpa 0 up, out of the segments of an ELF file."""
    ram = bytearray(nbytes)
    with path.open("rb") as file:
        for segment in ELFFile(file).iter_segments("PT_LOAD"):
            file.seek(segment["p_offset"])
            ram[segment["p_paddr"] : segment["p_paddr"] + segment["p_filesz"]] = file.read(
                segment["p_filesz"]
            )
    return memoryview(ram)


def note_of(path) -> bytes:
    with path.open("rb") as file:
        return next(iter(ELFFile(file).iter_segments("PT_NOTE"))).data()


def test_the_roots_are_those_of_every_process_and_the_kernels_own(cell) -> None:
    linux = sealed(*cell[:2])
    guest = SealedGuest(linux)
    found = find_roots(guest.memory, guest.vmcoreinfo(), linux.seal.cbit_pos, guest.forms())
    assert found.unknown == ()
    roots = {form.root_gpa for form in found.forms}
    assert set(linux.keeper_roots.values()) < roots
    assert {form.root_gpa for form in guest.forms()} < roots
    # the lab finds whatever looks like a top table: freed ones too
    assert roots <= set(linux.seal.roots)
    top = lookup(
        mapped(linux.ram),
        guest.forms()[0].root_gpa,
        linux.seal.levels,
        linux.seal.cbit_pos,
        int(linux.plain.facts["symbol.init_top_pgt"], 16),
    )
    assert top in roots


def test_tables_of_every_process_and_nothing_else(reader_dumps: Dumps, cell) -> None:
    linux = sealed(*cell[:2])
    seal, cbit = linux.seal, 1 << linux.seal.cbit_pos
    guest = SealedGuest(linux)
    before = mapped(linux.ram)
    after = ram_of(reader_dumps.dump(cell), len(before))
    roots = {
        form.root_gpa
        for form in find_roots(guest.memory, guest.vmcoreinfo(), seal.cbit_pos, guest.forms()).forms
    }
    tables = set().union(*(table_pages(before, root, seal.levels, seal.cbit_pos) for root in roots))
    assert reader_dumps.result(cell).cbit.tables == len(tables)
    for first, end in linux.plain.private_ranges:
        for gpa in range(first, end, 4096):
            old, new = before[gpa : gpa + 4096], after[gpa : gpa + 4096]
            if gpa not in tables:
                assert old == new, hex(gpa)
                continue
            for was, now in zip(old.cast("Q"), new.cast("Q"), strict=True):
                assert now == (was & ~cbit if was & 1 else was)
    for root in roots:
        assert not any(leaf.private for leaf in leaves(after, root, seal.levels, seal.cbit_pos))
    for keeper in KEEPERS:  # without a C-bit now
        gpa = lookup(after, linux.keeper_roots[keeper.name], seal.levels, None, SECRET_GVA)
        assert gpa is not None
        assert bytes(after[gpa : gpa + SECRET_NBYTES]) == keeper.secret


@pytest.mark.parametrize("mode", ["keep", "alias"])
def test_without_strip_every_byte_is_the_guests(reader_dumps: Dumps, mode: str) -> None:
    linux = sealed(4, 51)
    ram = mapped(linux.ram)
    with reader_dumps.dump((4, 51, mode)).open("rb") as file:
        segments = list(ELFFile(file).iter_segments("PT_LOAD"))
        for segment in segments:
            gpa, nbytes = segment["p_paddr"] & ~(1 << 51), segment["p_filesz"]
            file.seek(segment["p_offset"])
            assert file.read(nbytes) == ram[gpa : gpa + nbytes]
        assert sum(segment["p_paddr"] >> 51 for segment in segments) == (2 if mode == "alias" else 0)
    size = reader_dumps.dump((4, 51, mode)).stat().st_size
    assert size == reader_dumps.dump((4, 51, "strip")).stat().st_size, "aliases share the bytes"


def test_the_note_agrees_with_the_file(reader_dumps: Dumps) -> None:
    linux = sealed(4, 51)
    assert linux.vmcoreinfo is not None
    theirs = linux.vmcoreinfo.text.encode()
    for mode in ("keep", "alias"):
        assert theirs in note_of(reader_dumps.dump((4, 51, mode)))
    stripped = re.sub(rb"(?m)^NUMBER\(sme_mask\)=.*$", b"NUMBER(sme_mask)=0", theirs)
    assert stripped in note_of(reader_dumps.dump((4, 51, "strip")))


def test_without_symbols_the_ring_is_entered_where_a_vcpu_runs() -> None:
    """Linux before 6.0 does not say where its symbol table is."""
    linux = sealed(5, 47)
    guest = SealedGuest(linux)
    info = guest.vmcoreinfo()
    whole = find_roots(guest.memory, info, 47, guest.forms())
    symbols = {name: gva for name, gva in info.symbols.items() if not name.startswith("kallsyms_")}
    found = find_roots(guest.memory, replace(info, symbols=symbols), 47, guest.forms())
    missing = {form.root_gpa for form in whole.forms} - {form.root_gpa for form in found.forms}
    assert len(missing) == 1, "the trampoline's: no process has it"
    assert not missing & set(linux.keeper_roots.values())
    assert "before 6.0" in found.unknown[0]
    with pytest.raises(BadGuestData, match="pgd_list"):
        find_roots(guest.memory, replace(info, symbols=symbols), 47)


def test_auto_strips_a_linux(reader_dumps: Dumps, tmp_path) -> None:
    guest = SealedGuest(sealed(4, 51))
    for live, mode in ((False, CbitMode.STRIP), (True, CbitMode.ALIAS)):
        target = prepare(str(tmp_path / mode.value))
        result = dump_guest(guest, DumpOptions(DumpFormat.ELF, live=live), UniformPages(True), target)
        assert result.cbit.mode is mode
        assert bool(result.cbit.fallback) == live
    stripped, theirs = tmp_path / "strip", reader_dumps.dump((4, 51, "strip"))
    assert ram_of(stripped, 1 << 28) == ram_of(theirs, 1 << 28)
