"""The lab's real Linux, found in its memory: what the guest itself printed, and what finding it cost."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from sevkvm.attach.offline import DumpOptions, open_dump
from sevkvm.lab.debian import LabUnavailable
from sevkvm.lab.emulator import Machine
from sevkvm.lab.files import mapped
from sevkvm.lab.linux import plain_linux
from sevkvm.lab.sealed import LEGACY_HOLE, PlainLinux, SealedLinux
from sevkvm.linux import sweep
from sevkvm.linux.find import find_kernel, find_note
from sevkvm.linux.ram import CHUNK_NBYTES, Search
from sevkvm.linux.tables import check
from sevkvm.linux.vmcoreinfo import VmcoreInfo
from sevkvm.paging.form import PagingForm, PagingMode
from tests.support.fakekernel import PAGE, FakeRam
from tests.support.linux import require_sealed_linux
from tests.support.walker import lookup

pytestmark = pytest.mark.kvm

MIB = 1 << 20
CASES: dict[str, tuple[Machine, int | None]] = {
    "plain": (Machine(), None),
    "c51": (Machine(), 51),
    "c47": (Machine(), 47),
    "5-level-plain": (Machine(cpus=2, la57=True), None),
    "5-level-c47": (Machine(cpus=2, la57=True), 47),
    "5-level-c51": (Machine(cpus=2, la57=True), 51),
}


@dataclass
class Case:
    linux: PlainLinux | SealedLinux
    ram: memoryview
    cbit: int | None

    @property
    def plain(self) -> PlainLinux:
        return self.linux if isinstance(self.linux, PlainLinux) else self.linux.plain

    @property
    def levels(self) -> int:
        return self.plain.machine.levels

    def fact(self, name: str) -> str:
        return self.plain.facts[name]

    @property
    def memory(self) -> FakeRam:
        return FakeRam(self.ram, self.cbit, holes=[LEGACY_HOLE])

    @property
    def roots(self) -> list[int]:
        """Where the vCPUs' own tables are."""
        cbit = 0 if self.cbit is None else 1 << self.cbit
        return [vcpu.sregs.cr3 & ~cbit & ~0xFFF for vcpu in self.linux.vcpus]

    def form(self, root: int) -> PagingForm:
        return PagingForm(PagingMode(self.levels), root, self.cbit)

    @property
    def kernel_form(self) -> PagingForm:
        """The truth: where the guest's own symbol leads to in its own vCPU's tables, by the tests' walker."""
        gva = int(self.fact("symbol.init_top_pgt"), 16)
        gpa = lookup(self.ram, self.roots[0], self.levels, self.cbit, gva)
        assert gpa is not None
        return self.form(gpa)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    machine, cbit = CASES[request.param]
    if cbit is not None:
        linux: PlainLinux | SealedLinux = require_sealed_linux(machine, cbit_pos=cbit)
    else:
        try:
            linux = plain_linux(machine)
        except LabUnavailable as error:
            pytest.skip(f"{error} ({error.help})")
    return Case(linux, mapped(linux.ram), cbit)


def assert_told_by_the_guest(info: VmcoreInfo | None, case: Case) -> None:
    assert info is not None
    # the kernel's own file tells where its note is
    assert info.gpa == int(case.fact("vmcoreinfo").split()[0], 16)
    assert not info.bare
    assert case.fact("version").startswith(f"Linux version {info.osrelease} ")
    assert info.symbols["init_top_pgt"] == info.swapper_gva == int(case.fact("symbol.init_top_pgt"), 16)
    assert info.levels == case.levels
    assert info.sme_mask == (0 if case.cbit is None else 1 << case.cbit)


def test_without_registers(case: Case) -> None:
    memory = case.memory
    search = Search(memory, case.cbit)
    kernel = find_kernel(search)
    assert kernel is not None
    assert kernel.form == case.kernel_form
    assert_told_by_the_guest(kernel.info, case)
    # what start-up code left of an earlier copy of the kernel's data may look like a stack, and is seen through
    assert all(why.endswith("no page tables of a kernel behind it") for why in search.refused)
    refused = len(search.refused)
    # one page in 512, one chunk with the top table, then the kernel's data up to the pointer, and what is behind
    # a few hundred addresses in it; a chunk is one read, and so are a sample and what an address leads to
    samples = case.plain.machine.ram_nbytes // (2 * MIB)
    chunks = [nbytes for _, nbytes in memory.peeks if nbytes > PAGE]
    assert search.pages == len(memory.pages_peeked)
    assert samples + 128 < search.pages < samples + 4000 + 512 * refused
    assert sum(chunks) <= 16 * MIB + 2 * MIB * refused
    assert len(memory.peeks) < samples + len(chunks) + 400
    assert len(memory.tables_read) < 64


def test_by_a_vcpus_tables(case: Case) -> None:
    memory = case.memory
    search = Search(memory, case.cbit)
    assert_told_by_the_guest(find_note(search, [case.form(root) for root in case.roots]), case)
    assert search.pages == len(memory.pages_peeked) < 5000
    assert len(memory.tables_read) < 64


def test_by_reading_ram(case: Case) -> None:
    memory = case.memory
    search = Search(memory, case.cbit)
    note, *_ = next(batch for batch in sweep.notes(search) if not batch[0].bare)
    assert_told_by_the_guest(note, case)
    assert check(memory, note, case.cbit) == case.kernel_form
    # in order from gpa 0, less the legacy hole, in whole chunks
    assert search.pages == len(memory.pages_peeked) <= (note.gpa + 2 * CHUNK_NBYTES) // PAGE
    assert len(memory.peeks) <= note.gpa // CHUNK_NBYTES + 8


def test_what_is_not_the_cbit_leads_nowhere(case: Case) -> None:
    wrong = {None: 51, 51: 47, 47: 51}[case.cbit]
    search = Search(case.memory, wrong, limit_pages=20_000)
    assert find_kernel(search) is None
    assert search.refused


def test_in_a_dump_without_registers(case: Case) -> None:
    said: list[str] = []
    with open_dump(DumpOptions(str(case.linux.ram), "raw", cbit_pos=case.cbit), warn=said.append) as guest:
        assert guest.paging() == case.kernel_form
        info = guest.vmcoreinfo()
        assert_told_by_the_guest(info, case)
        assert info is not None
        version = guest.read_virtual(int(case.fact("symbol.linux_banner"), 16), 64)
        assert case.fact("version").encode().startswith(version)
    assert any(f"page tables of Linux {info.osrelease}, found" in text for text in said)
