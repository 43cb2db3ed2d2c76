"""Raw dumps of a guest made of bytes: places, gaps, holes, private pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from sevkvm import errors
from sevkvm.dump import DumpOptions, Hole, HoleReason, dump_guest, prepare
from tests.support.fakeguest import PAGE, FakeGuest, ListedPages, UniformPages, pattern
from tests.support.tables import Tables

MIB = 1 << 20


def dump(guest: FakeGuest, path: Path, page_map=None, **options):
    page_map = page_map or UniformPages()
    return dump_guest(guest, DumpOptions(**options), page_map, prepare(str(path)))


def test_every_byte_is_where_its_gpa_says_and_gaps_read_as_zero(tmp_path):
    low, high = pattern(20 * PAGE), pattern(5 * PAGE, seed=2)
    guest = FakeGuest({0: low, 0x100000: high})
    result = dump(guest, tmp_path / "ram")
    data = (tmp_path / "ram").read_bytes()
    assert data == low.ljust(0x100000, b"\0") + high
    assert result.holes == (Hole(20 * PAGE, 0x100000 - 20 * PAGE, HoleReason.NOT_RAM),)
    assert result.complete
    assert result.copied_nbytes == 25 * PAGE
    assert result.file_nbytes == len(data)
    assert guest.hold_count == 1


def test_a_live_dump_does_not_hold_the_guest(tmp_path):
    guest = FakeGuest({0: pattern(PAGE)})
    assert dump(guest, tmp_path / "ram", live=True).live
    assert guest.hold_count == 0


def test_a_range_starts_and_ends_at_any_byte(tmp_path):
    ram = pattern(8 * PAGE)
    dump(FakeGuest({0: ram}), tmp_path / "ram", gpa=(0x1803, 0x5005))
    assert (tmp_path / "ram").read_bytes() == ram[0x1803:0x5005]


def test_adjacent_slots_are_no_gap(tmp_path):
    ram = pattern(6 * PAGE)
    result = dump(FakeGuest({0: ram[:0x2000], 0x2000: ram[0x2000:]}), tmp_path / "ram")
    assert (tmp_path / "ram").read_bytes() == ram
    assert result.holes == ()


def test_a_range_without_ram_is_refused_before_a_file_exists(tmp_path):
    with pytest.raises(errors.UsageError, match="no guest memory"):
        dump(FakeGuest({0: pattern(PAGE)}), tmp_path / "ram", gpa=(0x100000, 0x200000))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("span", [(5, 5), (6, 5), (0, 1 << 65), (-1, 5)])
def test_an_empty_or_absurd_range_is_a_usage_error(tmp_path, span):
    with pytest.raises(errors.UsageError):
        dump(FakeGuest({0: pattern(PAGE)}), tmp_path / "ram", gpa=span)


@pytest.mark.parametrize("raises", [False, True])
def test_one_bad_page_costs_one_page(tmp_path, raises):
    ram = pattern(20 * PAGE)
    guest = FakeGuest({0: ram}, bad_pages={0, 5 * PAGE, 7 * PAGE, 19 * PAGE})
    guest.memory.raises_on_fault = raises
    result = dump(guest, tmp_path / "ram")
    expected = bytearray(ram)
    for page in (0, 5, 7, 19):
        expected[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
    assert (tmp_path / "ram").read_bytes() == expected
    assert result.holes == tuple(Hole(n * PAGE, PAGE, HoleReason.UNREADABLE) for n in (0, 5, 7, 19))
    assert result.copied_nbytes == 16 * PAGE
    assert not result.complete


@pytest.mark.parametrize("first", [0, 1, 2, 63, 64, 130])
@pytest.mark.parametrize("npages", [2, 3, 4, 5, 62, 63, 64, 65, 100, 129, 200])
def test_a_run_of_bad_pages_ends_at_its_true_end(tmp_path, first, npages):
    ram = pattern(400 * PAGE)
    guest = FakeGuest({0: ram}, bad_pages=range(first * PAGE, (first + npages) * PAGE, PAGE))
    result = dump(guest, tmp_path / "ram")
    (hole,) = result.holes
    assert (hole.address, hole.nbytes) == (first * PAGE, npages * PAGE)
    assert hole.reason in (HoleReason.UNREADABLE, HoleReason.UNREADABLE_SAMPLED)
    data = (tmp_path / "ram").read_bytes()
    assert data[: first * PAGE] == ram[: first * PAGE]
    assert data[(first + npages) * PAGE :] == ram[(first + npages) * PAGE :]


def test_pages_that_were_never_tried_are_called_sampled(tmp_path):
    guest = FakeGuest({0: pattern(100 * PAGE)}, bad_pages=range(0, 50 * PAGE, PAGE))
    assert dump(guest, tmp_path / "a").holes[0].reason is HoleReason.UNREADABLE_SAMPLED
    guest = FakeGuest({0: pattern(100 * PAGE)}, bad_pages=range(0, 3 * PAGE, PAGE))
    assert dump(guest, tmp_path / "b").holes[0].reason is HoleReason.UNREADABLE


def test_an_unreadable_slot_costs_few_reads(tmp_path):
    npages = 64 * MIB // PAGE
    guest = FakeGuest({0: pattern(PAGE), MIB: bytes(64 * MIB)}, bad_pages=range(MIB, 65 * MIB, PAGE))
    result = dump(guest, tmp_path / "ram")
    assert result.holes[-1] == Hole(MIB, 64 * MIB, HoleReason.UNREADABLE_SAMPLED)
    assert guest.memory.reads < npages // 32


def test_zero_pages_are_sparse_and_still_counted_as_read(tmp_path):
    ram = pattern(PAGE) + bytes(4 * MIB) + pattern(PAGE, seed=3)
    result = dump(FakeGuest({0: ram}), tmp_path / "ram")
    path = tmp_path / "ram"
    assert path.read_bytes() == ram
    assert path.stat().st_blocks * 512 < MIB
    assert result.copied_nbytes == len(ram)
    assert result.holes == ()


def test_each_page_is_read_the_way_the_map_says(tmp_path):
    ram = pattern(4 * PAGE)
    page_map = ListedPages(
        (0, PAGE, True, "direct"), (PAGE, 2 * PAGE, False, "direct"), (3 * PAGE, 64 * PAGE, True, "x")
    )
    dump(FakeGuest({0: ram}), tmp_path / "ram", page_map)
    flipped = bytes(byte ^ 0xFF for byte in ram)
    assert (tmp_path / "ram").read_bytes() == flipped[:PAGE] + ram[PAGE : 3 * PAGE] + flipped[3 * PAGE :]


def test_pages_that_no_run_covers_are_skipped_not_guessed(tmp_path):
    ram = pattern(6 * PAGE)
    page_map = ListedPages((PAGE, PAGE, False, "direct"), (3 * PAGE, PAGE, False, "direct"))
    result = dump(FakeGuest({0: ram}), tmp_path / "ram", page_map)
    assert [(h.address, h.nbytes) for h in result.holes] == [
        (0, PAGE), (2 * PAGE, PAGE), (4 * PAGE, 2 * PAGE)
    ]  # fmt: skip
    assert {h.reason for h in result.holes} == {HoleReason.SKIPPED}
    expected = bytes(PAGE) + ram[PAGE : 2 * PAGE] + bytes(PAGE) + ram[3 * PAGE : 4 * PAGE] + bytes(2 * PAGE)
    assert (tmp_path / "ram").read_bytes() == expected
    assert not result.complete


def test_virtual_memory_in_the_order_of_its_addresses(tmp_path):
    ram = pattern(8 * PAGE)
    gva = 0xFFFF_8880_0000_0000
    tables = Tables(cbit=51)
    tables.map(gva, 0x5000, private=False)
    tables.map(gva + 0x1000, 0x2000, private=True)
    tables.map(gva + 0x3000, 0xFEE0_0000, private=False)  # a device
    tables.map(gva + 0x4000, 0x3000, private=False)
    guest = FakeGuest({0: ram}, tables=tables)
    result = dump(guest, tmp_path / "ram", gva=(gva + 0x10, gva + 0x5000))
    flipped = bytes(byte ^ 0xFF for byte in ram)
    expected = ram[0x5000:0x6000] + flipped[0x2000:0x3000] + bytes(0x2000) + ram[0x3000:0x4000]
    assert (tmp_path / "ram").read_bytes() == expected[0x10:]
    assert result.holes == (
        Hole(gva + 0x2000, PAGE, HoleReason.NOT_MAPPED),
        Hole(gva + 0x3000, PAGE, HoleReason.NOT_RAM),
    )
    assert not result.complete


def test_gpa_and_gva_exclude_each_other(tmp_path):
    with pytest.raises(errors.UsageError):
        dump(FakeGuest({0: pattern(PAGE)}), tmp_path / "ram", gpa=(0, 1), gva=(0, 1))


def test_progress_ends_at_the_total_holes_included(tmp_path):
    calls = []
    guest = FakeGuest({0: pattern(20 * PAGE)}, bad_pages={PAGE})
    target = prepare(str(tmp_path / "ram"))
    dump_guest(guest, DumpOptions(), UniformPages(), target, lambda done, total: calls.append((done, total)))
    assert [total for _, total in calls] == [20 * PAGE] * len(calls)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1][0] == 20 * PAGE


def test_a_firmware_refusal_ends_the_dump_and_leaves_no_file(tmp_path):
    guest = FakeGuest({0: pattern(20 * PAGE)})

    def refuse(gpa: int) -> None:
        if gpa >= 8 * PAGE:
            raise errors.FirmwareError("DBG_DECRYPT", 7, "POLICY_FAILURE")

    guest.memory.on_read = refuse
    with pytest.raises(errors.FirmwareError):
        dump(guest, tmp_path / "ram")
    assert list(tmp_path.iterdir()) == []
