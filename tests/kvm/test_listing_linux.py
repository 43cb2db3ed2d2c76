"""A real Linux, 4-level on KVM and 4- and 5-level under emulation: listings equal QEMU's, sealed with a C-bit too."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from click.testing import CliRunner

from sevkvm.cli.program import program
from sevkvm.lab.emulator import Machine
from sevkvm.lab.files import mapped
from sevkvm.lab.sealed import SealedLinux
from sevkvm.paging.walk import Walker
from tests.support.emulated import Emulated, Mode, RamReader, emulated
from tests.support.linux import require_sealed_linux
from tests.support.ours import form_of, our_mem, our_tlb
from tests.support.qemu import require_kvm_qemu, require_qemu
from tests.support.qemu_sealed import sealed_qemu
from tests.support.refwalk import reference_leaves, reference_mem

pytestmark = pytest.mark.kvm

CASES = {"4-level-c51": (Machine(), 51), "5-level-2-vcpus-c47": (Machine(cpus=2, la57=True), 47)}
MAX_ROOTS = 5  # of the processes that run on no vCPU
ADDRESSES = 300


@dataclass
class Running:
    """An emulated machine with a Linux in it, of which ``sealed`` is the encrypted twin."""

    machine: Emulated
    sealed: SealedLinux
    mode: Mode

    def address_spaces(self) -> Iterator[int]:
        """Each vCPU's CR3, then other processes' roots; the machine's registers are set to each."""
        seal = self.sealed.seal
        sregs = self.sealed.plain.vcpus[0].sregs
        used = [vcpu.sregs.cr3 for vcpu in self.sealed.plain.vcpus]
        others = [root for root in seal.roots if root not in {cr3 & ~0xFFF for cr3 in used}]
        for cr3 in [*used, *others[:MAX_ROOTS]]:
            self.machine.set_control(sregs.cr0, cr3, sregs.cr4, sregs.efer)
            yield cr3


@pytest.fixture(scope="module", params=CASES)
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    require_qemu()
    machine, cbit_pos = CASES[request.param]
    sealed = require_sealed_linux(machine, cbit_pos=cbit_pos)
    with emulated(ram_nbytes=machine.ram_nbytes, ram_file=sealed.plain.ram) as emulator:
        yield Running(emulator, sealed, "5level" if machine.la57 else "4level")


def test_every_address_space_is_listed_as_qemu_does(running: Running) -> None:
    machine, seal = running.machine, running.sealed.seal
    sealed_ram = mapped(running.sealed.ram)
    sealed_reader = RamReader(lambda gpa, nbytes: bytes(sealed_ram[gpa : gpa + nbytes]))
    for cr3 in running.address_spaces():
        tlb = machine.info_tlb()
        assert tlb.count("\n") > 1000
        if running.mode == "5level":  # where QEMU is wrong, and takes minutes
            mem = reference_mem(reference_leaves(machine.read, running.mode, cr3))
        else:
            mem = machine.info_mem()
        for reader, form in (
            (machine.reader(), form_of(running.mode, cr3)),
            (sealed_reader, form_of(running.mode, cr3, seal.cbit_pos)),
        ):
            assert our_tlb(reader, form) == tlb
            assert our_mem(reader, form) == mem


def test_addresses_go_where_qemu_says(running: Running) -> None:
    rng = random.Random(4)
    cr3 = next(running.address_spaces())
    walker = Walker(running.machine.reader(), form_of(running.mode, cr3))
    leaves = reference_leaves(running.machine.read, running.mode, cr3)
    for leaf in rng.choices(leaves, k=ADDRESSES):
        gva = leaf.gva + rng.randrange(leaf.nbytes)
        assert walker.translate(gva).gpa == running.machine.gva2gpa(gva) == leaf.gpa + gva - leaf.gva


@pytest.mark.parametrize("command", ["tlb", "mem"])
def test_the_command_line_says_what_the_monitor_says(command: str) -> None:
    require_kvm_qemu()
    with sealed_qemu(require_sealed_linux().plain) as vmm:
        expected = vmm.hmp(f"info {command}")
        assert expected.count("\n") > 20
        result = CliRunner().invoke(program, [command, "--pid", str(vmm.pid), "--qmp", vmm.qmp_path])
        assert (result.exit_code, result.stdout) == (0, expected)
