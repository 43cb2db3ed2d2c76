"""``sevkvm pages`` of a Linux that shares memory, page by page: alive, without registers, as a dump; 4 and 5 levels."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from sevkvm.abi.policybits import POLICY_ES
from sevkvm.host.deputy import Deputy
from sevkvm.lab.emulator import Machine
from sevkvm.lab.files import mapped
from sevkvm.lab.sealed import LEGACY_HOLE
from tests.support.linux import require_sealed_linux
from tests.support.qemu import QemuVmm, require_kvm_qemu
from tests.support.qemu_sealed import sealed_qemu
from tests.support.sevhost import Host, sev_host
from tests.support.swiotlb import PAGE, Sharing, share

pytestmark = [pytest.mark.kvm, pytest.mark.sev]

NEVER_GPA, NEVER_NBYTES = 0x0D00_0000, 3 << 20


@pytest.fixture(scope="module")
def sharing(tmp_path_factory: pytest.TempPathFactory) -> Sharing:
    require_kvm_qemu()
    return share(require_sealed_linux(), tmp_path_factory.mktemp("sharing"))


@pytest.fixture(scope="module")
def vmm(sharing: Sharing) -> Iterator[tuple[Host, QemuVmm]]:
    """Its RAM encrypted but for what it shares, and for what it is taken never to have written."""
    with sev_host() as host, sealed_qemu(sharing.linux, popen=host.popen, sev_policy=0) as vmm:
        fill(vmm, sharing)
        yield host, vmm


def fill(vmm: QemuVmm, sharing: Sharing) -> None:
    first, end = sharing.shared
    hva = vmm.gpa2hva(0)
    with Deputy(vmm.pid) as port:
        port.write(hva + first, sharing.text * ((end - first) // len(sharing.text)))
        port.write(hva + NEVER_GPA, bytes(NEVER_NBYTES))


def pages(*words: str) -> Any:
    argv = [sys.executable, "-m", "sevkvm", "pages", "--json", *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(done.stdout)


def of(vmm: QemuVmm, sharing: Sharing) -> list[str]:
    return ["--pid", str(vmm.pid), "--qmp", vmm.qmp_path, "--cbit-pos", str(sharing.linux.seal.cbit_pos)]


def by_page(answer: Any) -> dict[int, str]:
    """Kinds by gpa, below 1 GiB."""
    runs = [(int(run["gpa"], 16), run["size"], run["kind"]) for run in answer["runs"]]
    assert runs == sorted(runs)
    return {
        gpa: kind for start, nbytes, kind in runs for gpa in range(start, min(start + nbytes, 1 << 30), PAGE)
    }


def truth_of(sharing: Sharing, *, alive: bool) -> dict[int, str]:
    """Of a machine, its ROMs and what was never written, too."""
    truth = sharing.truth(memoryview(mapped(sharing.linux.ram)))
    if alive:
        never = range(NEVER_GPA, NEVER_GPA + NEVER_NBYTES, PAGE)
        truth |= {gpa: "untouched" for gpa in never if truth[gpa] in ("private", "unmapped")}
        truth |= dict.fromkeys(range(786432, LEGACY_HOLE[1], PAGE), "rom")
    return truth


def check(answer: Any, sharing: Sharing, *, alive: bool) -> None:
    truth = truth_of(sharing, alive=alive)
    found = by_page(answer)
    ram = {gpa: found[gpa] for gpa in truth if gpa not in range(*LEGACY_HOLE) or alive}
    assert ram == {gpa: truth[gpa] for gpa in ram}
    # and by hand
    first, end = sharing.shared
    inside = {found[gpa] for gpa in range(first, end, PAGE) if gpa != sharing.stale_private}
    assert inside == {"shared"}
    assert found[first - PAGE] == found[end] == "private"
    assert found[sharing.stale_private] == found[sharing.stale_shared] == "conflict"
    assert len(sharing.new_tables) == 5
    assert {found[gpa] for gpa in sharing.new_tables} == {"table"}
    conflicts = {int(each["gpa"], 16): each["private"] for each in answer["conflicts"]}
    assert conflicts == {sharing.stale_shared: True, sharing.stale_private: False}
    assert len(answer["direct_maps"]) == 1


def test_alive(sharing: Sharing, vmm: tuple[Host, QemuVmm]) -> None:
    host, machine = vmm
    before = host.kernel.firmware.counts["DBG_DECRYPT"]
    answer = pages(*of(machine, sharing))
    commands = host.kernel.firmware.counts["DBG_DECRYPT"] - before
    check(answer, sharing, alive=True)
    tables = [gpa for gpa, kind in truth_of(sharing, alive=False).items() if kind == "table"]
    assert answer["tables"] == answer["firmware_commands"] == commands == len(tables)
    assert set(by_page(answer).values()) >= {"untouched", "unmapped", "rom"}


def test_a_dump_says_the_same(sharing: Sharing, vmm: tuple[Host, QemuVmm], tmp_path: Any) -> None:
    _, machine = vmm
    core = tmp_path / "core"
    argv = [*of(machine, sharing), "--format", "elf", "--cbit", "keep", "-o", str(core)]
    subprocess.run([sys.executable, "-m", "sevkvm", "dump", *argv], check=True, timeout=120)
    check(pages("--file", str(core)), sharing, alive=False)
    # what is shared was not decrypted, and of a page in conflict the direct map was believed
    dumped = subprocess.run(
        [*(sys.executable, "-m", "sevkvm", "xp", "--file", str(core), "/24cb"), hex(sharing.stale_private)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    assert "'b' 'o' 'u' 'n' 'c' 'e' 'd'" in dumped


def test_diff_finds_what_the_guest_began_to_share(
    sharing: Sharing, vmm: tuple[Host, QemuVmm], tmp_path: Any
) -> None:
    """The same Linux before it shared anything, and after."""
    _, machine = vmm
    before = tmp_path / "before.json"
    linux = require_sealed_linux()
    cr3 = hex(linux.vcpus[0].sregs.cr3)
    plain = pages("--file", str(linux.ram), "--cr3", cr3, "--cbit-pos", str(linux.seal.cbit_pos))
    before.write_text(json.dumps(plain))
    changed = pages(*of(machine, sharing), "--diff", str(before))["changes"]
    first, end = sharing.shared
    shared = {
        gpa
        for each in changed
        if (each["before"], each["after"]) == ("private", "shared")
        for gpa in range(int(each["gpa"], 16), int(each["gpa"], 16) + each["size"], PAGE)
    }
    was = by_page(plain)
    assert shared == {gpa for gpa in range(first, end, PAGE) if was[gpa] == "private"} - {
        sharing.stale_private
    }
    assert len(shared) > 2000


def test_without_registers(sharing: Sharing, tmp_path: Any) -> None:
    """SEV-ES: the kernel's own tables are found. A process's mappings are not in them, and change no kind here."""
    from tests.sev.test_linux_es import flash_image

    flash = tmp_path / "flash"
    flash.write_bytes(flash_image())
    extra = ["-drive", f"if=pflash,format=raw,readonly=on,file={flash}"]
    linux = sharing.linux
    with sev_host() as host, sealed_qemu(linux, popen=host.popen, sev_policy=POLICY_ES, extra=extra) as vmm:
        fill(vmm, sharing)
        answer = pages(*of(vmm, sharing), "--vm-fd", str(vmm.vm_fd))
    found = by_page(answer)
    first, end = sharing.shared
    assert {found[gpa] for gpa in range(first, end, PAGE)} == {"shared", "conflict"}
    assert (found[first - PAGE], found[end]) == ("private", "private")
    assert answer["no_tables"] is None
    assert int(answer["roots"][0], 16) in linux.seal.roots
    assert answer["firmware_commands"] > answer["tables"]
    flash_pages = [run for run in answer["runs"] if int(run["gpa"], 16) == (1 << 32) - 0x10000]
    assert [run["kind"] for run in flash_pages] == ["rom"]


@pytest.mark.parametrize("cbit_pos", [47, 51])
def test_five_levels(cbit_pos: int, tmp_path: Any) -> None:
    """As a raw image of memory: no KVM here takes a vCPU with five levels."""
    sharing = share(require_sealed_linux(Machine(cpus=2, la57=True), cbit_pos=cbit_pos), tmp_path)
    linux = sharing.linux
    told = ["--file", str(linux.ram), "--cbit-pos", str(cbit_pos), "--paging", "5level"]
    roots = {vcpu.sregs.cr3 for vcpu in linux.vcpus}
    for cr3 in roots:
        answer = pages(*told, "--cr3", hex(cr3))
        one = Sharing(
            type(linux)(
                linux.plain,
                linux.directory,
                linux.seal,
                linux.vmcoreinfo,
                tuple(vcpu for vcpu in linux.vcpus if vcpu.sregs.cr3 == cr3),
            ),
            *(sharing.shared, sharing.stale_shared, sharing.stale_private, sharing.new_tables),
        )
        check(answer, one, alive=False)
