"""The lab's Linux, checked with a walker of the tests' own."""

from __future__ import annotations

import stat

import pytest

from sevkvm.lab.emulator import Machine
from sevkvm.lab.files import mapped
from sevkvm.lab.initrd import KEEPERS
from sevkvm.lab.keeper import SECRET_GVA, SECRET_NBYTES
from sevkvm.lab.sealed import LEGACY_HOLE, SealedLinux
from tests.support.linux import require_sealed_linux
from tests.support.walker import Leaf, leaves, lookup, table_pages

pytestmark = pytest.mark.kvm

CASES = {"4-level-c51": (Machine(), 51), "5-level-2-vcpus-c47": (Machine(cpus=2, la57=True), 47)}


@pytest.fixture(scope="module", params=CASES)
def linux(request: pytest.FixtureRequest) -> SealedLinux:
    machine, cbit_pos = CASES[request.param]
    return require_sealed_linux(machine, cbit_pos=cbit_pos)


def test_the_guest_said_what_it_holds(linux: SealedLinux) -> None:
    facts = linux.plain.facts
    assert facts["version"].startswith("Linux version ")
    assert len({facts[f"keeper.{keeper.name}.pid"] for keeper in KEEPERS}) == len(KEEPERS)


def test_every_process_maps_the_same_as_before_sealing(linux: SealedLinux) -> None:
    seal = linux.seal
    with mapped(linux.plain.ram) as plain, mapped(linux.ram) as sealed:
        for root in seal.roots:
            before = {leaf.gva: leaf for leaf in leaves(plain, root, seal.levels, None)}
            after = {leaf.gva: leaf for leaf in leaves(sealed, root, seal.levels, seal.cbit_pos)}
            assert before
            assert {gva: bare(leaf) for gva, leaf in after.items()} == {
                gva: bare(leaf) for gva, leaf in before.items()
            }


def bare(leaf: Leaf) -> tuple[int, int, int]:
    return leaf.gpa, leaf.nbytes, leaf.flags


def test_ram_is_private_and_devices_are_shared(linux: SealedLinux) -> None:
    ram_nbytes = linux.plain.machine.ram_nbytes
    with mapped(linux.ram) as sealed:
        for root in linux.seal.roots:
            for leaf in leaves(sealed, root, linux.seal.levels, linux.seal.cbit_pos):
                in_hole = LEGACY_HOLE[0] <= leaf.gpa and leaf.gpa + leaf.nbytes <= LEGACY_HOLE[1]
                assert leaf.private == (leaf.gpa < ram_nbytes and not in_hole), hex(leaf.gva)


def test_nothing_but_table_entries_and_the_note_changed(linux: SealedLinux) -> None:
    seal, cbit = linux.seal, 1 << linux.seal.cbit_pos
    assert linux.vmcoreinfo is not None
    with mapped(linux.plain.ram) as plain, mapped(linux.ram) as sealed:
        tables: set[int] = set()
        for root in seal.roots:
            tables |= table_pages(plain, root, seal.levels, None)
        assert tables == set(seal.tables)
        changed = set()
        for start in range(0, len(plain), 1 << 20):  # whole MiB first: nearly all are equal
            if plain[start : start + (1 << 20)] != sealed[start : start + (1 << 20)]:
                changed |= {
                    gpa
                    for gpa in range(start, start + (1 << 20), 4096)
                    if plain[gpa : gpa + 4096] != sealed[gpa : gpa + 4096]
                }
        assert changed - tables == {linux.vmcoreinfo.gpa}
        for gpa in tables:
            old, new = plain[gpa : gpa + 4096].cast("Q"), sealed[gpa : gpa + 4096].cast("Q")
            assert all(a == b or (a & 1 and a | cbit == b) for a, b in zip(old, new, strict=True))


def test_each_secret_is_in_its_own_process_and_nowhere_else(linux: SealedLinux) -> None:
    seal = linux.seal
    with mapped(linux.ram) as ram:
        data = bytes(ram)
        found = {}
        for root in seal.roots:
            gpa = lookup(ram, root, seal.levels, seal.cbit_pos, SECRET_GVA)
            if gpa is not None:
                found[data[gpa : gpa + SECRET_NBYTES]] = root
        assert found == {keeper.secret: linux.keeper_roots[keeper.name] for keeper in KEEPERS}
        for keeper in KEEPERS:
            assert data.count(keeper.secret) == 1


def test_the_kernels_own_data_is_where_its_symbols_say(linux: SealedLinux) -> None:
    facts, seal = linux.plain.facts, linux.seal
    (banner,) = linux.image.landmarks
    assert linux.image.plaintext(banner.gpa, banner.nbytes).decode() == facts["version"]
    with mapped(linux.ram) as ram:
        top = lookup(ram, seal.roots[0], seal.levels, seal.cbit_pos, int(facts["symbol.init_top_pgt"], 16))
    assert top in seal.roots


def test_vmcoreinfo_is_where_the_guest_says_and_knows_the_cbit(linux: SealedLinux) -> None:
    note = linux.vmcoreinfo
    assert note is not None
    assert note.gpa == int(linux.plain.facts["vmcoreinfo"].split()[0], 16)
    assert f"NUMBER(sme_mask)={1 << linux.seal.cbit_pos}\n" in note.text
    assert linux.image.plaintext(note.gpa + 24, len(note.text)).decode() == note.text


def test_vcpus_have_the_cbit_in_cr3(linux: SealedLinux) -> None:
    assert len(linux.vcpus) == linux.plain.machine.cpus
    for vcpu in linux.vcpus:
        assert vcpu.sregs.cr3 & ~(1 << linux.seal.cbit_pos) in linux.seal.roots
        assert vcpu.sregs.cr3 >> linux.seal.cbit_pos == 1
        assert vcpu.sregs.cs.l == 1
        assert vcpu.sregs.efer & 0x500 == 0x500  # long mode, active
        assert bool(vcpu.sregs.cr4 & 1 << 12) == linux.plain.machine.la57


def test_the_cache_is_private(linux: SealedLinux) -> None:
    for path in (*linux.directory.iterdir(), *linux.plain.directory.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for directory in (linux.directory, linux.plain.directory):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
