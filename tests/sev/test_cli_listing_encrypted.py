"""``sevkvm tlb`` and ``sevkvm mem`` of an encrypted Linux: what QEMU says of the same Linux when it is plain."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator

import pytest

from sevkvm.lab.files import mapped
from sevkvm.lab.sealed import SealedLinux
from tests.support.linux import require_sealed_linux
from tests.support.qemu import QemuVmm, require_kvm_qemu
from tests.support.qemu_sealed import sealed_qemu
from tests.support.sevhost import Host, sev_host
from tests.support.walker import leaves, table_pages, walk

pytestmark = [pytest.mark.kvm, pytest.mark.sev]


@pytest.fixture(scope="module")
def linux() -> SealedLinux:
    require_kvm_qemu()
    return require_sealed_linux()


@pytest.fixture(scope="module")
def encrypted(linux: SealedLinux) -> Iterator[tuple[Host, QemuVmm]]:
    with sev_host() as host, sealed_qemu(linux, popen=host.popen, sev_policy=0) as vmm:
        yield host, vmm


def sevkvm(vmm: QemuVmm, linux: SealedLinux, *words: str) -> subprocess.CompletedProcess[str]:
    """One command of the program, attached to the VMM from outside."""
    guest = ["--pid", str(vmm.pid), "--qmp", vmm.qmp_path, "--cbit-pos", str(linux.seal.cbit_pos)]
    argv = [sys.executable, "-m", "sevkvm", *words, *guest]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)


def root(linux: SealedLinux) -> int:
    return linux.vcpus[0].sregs.cr3 & 0x000F_FFFF_FFFF_F000 & ~(1 << linux.seal.cbit_pos)


def test_the_text_is_that_of_the_plain_guest(encrypted, linux):
    _, vmm = encrypted
    with sealed_qemu(linux.plain) as plain:
        expected = {name: plain.hmp(f"info {name}").replace("\r\n", "\n") for name in ("tlb", "mem")}
    for name, text in expected.items():
        assert len(text) > 4000
        assert sevkvm(vmm, linux, name).stdout == text


@pytest.mark.parametrize("args", [("tlb",), ("mem",), ("mem", "--json"), ("mem", "--summary", "--json")])
def test_a_command_for_each_distinct_table(encrypted, linux, args):
    host, vmm = encrypted
    ram = memoryview(mapped(linux.ram))
    tables = table_pages(ram, root(linux), linux.seal.levels, linux.seal.cbit_pos)
    before = host.kernel.firmware.counts["DBG_DECRYPT"]
    told = sevkvm(vmm, linux, *args, "--stats").stderr
    assert host.kernel.firmware.counts["DBG_DECRYPT"] - before == len(tables)
    assert (f" table_commands={len(tables)} " in told) or (f'"table_commands": {len(tables)},' in told)


def test_translate_costs_a_command_for_each_distinct_table_on_the_way(encrypted, linux):
    host, vmm = encrypted
    ram = memoryview(mapped(linux.ram))
    levels, cbit_pos = linux.seal.levels, linux.seal.cbit_pos
    found = random.Random(4).sample(list(leaves(ram, root(linux), levels, cbit_pos)), 40)
    walks = [walk(ram, root(linux), levels, cbit_pos, leaf.gva) for leaf in found]
    tables = {table for _, on_the_way in walks for table in on_the_way}
    assert 20 < len(tables) < levels * len(found)
    before = host.kernel.firmware.counts["DBG_DECRYPT"]
    done = sevkvm(vmm, linux, "translate", "--json", "--stats", *(hex(leaf.gva) for leaf in found))
    assert [int(each["gpa"], 16) for each in json.loads(done.stdout)] == [gpa for gpa, _ in walks]
    assert host.kernel.firmware.counts["DBG_DECRYPT"] - before == len(tables)
    assert json.loads(done.stderr)["stats"]["table_commands"] == len(tables)


def test_the_c_bit_of_every_page(encrypted, linux):
    _, vmm = encrypted
    ram = memoryview(mapped(linux.ram))
    expected = list(leaves(ram, root(linux), linux.seal.levels, linux.seal.cbit_pos))
    pages = json.loads(sevkvm(vmm, linux, "tlb", "--json").stdout)
    assert [(int(page["gva"], 16), int(page["gpa"], 16), page["page_size"]) for page in pages] == [
        (leaf.gva, leaf.gpa, leaf.nbytes) for leaf in expected
    ]
    assert [page["private"] for page in pages] == [leaf.private for leaf in expected]
    assert {page["private"] for page in pages} == {True, False}
    shared = sum(leaf.nbytes for leaf in expected if not leaf.private)
    sums = json.loads(sevkvm(vmm, linux, "mem", "--summary", "--json").stdout)
    assert (sums["shared"], sums["mapped"]) == (shared, sum(leaf.nbytes for leaf in expected))
