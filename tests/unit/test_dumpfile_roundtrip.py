"""What is dumped is what is read back: any guest, any unreadable pages, in every format."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sevkvm.attach import DumpOptions as FileOptions
from sevkvm.attach import open_dump
from sevkvm.dump import DumpFormat, DumpOptions, DumpResult, HoleReason, dump_guest, prepare
from sevkvm.errors import MemoryFault
from tests.support.fakeguest import PAGE, FakeGuest, UniformPages, pattern, vcpu_state

NPAGES = 200
MAPPED = {DumpFormat.ELF, DumpFormat.KDUMP, DumpFormat.LIME}  # formats that tell what they hold


@st.composite
def guests(draw: st.DrawFn) -> FakeGuest:
    """RAM in some slots, some pages of it zero, some unreadable."""
    edges = sorted(draw(st.sets(st.integers(0, NPAGES), min_size=2, max_size=8)))
    noise = pattern(NPAGES * PAGE)
    ram = {
        first * PAGE: bytearray(noise[first * PAGE : end * PAGE]) for first, end in itertools.pairwise(edges)
    }
    ram = {gpa: data for gpa, data in ram.items() if draw(st.booleans())} or {0: bytearray(noise)}
    for data in ram.values():
        for page in draw(st.lists(st.integers(0, len(data) // PAGE - 1), max_size=5)):
            data[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
    bad = draw(st.sets(st.integers(0, NPAGES), max_size=6))
    states = [vcpu_state(index) for index in range(draw(st.integers(0, 3)))]
    return FakeGuest(
        {gpa: bytes(data) for gpa, data in ram.items()}, {page * PAGE for page in bad}, states=states
    )


def lost(result: DumpResult) -> set[int]:
    return {
        page
        for hole in result.holes
        if hole.reason is not HoleReason.NOT_RAM
        for page in range(hole.address, hole.address + hole.nbytes, PAGE)
    }


@pytest.mark.parametrize("file_format", list(DumpFormat))
@settings(max_examples=25, deadline=None)
@given(subject=guests())
def test_every_page_is_read_back_or_missing(file_format: DumpFormat, subject: FakeGuest) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "dump")
        readable = {
            gpa + at for gpa, data in subject.ram.items() for at in range(0, len(data), PAGE)
        } - subject.memory.bad_pages
        result = dump_guest(subject, DumpOptions(file_format), UniformPages(), prepare(path))
        start = 0 if file_format is not DumpFormat.RAW else min(subject.ram)
        # raw tells neither where it begins nor, like padded, where its holes are
        slots = (f"{start:#x}:{Path(path).stat().st_size:#x}:0",) if file_format not in MAPPED else ()
        told = "raw" if slots else None
        if not readable and file_format is DumpFormat.LIME:
            return  # nothing at all: an empty file
        with open_dump(FileOptions(path, told, slots)) as guest:
            gone = lost(result)
            for gpa, data in subject.ram.items():
                for at in range(0, len(data), PAGE):
                    page = gpa + at
                    if page not in gone:
                        assert guest.read_physical(page, PAGE) == data[at : at + PAGE]
                    elif file_format in MAPPED:
                        with pytest.raises(MemoryFault):
                            guest.read_physical(page, 1)
            if file_format in MAPPED:
                for page in range(0, NPAGES * PAGE, PAGE):
                    if page not in readable:
                        with pytest.raises(MemoryFault):
                            guest.read_physical(page, 1)
            assert len(guest.vcpu_indexes) == (result.vcpus if subject.states else 0)
            if guest.vcpu_indexes:
                for told_state, state in zip(guest.registers(), subject.registers(), strict=True):
                    assert told_state.unknown == {"cr8", "efer", "apic_base"}
                    known = {name: getattr(state.sregs, name) for name in told_state.unknown}
                    assert told_state.regs == state.regs
                    assert told_state.sregs._replace(**known) == state.sregs
                    assert told_state.index == state.index
