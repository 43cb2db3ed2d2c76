"""Pages that are left out on purpose: which, and what the file and the result say of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sevkvm import errors
from sevkvm.cli.values import LEVEL
from sevkvm.dump import DumpFormat, DumpOptions, Exclude, dump_guest, prepare
from sevkvm.dump.exclude import ExcludingMap
from sevkvm.dump.reader import EXCLUDED
from tests.support.fakeguest import PAGE, FakeGuest, ListedPages, UniformPages, pattern
from tests.support.kdumpread import KdumpFile

SPANS = st.lists(
    st.tuples(st.integers(0, 6), st.integers(1, 6), st.sampled_from([2, 8, 16, 32])), max_size=12
)


def placed(spans):
    """``(gpa, nbytes, type)`` from gaps and lengths in pages."""
    at = 0
    for gap, npages, kind in spans:
        yield (at + gap) * PAGE, npages * PAGE, kind
        at += gap + npages


@given(SPANS, SPANS, st.integers(0, 40), st.integers(1, 60))
def test_the_map_is_cut_where_pages_are_left_out(excluded, told, start, npages):
    runs = [(gpa, nbytes, kind == 8, str(kind)) for gpa, nbytes, kind in placed(told)]
    start, end = start * PAGE, (start + npages) * PAGE
    without = {page for gpa, nbytes, _ in placed(excluded) for page in range(gpa, gpa + nbytes, PAGE)}
    expected = {
        page: (EXCLUDED if page in without else kind, private)
        for gpa, nbytes, private, kind in ListedPages(*runs).runs(start, end)
        for page in range(gpa, gpa + nbytes, PAGE)
    }
    got = ExcludingMap(ListedPages(*runs), placed(excluded)).runs(start, end)
    pages = [
        (page, (kind, private))
        for gpa, nbytes, private, kind in got
        for page in range(gpa, gpa + nbytes, PAGE)
    ]
    assert [page for page, _ in pages] == sorted(expected)
    assert dict(pages) == expected


def test_what_is_left_out_is_no_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sevkvm.dump.job.excluding",
        lambda guest, kernel, level, pieces, page_map: ExcludingMap(
            page_map, [(2 * PAGE, 3 * PAGE, 16), (5 * PAGE, PAGE, 32)]
        ),
    )
    data = pattern(9 * PAGE)
    options = DumpOptions(DumpFormat.KDUMP, exclude=Exclude(31))
    seen: list[tuple[int, int]] = []
    result = dump_guest(
        FakeGuest({0: data}),
        options,
        UniformPages(),
        prepare(str(tmp_path / "vmcore")),
        lambda done, total: seen.append((done, total)),
    )
    file = KdumpFile(tmp_path / "vmcore")
    assert file.dumped == [0, 1, 6, 7, 8]
    assert file.ram == list(range(9))
    assert all(page == data[pfn * PAGE : (pfn + 1) * PAGE] for pfn, (page, _, _) in file.pages.items())
    assert file.data[PAGE + 8 : PAGE + 12] == bytes([31, 0, 0, 0])
    assert result.complete
    assert result.excluded == {"free": 3 * PAGE, "bad": PAGE}
    assert result.copied_nbytes == 5 * PAGE
    assert seen[-1] == (9 * PAGE, 9 * PAGE)


def test_a_guest_that_tells_nothing_is_refused_and_zeros_need_nothing(tmp_path):
    guest, target = FakeGuest({0: bytes(3 * PAGE)}), prepare(str(tmp_path / "vmcore"))
    with pytest.raises(errors.BadGuestData, match="not known"):
        dump_guest(guest, DumpOptions(DumpFormat.KDUMP, exclude=Exclude.FREE), UniformPages(), target)
    assert list(tmp_path.iterdir()) == []
    result = dump_guest(guest, DumpOptions(DumpFormat.KDUMP, exclude=Exclude.ZERO), UniformPages(), target)
    assert (result.excluded, KdumpFile(tmp_path / "vmcore").dumped) == ({}, [0, 1, 2])


@pytest.mark.parametrize(
    "options",
    [
        DumpOptions(DumpFormat.ELF, exclude=Exclude.ZERO),
        DumpOptions(DumpFormat.RAW, exclude=Exclude.FREE),
        DumpOptions(DumpFormat.KDUMP, exclude=Exclude.FREE, live=True),
    ],
)
def test_what_cannot_be_left_out_is_refused(tmp_path, options):
    with pytest.raises(errors.UsageError, match=r"exclude|has all pages"):
        dump_guest(FakeGuest({0: bytes(PAGE)}), options, UniformPages(), prepare(str(tmp_path / "dump")))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "level"), [("0", 0), ("31", 31), ("zero", 1), ("free,cache", 18), ("cache-private,user", 12)]
)
def test_a_level_is_a_number_or_names(text, level):
    assert LEVEL.convert(text, None, None) == level


@pytest.mark.parametrize("text", ["32", "-1", "", "free,", "Free", "1,2", "²"])
def test_no_level(text):
    with pytest.raises(Exception, match="none of"):
        LEVEL.convert(text, None, None)
