"""A Linux with page-table isolation: each process has a second top table, which user mode runs on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from sevkvm.lab import debian, initrd
from sevkvm.lab.emulator import Emulator, Machine
from sevkvm.lab.files import cache_directory, mapped
from sevkvm.linux.find import find_note
from sevkvm.linux.ram import Search
from sevkvm.linux.roots import find_roots
from sevkvm.memory.source import Slot, SlotMap
from sevkvm.paging.form import PagingForm
from sevkvm.vcpu import paging_mode, root_gpa
from tests.support.readers.sealedguest import FileMemory

pytestmark = pytest.mark.kvm

SECONDS = 200


@dataclass(frozen=True)
class Isolated(Machine):
    """Tells the kernel to do what it does by itself on processors that Meltdown concerns."""

    def argv(self, kernel: Path, initrd: Path, ram: Path, monitor: Path) -> list[str]:
        *argv, command_line = super().argv(kernel, initrd, ram, monitor)
        return [*argv, f"{command_line} pti=on"]


def test_the_user_halves_are_roots_too(tmp_path: Path) -> None:
    cache = cache_directory()
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    ram, archive = tmp_path / "ram", tmp_path / "initrd"
    ram.touch()
    try:
        kernel = debian.find_kernel(cache, lambda line: None)
        archive.write_bytes(initrd.build(debian.find_busybox(cache, lambda line: None).read_bytes()))
        with Emulator(Isolated(), kernel, archive, ram, tmp_path, SECONDS) as emulator:
            emulator.run_until(initrd.READY, lambda line: None)
            vcpus = emulator.stop()
    except debian.LabUnavailable as error:
        pytest.skip(f"{error} ({error.help})")
    data = mapped(ram)
    memory = FileMemory(data, SlotMap([Slot(0, len(data), 0x7F00_0000_0000)]))
    forms = []
    for vcpu in vcpus:
        mode = paging_mode(vcpu.sregs)
        forms.append(PagingForm(mode, root_gpa(vcpu.sregs.cr3, mode, None)))
    info = find_note(Search(memory, None), forms)
    assert info is not None
    found = find_roots(memory, info, None, forms)
    assert found.unknown == ()
    roots = {form.root_gpa for form in found.forms}
    halves = {root: sum(entry & 1 for entry in data[root + 2048 : root + 4096].cast("Q")) for root in roots}
    # each pair is 8 KiB-aligned: what follows a user half may be the next pair
    pairs = {root for root in roots if not root & 4096 and root + 4096 in roots}
    assert len(pairs) > len(initrd.KEEPERS)
    for root in pairs:
        # the user half has next to nothing of the kernel, and all of the process
        assert 0 < halves[root + 4096] < 8 < halves[root]
        lower, user = (data[at : at + 2048].cast("Q") for at in (root, root + 4096))
        assert [entry & ~(1 << 63 | 0x60) for entry in lower] == [entry & ~(1 << 63 | 0x60) for entry in user]
    (trampoline,) = roots - pairs - {root + 4096 for root in pairs}
    assert trampoline < 1 << 20
