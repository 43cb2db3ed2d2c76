"""Any guest, bad pages, range: a dump never shows a byte that was not read, and tells of each missing one."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

from elftools.elf.elffile import ELFFile
from hypothesis import given, settings
from hypothesis import strategies as st

from sevkvm.dump import DumpFormat, DumpOptions, DumpResult, HoleReason, dump_guest, prepare
from tests.support.fakeguest import PAGE, FakeGuest, UniformPages, pattern

NPAGES = 300


@st.composite
def guests(draw: st.DrawFn) -> tuple[bytes, list[tuple[int, int]], set[int]]:
    """All bytes from gpa 0 (zeros where there is no RAM), slots as (gpa, end), bad pages."""
    edges = sorted(draw(st.sets(st.integers(0, NPAGES), min_size=2, max_size=8)))
    slots = [(a * PAGE, b * PAGE) for a, b in itertools.pairwise(edges) if draw(st.booleans())]
    slots = slots or [(edges[0] * PAGE, edges[-1] * PAGE)]
    memory = bytearray(NPAGES * PAGE)
    noise = pattern(NPAGES * PAGE)
    for gpa, end in slots:
        memory[gpa:end] = noise[gpa:end]
    for page in draw(st.lists(st.integers(0, NPAGES - 1), max_size=20)):
        memory[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
    runs = draw(st.lists(st.tuples(st.integers(0, NPAGES), st.integers(1, 150)), max_size=6))
    bad = {page * PAGE for first, count in runs for page in range(first, first + count)}
    return bytes(memory), slots, bad


def dump(
    guest: FakeGuest, file_format: DumpFormat, gpa: tuple[int, int]
) -> tuple[DumpResult, bytes, list[tuple[int, bytes]]]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "dump"
        options = DumpOptions(file_format, gpa=gpa)
        result = dump_guest(guest, options, UniformPages(), prepare(str(path)))
        loaded = []
        if file_format is DumpFormat.ELF:
            with path.open("rb") as file:
                loaded = [(s["p_paddr"], s.data()) for s in ELFFile(file).iter_segments("PT_LOAD")]
        return result, path.read_bytes(), loaded


@settings(max_examples=60, deadline=None)
@given(guests(), st.data())
def test_a_dump_is_the_truth(described, data):
    memory, slots, bad = described
    first_gpa, last_end = slots[0][0], slots[-1][1]
    start = data.draw(st.integers(first_gpa, slots[0][1] - 1))
    end = data.draw(st.integers(start + 1, last_end))
    guest = FakeGuest({gpa: memory[gpa:stop] for gpa, stop in slots}, bad, states=[])
    result, raw, _ = dump(guest, DumpFormat.RAW, (start, end))
    elf_result, _, loaded = dump(guest, DumpFormat.ELF, (start, end))

    known = bytearray(b"\1" * (end - start))  # 1: the dump claims to hold this byte
    for hole in result.holes:
        known[hole.address - start : hole.address - start + hole.nbytes] = bytes(hole.nbytes)
        for page in range(hole.address & -PAGE, hole.address + hole.nbytes, PAGE):
            ram = any(gpa <= page < stop for gpa, stop in slots)
            if hole.reason is HoleReason.NOT_RAM:
                assert not ram
            elif hole.reason is HoleReason.UNREADABLE:
                assert page in bad
            else:
                assert hole.reason is HoleReason.UNREADABLE_SAMPLED
                assert ram
                assert hole.nbytes > 2 * PAGE
    assert len(raw) == end - start
    for page in range(start & -PAGE, end, PAGE):
        low, high = max(page, start), min(page + PAGE, end)
        if known[low - start]:
            assert page not in bad
            assert any(gpa <= page < stop for gpa, stop in slots)
            assert raw[low - start : high - start] == memory[low:high]
        else:
            assert not any(raw[low - start : high - start])
    assert result.copied_nbytes == sum(known)

    assert elf_result.holes == result.holes
    shown = bytearray(end - start)
    for gpa, content in loaded:
        assert content == memory[gpa : gpa + len(content)]
        shown[gpa - start : gpa - start + len(content)] = b"\1" * len(content)
    assert shown == known
