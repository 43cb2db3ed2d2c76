"""Dumps that QEMU itself wrote of a real Linux, read with --file: the answers are those of the guest."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from click.testing import CliRunner, Result

from sevkvm.attach import DumpOptions, open_dump
from sevkvm.cli.program import program
from sevkvm.cli.status_file import held
from sevkvm.lab.files import mapped
from sevkvm.lab.initrd import KEEPERS
from sevkvm.lab.sealed import PlainLinux
from tests.support.linux import require_sealed_linux
from tests.support.qemu import QemuVmm, require_kvm_qemu
from tests.support.qemu_sealed import sealed_qemu

pytestmark = pytest.mark.kvm

# QEMU 7.2 writes kdump flattened. With -p its segments are mappings: they overlap, and of one that spans two of
# its blocks of memory the header leaves out all but the first: memory that is missing, not zero.
COMMANDS = {"elf": "", "elf -p": "-p", "kdump-flattened": "-z"}
INCOMPLETE = "elf -p"


@pytest.fixture(scope="module")
def linux() -> PlainLinux:
    require_kvm_qemu()
    return require_sealed_linux().plain


@pytest.fixture(scope="module")
def vmm(linux: PlainLinux) -> Iterator[QemuVmm]:
    with sealed_qemu(linux) as vmm:
        yield vmm


@pytest.fixture(scope="module", params=COMMANDS)
def dump(
    request: pytest.FixtureRequest, vmm: QemuVmm, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """(how it was made, path)."""
    path = tmp_path_factory.mktemp("dumps") / "guest"
    assert vmm.hmp(f"dump-guest-memory {COMMANDS[request.param]} {path}") == ""
    yield request.param, str(path)
    path.unlink()


def sevkvm(*argv: str) -> Result:
    return CliRunner().invoke(program, argv)


def live(vmm: QemuVmm) -> list[str]:
    return ["--pid", str(vmm.pid), "--vm-fd", str(vmm.vm_fd), "--qmp", vmm.qmp_path]


def test_status(linux: PlainLinux, dump: tuple[str, str]) -> None:
    said = json.loads(sevkvm("status", "--file", dump[1], "--json").stdout)
    assert said["format"] == dump[0].partition(" ")[0]
    assert said["cbit_pos"] is None
    if dump[0] != INCOMPLETE:
        assert said["missing"] == []
        assert said["memory_size"] >= linux.machine.ram_nbytes
    assert said["vcpu_indexes"] == list(range(linux.machine.cpus))


def test_registers(vmm: QemuVmm, dump: tuple[str, str]) -> None:
    unknown = dict.fromkeys(("cr8", "efer", "apic_base"))
    told = json.loads(sevkvm("regs", "--file", dump[1], "--json").stdout)
    assert told == [each | unknown for each in json.loads(sevkvm("regs", *live(vmm), "--json").stdout)]


def test_what_it_holds_is_the_ram(linux: PlainLinux, dump: tuple[str, str]) -> None:
    ram = mapped(linux.ram)
    with open_dump(DumpOptions(dump[1])) as guest:
        assert guest.contents is not None
        pages = 0
        for gpa, nbytes in held(guest.contents):
            for page in range(gpa, gpa + nbytes, 4096):
                if any(first <= page < end for first, end in linux.private_ranges):
                    assert guest.read_physical(page, 4096) == ram[page : page + 4096]
                    pages += 1
    assert pages > 1000


def test_memory_by_the_guests_own_tables(vmm: QemuVmm, linux: PlainLinux, dump: tuple[str, str]) -> None:
    if dump[0] == INCOMPLETE:
        assert sevkvm("x", "--file", dump[1], hex(linux.image.landmarks[0].gva)).exit_code == 6
        return
    (banner,) = linux.image.landmarks
    for question in (
        ("x", f"/{banner.nbytes}cb", hex(banner.gva)),
        ("xp", "/2048xg", hex(banner.gpa & -4096)),
        ("search", "--gva", "Linux version", f"{banner.gva & -4096:#x}:+64K"),
    ):
        assert sevkvm(question[0], "--file", dump[1], *question[1:]).stdout == (
            sevkvm(question[0], *live(vmm), *question[1:]).stdout
        )


def test_search(dump: tuple[str, str]) -> None:
    found = sevkvm("search", "--file", dump[1], KEEPERS[0].secret.decode())
    if dump[0] == INCOMPLETE:
        assert found.exit_code == 6
    else:
        assert len(found.stdout.splitlines()) == 1
        assert found.exit_code == 0
