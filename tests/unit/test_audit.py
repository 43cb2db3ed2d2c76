"""Every rule of the audit: found where it is planted, with the right evidence, and nowhere else."""

from __future__ import annotations

import pytest

from sevkvm.audit import Finding, Report, Severity, Wanted, audit
from sevkvm.audit.rules import RULES
from sevkvm.errors import RegistersUnavailable
from sevkvm.memory.source import Slot, SlotMap
from sevkvm.paging.mode import PagingMode
from tests.support.auditguest import audit_guest, vcpu_on
from tests.support.tables import KIB4, MIB2, MIB4, NX, RW, US, P, Tables

MIB = 1 << 20
RAM = 64 * MIB
TABLES_GPA = 32 * MIB
DIRECT = 0xFFFF_8880_0000_0000
IMAGE, IMAGE_GPA = 0xFFFF_FFFF_8100_0000, 16 * MIB
VMALLOC = 0xFFFF_C900_0000_0000
SPLIT_GPA = 8 * MIB  # mapped by 4 KiB pages in the direct map
VSYSCALL = 0xFFFF_FFFF_FF60_0000
ENCRYPTED_ONLY = {f"SEVKVM{number:03}" for number in range(6, 13)}
REGISTER_RULES = {f"SEVKVM{number:03}" for number in range(13, 17)}


def kernel(cbit: int | None = 51, levels: int = 4, next_gpa: int = TABLES_GPA) -> Tables:
    """What a careful kernel maps: a direct map, text, read-only data, data, and a process."""
    tables = Tables(levels, cbit, next_gpa=next_gpa)
    for gpa in range(0, RAM, MIB2):
        if gpa != SPLIT_GPA:
            tables.map(DIRECT + gpa, gpa, MIB2, nx=True)
    for gpa in range(SPLIT_GPA, SPLIT_GPA + MIB2, KIB4):
        tables.map(DIRECT + gpa, gpa, nx=True)
    tables.map(IMAGE, IMAGE_GPA, MIB2, writable=False)
    tables.map(IMAGE + MIB2, IMAGE_GPA + MIB2, MIB2, writable=False, nx=True)
    tables.map(IMAGE + 2 * MIB2, IMAGE_GPA + 2 * MIB2, MIB2, nx=True)
    tables.map(0x40_0000, 4 * MIB, user=True)
    tables.map(0x60_0000, 5 * MIB, user=True, nx=True)
    return tables


def found(*builders: Tables, symbols: bool = False, **guest: object) -> Report:
    report = audit(audit_guest(*builders, **guest), Wanted(symbols=symbols))
    assert report.cut == ()
    return report


def ids(report: Report) -> set[str]:
    """The rules that found something, but for the fact that isolation is off."""
    told = {finding.rule.id for finding in report.findings}
    return told - {"SEVKVM017"}


def one(report: Report, rule: str) -> Finding:
    (finding,) = [finding for finding in report.findings if finding.rule.id == rule]
    return finding


@pytest.mark.parametrize("cbit", [None, 47, 51])
@pytest.mark.parametrize("levels", [4, 5])
def test_a_careful_kernel(cbit: int | None, levels: int) -> None:
    report = found(kernel(cbit, levels))
    assert ids(report) == ({"SEVKVM018"} if levels == 5 else set())
    assert not report.reaches(Severity.WARNING)
    skipped = {rule.id for rule, _ in report.skipped}
    assert skipped == (ENCRYPTED_ONLY if cbit is None else {"SEVKVM010"})
    assert {why for rule, why in report.skipped if rule.id == "SEVKVM006"} <= {"the guest is not encrypted"}


def test_ids_and_names_are_stable() -> None:
    assert [rule.id for rule in RULES] == [f"SEVKVM{number:03}" for number in range(1, 19)]
    assert len({rule.name for rule in RULES}) == len(RULES)


# ---- rights


@pytest.mark.parametrize("cbit", [None, 51])
def test_writable_and_executable(cbit: int | None) -> None:
    tables = kernel(cbit)
    tables.map(VMALLOC, 6 * MIB)
    tables.map(VMALLOC + KIB4, 7 * MIB)
    report = found(tables)
    assert ids(report) == {"SEVKVM001"}
    (place,) = one(report, "SEVKVM001").places
    assert (place.gva, place.gpa, place.nbytes, place.roots) == (VMALLOC, 6 * MIB, 2 * KIB4, (tables.root,))
    assert [entry.level for entry in place.entries] == [4, 3, 2, 1]
    assert place.entries[-1].entry == 6 * MIB | P | RW | tables.mask


def test_rights_are_those_of_the_whole_walk() -> None:
    tables = kernel()
    tables.map(VMALLOC, 6 * MIB)
    tables.map(VMALLOC + (1 << 30), 7 * MIB, user=True, nx=True)
    # what the leaf allows the level above forbids
    tables.set_entry(VMALLOC, 2, tables.get_entry(VMALLOC, 2) & ~RW)
    tables.set_entry(VMALLOC + (1 << 30), 3, tables.get_entry(VMALLOC + (1 << 30), 3) & ~US)
    assert ids(found(tables)) == set()


def test_what_changes_from_private_to_shared_is_one_finding() -> None:
    tables = kernel()
    tables.map(VMALLOC, SPLIT_GPA)
    tables.map(VMALLOC + KIB4, 1 << 40, private=False)
    report = found(tables)
    assert ids(report) == {"SEVKVM001"}
    assert one(report, "SEVKVM001").places[0].nbytes == 2 * KIB4


def test_user_memory_may_be_writable_and_executable() -> None:
    tables = kernel()
    tables.map(0x80_0000, 6 * MIB, user=True)
    assert ids(found(tables)) == set()


@pytest.mark.parametrize("writable", [True, False])
def test_user_mode_reaches_the_kernel(writable: bool) -> None:
    tables = kernel()
    tables.map(VMALLOC, 6 * MIB, user=True, writable=writable, nx=True)
    report = found(tables)
    assert ids(report) == {"SEVKVM002"}
    assert one(report, "SEVKVM002").severity is Severity.ERROR
    assert one(report, "SEVKVM002").places[0].gva == VMALLOC


@pytest.mark.parametrize(("writable", "severity"), [(False, Severity.NOTE), (True, Severity.ERROR)])
def test_the_vsyscall_page(writable: bool, severity: Severity) -> None:
    tables = kernel()
    tables.map(VSYSCALL, 6 * MIB, user=True, writable=writable, nx=True)
    assert one(found(tables), "SEVKVM002").severity is severity


def test_the_vsyscall_page_and_one_more() -> None:
    tables = kernel()
    tables.map(VSYSCALL, 6 * MIB, user=True, writable=False, nx=True)
    tables.map(VSYSCALL + KIB4, 7 * MIB, user=True, writable=False, nx=True)
    finding = one(found(tables), "SEVKVM002")
    assert (finding.severity, finding.places[0].nbytes) == (Severity.ERROR, 2 * KIB4)


def test_processes_share_the_kernels_half_and_its_findings() -> None:
    first = kernel()
    first.map(VMALLOC, 6 * MIB)
    second = Tables(4, 51, next_gpa=48 * MIB)
    upper = first.pages[first.root][256:]
    # what the processor sets is no difference
    second.pages[second.root][256:] = [entry | 0x20 if entry else 0 for entry in upper]
    second.map(0x1000, 7 * MIB)
    report = found(first, second)
    places = [place for finding in report.findings for place in finding.places if place.gva]
    assert {(place.gva, place.roots) for place in places} == {
        (VMALLOC, (first.root, second.root)),
        (0x1000, (second.root,)),
    }
    assert report.roots == (first.root, second.root)


# ---- tables


@pytest.mark.parametrize("levels", [4, 5])
def test_a_table_that_maps_itself(levels: int) -> None:
    tables = kernel(levels=levels)
    gva = (1 << 64) - (1 << 12 + 9 * levels) + 300 * (1 << 3 + 9 * levels)
    tables.set_entry(gva, levels, tables.root | P | RW | NX | tables.mask)
    report = found(tables)
    assert ids(report) - {"SEVKVM018"} == {"SEVKVM003"}
    finding = one(report, "SEVKVM003")
    assert finding.message.endswith(f"leads to itself, of level {levels}")
    assert (finding.places[0].gva, finding.places[0].entries[0].position) == (gva, 300)


def test_a_lower_table_that_leads_back_up() -> None:
    tables = kernel()
    gva = VMALLOC + 5 * MIB2
    tables.set_entry(gva, 2, tables.root | P | RW | NX | tables.mask)
    finding = one(found(tables), "SEVKVM003")
    assert finding.places[0].gva == gva
    assert f"leads to that at gpa {tables.root:#x}, of level 4" in finding.message


def test_a_table_that_two_entries_lead_to_is_no_self_map() -> None:
    tables = kernel()
    tables.set_entry(VMALLOC, 3, tables.get_entry(DIRECT, 3))
    assert ids(found(tables)) == set()


@pytest.mark.parametrize("cbit", [None, 51])
def test_reserved_bits(cbit: int | None) -> None:
    tables = kernel(cbit)
    bad = 6 * MIB | P | RW | 1 << 7 | tables.mask
    tables.set_entry(VMALLOC, 4, bad)
    report = found(tables)
    assert ids(report) == {"SEVKVM004"}
    (place,) = one(report, "SEVKVM004").places
    assert (place.gva, place.nbytes) == (VMALLOC, 1 << 39)
    assert place.entries == ((4, tables.root, VMALLOC >> 39 & 511, bad),)


def test_a_table_that_is_nowhere() -> None:
    tables = kernel()
    missing = 1 << 36
    tables.set_entry(VMALLOC, 2, missing | P | RW | tables.mask)
    report = audit(audit_guest(tables), Wanted(symbols=False))
    assert ids(report) == {"SEVKVM005"}
    assert report.cut == ("1 page tables cannot be read",)
    (place,) = one(report, "SEVKVM005").places
    assert (place.gpa, place.roots) == (missing, (tables.root,))
    assert place.entries[-1].entry == missing | P | RW | tables.mask


def test_an_unreadable_root() -> None:
    tables = kernel()
    vcpu = vcpu_on(tables, cr3=1 << 40)
    report = audit(audit_guest(tables, vcpus=[vcpu]), Wanted(symbols=False))
    assert ids(report) == {"SEVKVM005"}
    assert report.cut


# ---- C-bit


def test_a_shared_page_table() -> None:
    tables = kernel()
    tables.map(VMALLOC, tables.root, private=False, nx=True)
    report = found(tables)
    assert ids(report) == {"SEVKVM006", "SEVKVM011"}
    (place,) = one(report, "SEVKVM006").places
    assert (place.gva, place.gpa, place.nbytes) == (VMALLOC, tables.root, KIB4)


def test_page_tables_that_the_direct_map_has_as_shared() -> None:
    tables = kernel(next_gpa=SPLIT_GPA)
    for gpa in (tables.root, tables.root + KIB4):
        tables.map(DIRECT + gpa, gpa, private=False, nx=True)
    report = found(tables)
    assert ids(report) == {"SEVKVM006", "SEVKVM011", "SEVKVM012"}
    (place,) = one(report, "SEVKVM006").places
    assert (place.gva, place.nbytes) == (DIRECT + tables.root, 2 * KIB4)
    assert one(report, "SEVKVM012").message == "8 KiB in 1 run"


@pytest.mark.parametrize(
    ("offset", "what"), [(0, "kernel text is"), (MIB2, "the kernel's read-only data are")]
)
def test_a_shared_mapping_of_the_image(offset: int, what: str) -> None:
    tables = kernel()
    tables.map(VMALLOC, IMAGE_GPA + offset + KIB4, private=False, nx=True)
    report = found(tables)
    assert ids(report) == {"SEVKVM007", "SEVKVM011"}
    finding = one(report, "SEVKVM007")
    assert what in finding.message
    assert (finding.places[0].gva, finding.places[0].gpa) == (VMALLOC, IMAGE_GPA + offset + KIB4)


def test_an_image_that_is_itself_shared() -> None:
    tables = kernel()
    tables.map(IMAGE, IMAGE_GPA, MIB2, writable=False, private=False)
    report = found(tables)
    assert ids(report) == {"SEVKVM007", "SEVKVM011"}
    assert one(report, "SEVKVM007").places[0].gva == IMAGE


def test_shared_data_of_the_image_are_a_conflict_only() -> None:
    """As .bss..decrypted: shared in the image, private in the direct map."""
    tables = kernel()
    tables.map(IMAGE + 2 * MIB2, IMAGE_GPA + 2 * MIB2, MIB2, nx=True, private=False)
    report = found(tables)
    assert ids(report) == {"SEVKVM008", "SEVKVM011"}
    finding = one(report, "SEVKVM008")
    assert {place.gva for place in finding.places} == {IMAGE + 2 * MIB2, DIRECT + IMAGE_GPA + 2 * MIB2}
    assert finding.message == "gpa 0x1400000 to 0x1600000, 2 MiB: mapped both private and shared"


def test_a_process_that_maps_private_memory_as_shared() -> None:
    tables = kernel()
    tables.map(0x80_0000, 6 * MIB, user=True, nx=True, private=False)
    finding = one(found(tables), "SEVKVM008")
    assert {place.gva for place in finding.places} == {0x80_0000, DIRECT + 6 * MIB}


def test_memory_that_is_shared_everywhere_is_no_conflict() -> None:
    tables = kernel()
    for gpa in range(SPLIT_GPA, SPLIT_GPA + 16 * KIB4, KIB4):
        tables.map(DIRECT + gpa, gpa, nx=True, private=False)
    tables.map(VMALLOC, SPLIT_GPA, nx=True, private=False)
    report = found(tables)
    assert ids(report) == {"SEVKVM011", "SEVKVM012"}
    assert one(report, "SEVKVM011").message == "64 KiB of RAM in 1 run"
    (place,) = one(report, "SEVKVM011").places
    assert (place.gva, place.gpa, place.nbytes) == (DIRECT + SPLIT_GPA, SPLIT_GPA, 16 * KIB4)


def test_private_and_shared_mappings_of_a_device() -> None:
    tables = kernel()
    tables.map(VMALLOC, 0xFEE0_0000, nx=True)
    tables.map(VMALLOC + KIB4, 0xFEC0_0000, nx=True, private=False)
    report = found(tables)
    assert ids(report) == {"SEVKVM009"}
    (place,) = one(report, "SEVKVM009").places
    assert (place.gva, place.gpa, place.nbytes) == (VMALLOC, 0xFEE0_0000, KIB4)


def test_a_hole_that_the_direct_map_spans_is_a_note() -> None:
    tables = kernel()
    slots = [(0, 0xA_0000), (0xC_0000, RAM - 0xC_0000)]
    finding = one(found(tables, slots=slots), "SEVKVM009")
    assert (finding.severity, finding.places[0].gva) == (Severity.NOTE, DIRECT + 0xA_0000)
    tables.map(VMALLOC, 0xA_1000, nx=True)
    finding = one(found(tables, slots=slots), "SEVKVM009")
    assert finding.severity is Severity.WARNING
    assert [place.gva for place in finding.places] == [DIRECT + 0xA_0000, VMALLOC]


# ---- registers


@pytest.mark.parametrize(
    ("register", "bit", "rule"),
    [
        ("cr0", 16, "SEVKVM014"),
        ("cr4", 20, "SEVKVM015"),
        ("cr4", 21, "SEVKVM016"),
    ],
)
def test_a_protection_that_is_off(register: str, bit: int, rule: str) -> None:
    tables = kernel()
    good, bad = vcpu_on(tables), vcpu_on(tables, 3)
    setattr(bad, register, getattr(bad, register) & ~(1 << bit))
    report = found(tables, vcpus=[good, bad])
    assert ids(report) == {rule}
    finding = one(report, rule)
    assert finding.vcpus == (3,)
    assert f"is {getattr(bad, register):#x} on vCPU 3" in finding.message


def test_no_execute_off() -> None:
    """Bit 63 is reserved then, and everything is executable: said once, not for each page."""
    tables = Tables(4, 51, next_gpa=TABLES_GPA)
    for gpa in range(0, RAM, MIB2):
        tables.map(DIRECT + gpa, gpa, MIB2)
    report = found(tables, vcpus=[vcpu_on(tables, efer=0x500)])
    assert ids(report) == {"SEVKVM013"}
    assert ("SEVKVM001", "no-execute is off: everything is executable") in [
        (rule.id, why) for rule, why in report.skipped
    ]


def test_a_vcpu_that_has_not_started_is_not_judged() -> None:
    tables = kernel()
    waiting = vcpu_on(tables, 1, cr0=0x10, cr4=0, efer=0)
    assert ids(found(tables, vcpus=[vcpu_on(tables), waiting])) == set()


def test_no_paging_at_all() -> None:
    tables = kernel(None)
    report = found(tables, vcpus=[vcpu_on(tables, cr0=0x10)])
    assert report.findings == ()
    assert len(report.skipped) == len(RULES)


def test_registers_that_are_not_known() -> None:
    tables = kernel()
    tables.map(VMALLOC, 6 * MIB)
    guest = audit_guest(
        tables, no_registers="this is a SEV-ES guest", cr3=tables.root, paging=PagingMode.LEVEL4
    )
    report = audit(guest, Wanted(symbols=False))
    assert ids(report) == {"SEVKVM001"}
    why = {rule.id: why for rule, why in report.skipped}
    assert {why[rule] for rule in REGISTER_RULES} == {"this is a SEV-ES guest"}


def test_a_guest_of_which_nothing_is_known() -> None:
    with pytest.raises(RegistersUnavailable):
        audit(audit_guest(kernel(), no_registers="this is a SEV-ES guest"))


def test_a_dump_does_not_tell_every_register() -> None:
    tables = kernel()
    vcpu = vcpu_on(tables, unknown=frozenset({"efer"}))
    report = found(tables, vcpus=[vcpu])
    assert ids(report) == set()
    assert ("SEVKVM013", "EFER is not known") in [(rule.id, why) for rule, why in report.skipped]


def test_a_dump_without_c_bit() -> None:
    skipped = {rule.id: why for rule, why in found(kernel(None), contents=object()).skipped}
    assert {skipped[rule] for rule in ENCRYPTED_ONLY} == {
        "the dump's page tables have no C-bit: a plain guest, or dumped without --cbit keep"
    }


# ---- other modes


@pytest.mark.parametrize("mode", [PagingMode.LEGACY, PagingMode.PSE, PagingMode.PAE])
def test_32_bit_tables(mode: PagingMode) -> None:
    tables = Tables(mode, None, next_gpa=TABLES_GPA)
    tables.map(0xC000_0000, 4 * MIB, MIB4 if mode == PagingMode.PSE else KIB4, nx=mode == PagingMode.PAE)
    tables.map(0xC040_0000, 8 * MIB)
    report = found(tables)
    assert ids(report) == ({"SEVKVM001"} if mode == PagingMode.PAE else set())
    skipped = {rule.id: why for rule, why in report.skipped}
    assert skipped["SEVKVM002"] == "32-bit page tables do not tell which half is the kernel's"


def test_an_encrypted_guest_with_32_bit_tables() -> None:
    tables = Tables(PagingMode.LEGACY, 47, next_gpa=TABLES_GPA)
    tables.map(0xC000_0000, 4 * MIB)
    skipped = {rule.id: why for rule, why in found(tables).skipped}
    assert skipped["SEVKVM006"] == "32-bit page tables have no C-bit: all memory is private"


# ---- isolation


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("on_user_tables", [False, True])
def test_isolation_is_seen(levels: int, on_user_tables: bool) -> None:
    tables = kernel(levels=levels, next_gpa=TABLES_GPA)
    user = TABLES_GPA + KIB4
    assert user in tables.pages
    # make room a page above the root
    moved = tables.new_table()
    tables.pages[moved] = tables.pages[user]
    root = tables.pages[tables.root]
    tables.pages[tables.root] = [
        moved | entry & ~0xF_FFFF_F000 if entry & 0x7_FFFF_FFFF_F000 == user else entry for entry in root
    ]
    entry_code = 0xFFFF_FE00_0000_0000
    tables.map(entry_code, 6 * MIB, writable=False)
    tables.pages[user] = [0] * 512
    index = entry_code >> 3 + 9 * levels & 511
    tables.pages[user][index] = tables.pages[tables.root][index]
    if levels == 5:
        above = tables.new_table()
        shared = tables.pages[tables.root][index] & 0x7_FFFF_FFFF_F000
        tables.pages[above] = [0] * 512
        lower = entry_code >> 39 & 511
        tables.pages[above][lower] = tables.pages[shared][lower]
        tables.pages[user][index] = above | P | RW | tables.mask
    vcpu = vcpu_on(tables)
    if on_user_tables:
        vcpu.cr3 = user | tables.mask
    report = found(tables, vcpus=[vcpu])
    assert one(report, "SEVKVM017").message == "page-table isolation is on"
    assert ids(report) - {"SEVKVM018"} == set()


# ---- how much is told


def test_findings_beyond_the_limit_are_counted() -> None:
    tables = kernel()
    for number in range(40):
        tables.map(VMALLOC + 2 * number * KIB4, 6 * MIB + number * KIB4)
    report = audit(audit_guest(tables), Wanted(most=5, symbols=False))
    (rule,) = {finding.rule for finding in report.findings if finding.rule.id == "SEVKVM001"}
    assert sum(finding.rule is rule for finding in report.findings) == 5
    assert (report.unlisted(rule), report.total(Severity.ERROR)) == (35, 40)


def test_only_the_rules_that_are_wanted() -> None:
    tables = kernel()
    tables.map(VMALLOC, 6 * MIB, user=True)
    tables.map(VMALLOC + MIB2, 6 * MIB)
    rules = [rule for rule in RULES if rule.id in ("SEVKVM002", "SEVKVM010")]
    report = audit(audit_guest(tables), Wanted(rules, symbols=False))
    assert {finding.rule.id for finding in report.findings} == {"SEVKVM002"}
    assert [rule.id for rule, _ in report.skipped] == ["SEVKVM010"]


@pytest.mark.parametrize("private", [True, False])
def test_rom_is_memory_that_the_guest_does_not_share(private: bool) -> None:
    tables = kernel()
    tables.map(VMALLOC, 0xF000_0000, nx=True, private=private)
    slots = SlotMap([Slot(0, RAM, 0x7F00_0000_0000), Slot(0xF000_0000, MIB, 0x7E00_0000_0000, "rom", True)])
    guest = audit_guest(tables, slots=[(0, RAM), (0xF000_0000, MIB)])
    assert guest.slots.find(0xF000_0000) is not None
    guest.slots = slots
    assert ids(audit(guest, Wanted(symbols=False))) == set()
