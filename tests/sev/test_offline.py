"""A real Linux, encrypted, alive and as a dump: whoever asks both gets the same answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sevkvm.cli.program import program
from sevkvm.lab.files import mapped
from sevkvm.lab.initrd import KEEPERS
from sevkvm.lab.keeper import SECRET_GVA
from sevkvm.lab.sealed import SealedLinux
from tests.support.linux import require_sealed_linux
from tests.support.qemu import QemuVmm, require_kvm_qemu
from tests.support.qemu_sealed import sealed_qemu
from tests.support.sevhost import sev_host

pytestmark = [pytest.mark.kvm, pytest.mark.sev]


_alive: dict[tuple[object, ...], Result] = {}


@pytest.fixture(scope="module")
def linux() -> SealedLinux:
    require_kvm_qemu()
    return require_sealed_linux()


@pytest.fixture(scope="module")
def vmm(linux: SealedLinux) -> Iterator[QemuVmm]:
    with sev_host() as host, sealed_qemu(linux, popen=host.popen, sev_policy=0) as vmm:
        yield vmm


def sevkvm(*argv: str) -> Result:
    return CliRunner().invoke(program, argv)


def live(vmm: QemuVmm, linux: SealedLinux) -> list[str]:
    """The options that name the VM. CPUID of this processor cannot tell the C-bit: it has none."""
    return [
        *f"--pid {vmm.pid} --vm-fd {vmm.vm_fd} --cbit-pos {linux.seal.cbit_pos} --qmp".split(),
        vmm.qmp_path,
    ]


FORMATS = {"elf": ["--cbit", "keep"], "kdump": ["--cbit", "keep"], "raw": [], "lime": []}
WITH_REGISTERS = (".elf", ".kdump")


@pytest.fixture(scope="module", params=FORMATS)
def dump(
    request: pytest.FixtureRequest, vmm: QemuVmm, linux: SealedLinux, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[str]]:
    """The options that name a dump of it; formats without registers are told the tables and the C-bit."""
    path = tmp_path_factory.mktemp("dumps") / f"guest.{request.param}"
    done = sevkvm(
        "dump", *live(vmm, linux), "--format", request.param, *FORMATS[request.param], "-o", str(path)
    )
    assert done.exit_code == 0, done.stderr
    options = ["--file", str(path)]
    if not str(path).endswith(WITH_REGISTERS):
        (vcpu,) = linux.vcpus
        options += ["--cr3", hex(vcpu.sregs.cr3), "--cbit-pos", str(linux.seal.cbit_pos)]
    yield options
    path.unlink()


def same_answer(vmm: QemuVmm, linux: SealedLinux, dump: list[str], command: str, *words: str) -> str:
    """The stdout of both, which must be the same."""
    question = (vmm.pid, command, *words)
    if question not in _alive:  # the guest stands still: it is asked once for all formats
        _alive[question] = sevkvm(command, *live(vmm, linux), *words)
    alive, offline = _alive[question], sevkvm(command, *dump, *words)
    assert offline.stdout == alive.stdout, offline.stderr
    assert offline.exit_code == alive.exit_code
    assert offline.stdout
    return offline.stdout


def test_memory_is_the_same(vmm: QemuVmm, linux: SealedLinux, dump: list[str]) -> None:
    (banner,) = linux.image.landmarks
    text = same_answer(vmm, linux, dump, "x", f"/{banner.nbytes}c", hex(banner.gva))
    assert text.startswith(f"{banner.gva:016x}: 'L' 'i' 'n' 'u' 'x' ' '")
    same_answer(vmm, linux, dump, "xp", "/512xg", hex(banner.gpa & -4096))
    same_answer(vmm, linux, dump, "x", "/4xg", "0x1000")  # not mapped


def test_each_process_shows_its_own_secret(vmm: QemuVmm, linux: SealedLinux, dump: list[str]) -> None:
    for keeper in KEEPERS:
        root = hex(linux.keeper_roots[keeper.name])
        other_root = [word for word in dump if word != hex(linux.vcpus[0].sregs.cr3) and word != "--cr3"]
        text = sevkvm("x", *other_root, "--cr3", root, "/64xb", hex(SECRET_GVA)).stdout
        assert text == sevkvm("x", *live(vmm, linux), "--cr3", root, "/64xb", hex(SECRET_GVA)).stdout
        numbers = [word for line in text.splitlines() for word in line.partition(": ")[2].split()]
        assert bytes(int(number, 16) for number in numbers) == keeper.secret


def test_translations_are_the_same(vmm: QemuVmm, linux: SealedLinux, dump: list[str]) -> None:
    (banner,) = linux.image.landmarks
    addresses = [hex(banner.gva), hex(banner.gva + 0x20_0000), "0x1000", "0x8000000000000000"]
    alive, offline = (
        json.loads(sevkvm("translate", *where, "-v", "--json", *addresses).stdout)
        for where in (live(vmm, linux), dump)
    )
    assert offline[0]["slot"]["hva"] is offline[0]["hva"] is None
    for answer in (*alive, *offline):  # where the VMM keeps it is what a dump cannot tell
        del answer["slot"], answer["hva"]
    assert offline == alive
    assert offline[0]["private"] is True


def test_registers_are_the_same_where_the_format_has_them(
    vmm: QemuVmm, linux: SealedLinux, dump: list[str]
) -> None:
    offline = sevkvm("regs", *dump, "--json")
    if not dump[1].endswith(WITH_REGISTERS):
        assert offline.exit_code == 1
        assert "holds no registers" in offline.stderr
        return
    (told,), (alive,) = (
        json.loads(text) for text in (offline.stdout, sevkvm("regs", *live(vmm, linux), "--json").stdout)
    )
    assert {name for name in told if told[name] is None} == {"cr8", "efer", "apic_base"}
    assert told == alive | dict.fromkeys(("cr8", "efer", "apic_base"))


def test_a_file_without_registers_needs_no_options_either(linux: SealedLinux) -> None:
    (banner,) = linux.image.landmarks
    result = sevkvm("translate", "--file", str(linux.ram), hex(banner.gva))  # the lab's own: raw
    assert f"gpa 0x{banner.gpa:x}, 2 MiB page, private" in result.stdout
    assert f"the C-bit is bit {linux.seal.cbit_pos}, says the VMCOREINFO" in result.stderr
    plain = sevkvm("translate", "--file", str(linux.plain.ram), hex(banner.gva))
    assert f"gpa 0x{banner.gpa:x}, 2 MiB page, read-only" in plain.stdout
    assert "C-bit" not in plain.stderr


@pytest.mark.parametrize("cbit", ["strip", "alias"])
def test_a_core_made_for_other_readers_is_read_too(
    vmm: QemuVmm, linux: SealedLinux, tmp_path: Path, cbit: str
) -> None:
    path = str(tmp_path / "guest.core")
    done = sevkvm("dump", *live(vmm, linux), "--format", "elf", "--cbit", cbit, "-o", path)
    assert done.exit_code == 0, done.stderr
    said = json.loads(sevkvm("status", "--file", path, "--json").stdout)
    assert said["cbit_pos"] == {"strip": None, "alias": linux.seal.cbit_pos}[cbit]
    assert said["missing"] == []
    assert max(int(each["gpa"], 16) for each in said["ranges"]) < 1 << linux.seal.cbit_pos
    (banner,) = linux.image.landmarks
    same_answer(vmm, linux, ["--file", path], "x", f"/{banner.nbytes}cb", hex(banner.gva))
    same_answer(
        vmm, linux, ["--file", path], "search", "--gva", "Linux version", f"{banner.gva & -4096:#x}:+64K"
    )


def test_a_core_tells_its_c_bit_by_itself(vmm: QemuVmm, linux: SealedLinux, dump: list[str]) -> None:
    said = json.loads(sevkvm("status", *dump, "--json").stdout)
    assert said["cbit_pos"] == linux.seal.cbit_pos
    assert said["missing"] == []
    assert said["memory_size"] >= linux.plain.machine.ram_nbytes


def secrets(linux: SealedLinux) -> dict[str, bytes]:
    return {keeper.name: keeper.secret.rstrip(b".") for keeper in KEEPERS}


def test_search_finds_every_secret_alive_and_in_the_dump(
    vmm: QemuVmm, linux: SealedLinux, dump: list[str]
) -> None:
    for name, secret in secrets(linux).items():
        found = same_answer(vmm, linux, dump, "search", secret.decode(), "-C", "16")
        (line,) = [line for line in found.splitlines() if line.startswith("0x")]
        gpa = int(line.partition(":")[0], 16)
        assert mapped(linux.ram)[gpa : gpa + len(secret)] == secret
        # the same page, by the keeper's own page tables
        without_root = [word for at, word in enumerate(dump) if "--cr3" not in (word, dump[at - 1])]
        root = ["--cr3", hex(linux.keeper_roots[name])]
        words = ["--gva", secret.decode(), f"{SECRET_GVA:#x}:+4K"]
        expected = f"0x{SECRET_GVA:016x} gpa 0x{gpa:x}: {secret.decode()}\n"
        assert sevkvm("search", *live(vmm, linux), *root, *words).stdout == expected
        assert sevkvm("search", *without_root, *root, *words).stdout == expected


def test_a_regular_expression_finds_the_kernels_banner_in_virtual_memory(
    vmm: QemuVmm, linux: SealedLinux, dump: list[str]
) -> None:
    (banner,) = linux.image.landmarks
    around = f"{banner.gva & -(1 << 21):#x}:+2M"
    found = same_answer(
        vmm, linux, dump, "search", "--gva", "--regex", r"Linux version [0-9.]+[^\n]*", around
    )
    assert f"0x{banner.gva:016x} gpa 0x{banner.gpa:x}: Linux version" in found


def test_the_host_finds_no_secret(vmm: QemuVmm, linux: SealedLinux) -> None:
    for secret in (*secrets(linux).values(), b"Linux version"):
        hidden = sevkvm("search", *live(vmm, linux), "--shared", secret.decode())
        assert (hidden.exit_code, hidden.stdout) == (1, ""), hidden.stderr
