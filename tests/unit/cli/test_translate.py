"""``sevkvm translate``: the story of a hit and of a miss."""

import json

import pytest

from sevkvm.abi.x86 import entry_flags
from sevkvm.cli.translate_report import details, whereabouts
from sevkvm.memory.source import Slot, SlotMap
from sevkvm.paging.form import PagingForm, PagingMode
from sevkvm.paging.walk import translate
from tests.support.tables import PS, RW, P, Tables
from tests.unit.cli.conftest import (
    BASE,
    CBIT_POS,
    LOW_NBYTES,
    PAGE,
    SECRET_GPA,
    SHARED_GPA,
    TABLES_END,
    TABLES_GPA,
    make_guest,
)

RAM = SlotMap([Slot(0x100000, 0x100000, 0x7F0000000000, "pc.ram"), Slot(0xF0000, PAGE, 0x5000, "", True)])


def test_translate_hits(attached, run):
    attached.guest = make_guest(attached)
    low = attached.guest.slots.find(0)
    result = run("translate", hex(BASE + SECRET_GPA + 5), hex(BASE + SHARED_GPA))
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "0xffff888000003005: gpa 0x3005, 4 KiB page, private, writable, kernel, no-execute",
        f"  hva 0x{low.hva + 0x3005:x} in the VMM, RAM slot 0x0:0x{LOW_NBYTES:x} (low)",
        "0xffff888000004000: gpa 0x4000, 4 KiB page, shared, writable, kernel, no-execute",
        f"  hva 0x{low.hva + 0x4000:x} in the VMM, RAM slot 0x0:0x{LOW_NBYTES:x} (low)",
    ]


def test_translate_hits_as_json(attached, run):
    attached.guest = make_guest(attached)
    low = attached.guest.slots.find(0)
    secret, shared = json.loads(
        run("translate", "--json", hex(BASE + SECRET_GPA), hex(BASE + SHARED_GPA)).stdout
    )
    assert secret == {
        "gva": hex(BASE + SECRET_GPA),
        "gpa": "0x3000",
        "page_size": 4096,
        "private": True,
        "writable": True,
        "user": False,
        "nx": True,
        "reason": None,
        "level": None,
        "index": None,
        "entry": None,
        "table_gpa": None,
        "reserved_bits": None,
        "unreadable_gpa": None,
        "slot": {"gpa": "0x0", "size": LOW_NBYTES, "hva": hex(low.hva), "name": "low", "readonly": False},
        "hva": hex(low.hva + SECRET_GPA),
    }
    assert shared["private"] is False


def test_translate_a_miss_ends_with_1(attached, run):
    result = run("translate", hex(BASE), hex(BASE + LOW_NBYTES))
    assert result.exit_code == 1
    assert result.stdout.splitlines()[2] == (
        f"0x{BASE + LOW_NBYTES:016x}: not mapped: not-present at PTE (level 1), index 64, entry 0x{0:016x}"
    )
    assert result.stderr == ""
    result = run("translate", "--json", hex(BASE + LOW_NBYTES), "0x800000000000")
    miss, odd = json.loads(result.stdout)
    assert result.exit_code == 1
    assert [miss[key] for key in ("gpa", "page_size", "private", "writable", "user", "nx")] == [None] * 6
    assert (miss["slot"], miss["hva"]) == (None, None)
    assert int(miss["table_gpa"], 16) in range(TABLES_GPA + PAGE, TABLES_END, PAGE)
    assert [miss[key] for key in ("reason", "level", "index", "entry")] == ["not-present", 1, 64, "0x0"]
    assert [odd[key] for key in ("reason", "level", "index", "entry")] == ["non-canonical", None, None, None]


def test_translate_shows_every_level(attached, run):
    (answer,) = json.loads(run("translate", "-v", "--json", hex(BASE + SECRET_GPA)).stdout)
    steps = answer["steps"]
    assert [(step["level"], step["name"], step["index"]) for step in steps] == [
        (4, "PML4E", 273),
        (3, "PDPE", 0),
        (2, "PDE", 0),
        (1, "PTE", 3),
    ]
    assert steps[0]["table_gpa"] == hex(TABLES_GPA)
    assert all(step["cbit"] for step in steps)
    leaf = int(steps[3]["entry"], 16)
    assert leaf == 1 << 63 | 1 << CBIT_POS | SECRET_GPA | 0x63
    assert steps[3]["flags"] == ["P", "RW", "A", "D", "NX"]
    text = run("translate", "-v", hex(BASE + SECRET_GPA)).stdout
    assert len(text.splitlines()) == 7
    assert f"0x{leaf:016x}" in text


def test_translate_of_a_plain_guest_does_not_speak_of_sharing(attached, run):
    attached.guest = make_guest(attached, policy=None)
    text = run("translate", hex(BASE)).stdout
    assert "private" not in text
    assert "shared" not in text


def test_translate_by_another_root(attached, run):
    result = run("translate", "--cr3", hex(TABLES_GPA + PAGE), hex(BASE))
    assert result.exit_code == 1
    assert "not mapped" in result.stdout


@pytest.mark.parametrize("bad", ["", "0x", "main", "-5", "0x10000000000000000"])
def test_translate_refuses_what_is_no_address(attached, run, bad):
    assert run("translate", "--", bad).exit_code == 2
    assert attached.options is None


# ---- in words


def story(tables: Tables, gva: int, slots: SlotMap = RAM) -> tuple[str, dict[str, object]]:
    found = translate(tables.reader(), tables.form, gva)
    (line,) = details(found, tables.form, slots)
    return line, whereabouts(found, tables.form, slots)


@pytest.fixture(params=[None, 47, 51])
def tables(request) -> Tables:
    return Tables(4, request.param)


def test_where_the_vmm_keeps_it(tables):
    tables.map(0x5000, 0x104000)
    line, facts = story(tables, 0x5123)
    assert line == "hva 0x7f0000004123 in the VMM, RAM slot 0x100000:0x200000 (pc.ram)"
    assert (facts["hva"], facts["slot"]["size"]) == ("0x7f0000004123", 0x100000)


def test_a_slot_without_a_name_that_is_read_only(tables):
    tables.map(0x5000, 0xF0000)
    line, facts = story(tables, 0x5001)
    assert line == "hva 0x5001 in the VMM, read-only slot 0xf0000:0xf1000"
    assert facts["slot"]["readonly"] is True


def test_a_page_that_is_no_ram(tables):
    tables.map(0x5000, 0xFEC00000)
    line, facts = story(tables, 0x5000)
    assert line == "no RAM is there (MMIO or a hole)"
    assert (facts["hva"], facts["slot"], facts["unreadable_gpa"]) == (None, None, None)


def test_an_entry_that_is_not_present(tables):
    tables.map(0x5000, 0x104000)
    table, _ = tables.slot(0x6000, 1)
    assert story(tables, 0x6000)[0] == f"the entry, in the table at gpa 0x{table:x}, is empty"
    tables.set_entry(0x6000, 1, 0xABC0)
    line, facts = story(tables, 0x6000)
    assert line.endswith("has its Present bit (0) clear; the other bits are the guest's own")
    assert facts["table_gpa"] == hex(table)
    assert facts["reserved_bits"] is None


@pytest.mark.parametrize(
    ("level", "bits", "more", "told"),
    [
        (4, [7], 0, "7"),
        (3, [13, 14, 29], PS, "13-14, 29"),
        (2, [13, 20], PS, "13, 20"),
    ],
)
def test_which_reserved_bits(tables, level, bits, more, told):
    tables.map(0x5000, 0x104000)
    mask = sum(1 << bit for bit in bits)
    tables.set_entry(0x5000, level, 0x40000000 | tables.mask | P | RW | more | mask)
    line, facts = story(tables, 0x5000)
    assert f"reserved bits set ({told})" in line
    assert facts["reserved_bits"] == hex(mask)


def test_no_execute_is_reserved_where_it_is_not_enabled(tables):
    tables.map(0x5000, 0x104000, nx=True)
    form = PagingForm(PagingMode.LEVEL4, tables.root, tables.cbit, nx=False)
    found = translate(tables.reader(), form, 0x5000)
    assert "(63)" in next(details(found, form, RAM))


def test_a_table_where_there_is_no_ram(tables):
    tables.set_entry(0x5000, 3, 0xFEE00000 | P | RW | tables.mask)
    line, facts = story(tables, 0x5000)
    assert line.endswith("a table at gpa 0xfee00000 that cannot be read: no RAM is there (MMIO or a hole)")
    assert facts["unreadable_gpa"] == "0xfee00000"
    slots = SlotMap([Slot(0xFEE00000, PAGE, 0x5000)])
    assert story(tables, 0x5000, slots)[0].endswith("the page of RAM there is not readable")


def test_a_root_where_there_is_no_ram(tables):
    tables.pages.clear()
    line, facts = story(tables, 0x5000, SlotMap([]))
    assert line.startswith(f"the top table, at gpa 0x{tables.root:x}, cannot be read: no RAM")
    assert (facts["table_gpa"], facts["unreadable_gpa"]) == (None, hex(tables.root))


@pytest.mark.parametrize(("levels", "bits"), [(4, "63 to 47"), (5, "63 to 56")])
def test_an_address_that_is_not_canonical(levels, bits):
    assert f"bits {bits} are not all equal" in story(Tables(levels), 1 << 62)[0]


def test_a_dump_has_no_vmm(tables):
    tables.map(0x5000, 0x104000)
    tables.map(0x6000, 0x900000)
    tables.set_entry(0x200000, 2, 0x800000 | P | tables.mask)
    slots = SlotMap([Slot(0x100000, 0x100000, 0x100000)], in_vmm=False)
    found = translate(tables.reader(), tables.form, 0x5000)
    assert list(details(found, tables.form, slots)) == []
    facts = whereabouts(found, tables.form, slots)
    assert (facts["slot"]["gpa"], facts["slot"]["hva"], facts["hva"]) == ("0x100000", None, None)
    assert story(tables, 0x6000, slots)[0] == "the dump does not hold it"
    assert story(tables, 0x200000, slots)[0].endswith("cannot be read: the dump does not hold it")


@pytest.mark.parametrize("name", ["32", "pse"])
def test_entries_of_32_bit_tables_have_8_digits(attached, run, name):
    result = run("translate", "-v", "--paging", name, "0xfffff000", "0x100000000")
    lines = result.stdout.splitlines()
    assert lines[0] == (
        "0x00000000fffff000: not mapped: not-present at PDE (level 2), index 1023, entry 0x00000000"
    )
    assert lines[1] == f"  the entry, in the table at gpa 0x{TABLES_GPA:x}, is empty"
    assert lines[3].split() == ["PDE", f"0x{TABLES_GPA:x}", "1023", "0x00000000", "-", "-"]
    assert lines[5] == "  above 4 GiB there is no linear address in this paging mode"


def test_an_encrypted_guest_without_paging_has_private_memory_only(attached, run):
    result = run("translate", "--paging", "none", hex(SHARED_GPA))
    assert result.stdout.startswith("0x0000000000004000: gpa 0x4000, 4 KiB page, private, ")


def test_the_pat_bit_is_where_the_page_size_is_elsewhere():
    assert entry_flags(P | PS | 1 << 12, 1) == ["P", "PAT"]
    assert entry_flags(P | PS | 1 << 12, 2) == ["P", "PS", "PAT"]
    assert entry_flags(P | 1 << 12, 2) == ["P"]
