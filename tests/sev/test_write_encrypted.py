"""``sevkvm write`` on the lab's encrypted guest: kernels of both generations, failing hardware, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sevkvm.abi.policybits import POLICY_ES, POLICY_NODBG
from sevkvm.cli.program import program
from sevkvm.lab.demo import APIC_GVA, DIRECT_GVA, GIANT_GVA, ROM_GPA, ROM_GVA, SECRET_GPA, SHARED_GPA
from sevkvm.shim.faults import Faults, parse_fault
from sevkvm.shim.hardware import HardwareHost
from tests.support.lab import SUBPROCESS_ENVIRONMENT, LabGuest, lab_guest
from tests.support.sevhost import Host, heal, notes, require_notification, sev_host

pytestmark = [pytest.mark.sev, pytest.mark.sev_write]

PAGE = 4096
# the secret's page, three more of it, the shared one: all next to each other
BEFORE_SHARED = SHARED_GPA - PAGE


@pytest.fixture(scope="module", params=["old", "new"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    require_notification()
    with sev_host(generation=request.param) as host:
        yield host


@pytest.fixture(scope="module")
def shared_guest(host: Host) -> Iterator[LabGuest]:
    with lab_guest(policy=0, popen=host.popen) as guest:
        yield guest


@pytest.fixture
def guest(host: Host, shared_guest: LabGuest) -> Iterator[LabGuest]:
    """What a test writes it undoes: equal plaintext at an equal place is equal ciphertext."""
    before = stored(shared_guest)
    yield shared_guest
    heal(host)
    assert stored(shared_guest) == before


def stored(guest: LabGuest) -> list[str]:
    """Digests of all its memory as the host sees it."""
    return [sha256(guest.host_bytes(slot.gpa, slot.nbytes)).hexdigest() for slot in guest.slots]


def sevkvm(
    host: Host, guest: LabGuest, command: str, *arguments: str, apart: bool = False
) -> subprocess.CompletedProcess[str]:
    """A command on the guest: in this process where that can be, else (or ``apart``) in one of its own."""
    if not host.standin and not apart:
        result = CliRunner().invoke(program, [command, *guest.facts["arguments"], *arguments])
        return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)
    process = host.popen(
        [sys.executable, "-m", "sevkvm", command, *guest.facts["arguments"], *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=SUBPROCESS_ENVIRONMENT,
    )
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def write(host: Host, guest: LabGuest, *arguments: str) -> Any:
    done = sevkvm(host, guest, "write", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_memory(host: Host, guest: LabGuest, tmp_path: Path, expected: dict[int, bytearray]) -> None:
    """All of it, decrypted, is as expected."""
    for slot in guest.image.slots:
        path = tmp_path / slot.name
        path.unlink(missing_ok=True)
        done = sevkvm(host, guest, "dump", "-o", str(path), "--gpa", f"{slot.gpa:#x}:+{slot.nbytes:#x}")
        assert done.returncode == 0, done.stderr
        found, wanted = path.read_bytes(), expected[slot.gpa]
        wrong = [at for at in range(0, slot.nbytes, 16) if found[at : at + 16] != wanted[at : at + 16]]
        assert wrong == [] or [hex(slot.gpa + at) for at in wrong[:8]] == []


def image(guest: LabGuest) -> dict[int, bytearray]:
    return {slot.gpa: bytearray(guest.image.plaintext(slot.gpa, slot.nbytes)) for slot in guest.image.slots}


@pytest.mark.parametrize("how", ["gva", "gpa"])
def test_bytes_across_pages_and_into_a_shared_one(
    host: Host, guest: LabGuest, tmp_path: Path, how: str
) -> None:
    data = bytes(at * 7 & 0xFF for at in range(PAGE + 100))
    (tmp_path / "data").write_bytes(data)
    gpa = BEFORE_SHARED - 57
    address = gpa + (DIRECT_GVA if how == "gva" else 0)
    told = write(host, guest, f"--{how}", hex(address), "--from", str(tmp_path / "data"))
    assert [(piece["private"], piece["size"]) for piece in told["pieces"]] == [
        (True, 57),
        (True, PAGE),
        (False, 43),
    ]
    expected = image(guest)
    assert told["old"] == expected[0][gpa : gpa + len(data)].hex()
    expected[0][gpa : gpa + len(data)] = data
    assert_memory(host, guest, tmp_path, expected)
    # the host saw the shared bytes, and the others it did not
    assert guest.host_bytes(SHARED_GPA, 43) == data[-43:]
    assert guest.host_bytes(BEFORE_SHARED, PAGE) != data[57 : 57 + PAGE]
    assert notes(host) == []
    write(host, guest, hex(gpa), "--gpa", "--bytes", told["old"], "--expect", told["new"])


def test_the_shapes_that_old_kernels_corrupt(host: Host, guest: LabGuest, tmp_path: Path) -> None:
    expected = image(guest)
    undo = []
    for offset, nbytes in [(0, 1), (0x48, 9), (0xAF, 2), (0xFF7, 9), (0x1FF9, 14), (0x2001, PAGE)]:
        where, data = SECRET_GPA + offset, b"\xee" * nbytes
        told = write(host, guest, hex(DIRECT_GVA + where), "--bytes", data.hex())
        undo.append((told["address"], told["old"]))
        expected[0][where : where + nbytes] = data
    assert_memory(host, guest, tmp_path, expected)
    for address, old in reversed(undo):  # some lie over others
        write(host, guest, address, "--bytes", old)
    assert notes(host) == []
    if isinstance(host, HardwareHost):
        return  # which keeps no log
    shapes = [r.args for r in host.log.records if r.command == "DBG_ENCRYPT"]
    assert shapes
    assert all((each["src"] | each["dst"] | each["nbytes"]) % 16 == 0 for each in shapes)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((hex(ROM_GVA + 4),), "ROM or flash"),
        (("--gpa", hex(ROM_GPA)), "ROM or flash"),
        ((hex(APIC_GVA + 0x80),), "MMIO or a hole"),
        ((hex(GIANT_GVA + (2 << 20) - 1),), "MMIO or a hole"),
        (("--gpa", "0xfee00000", "--shared"), "MMIO or a hole"),
        ((hex(DIRECT_GVA + (3 << 30)),), "not-present"),
    ],
)
def test_what_is_refused_changes_nothing(
    host: Host, guest: LabGuest, arguments: tuple[str, ...], reason: str
) -> None:
    done = sevkvm(host, guest, "write", *arguments, "--bytes", "00 00")
    assert done.returncode == 1
    assert reason in done.stderr
    assert done.stdout == ""


def test_a_policy_that_forbids_it(host: Host) -> None:
    with lab_guest(policy=POLICY_NODBG, popen=host.popen) as guest:
        before = guest.host_bytes(SHARED_GPA, PAGE)
        done = sevkvm(host, guest, "write", "--gpa", hex(SHARED_GPA), "--shared", "--bytes", "00")
        assert done.returncode == 5
        assert "NODBG" in done.stderr
        assert guest.host_bytes(SHARED_GPA, PAGE) == before


def test_sev_es_has_memory_to_write(host: Host, tmp_path: Path) -> None:
    with lab_guest(policy=POLICY_ES, popen=host.popen) as guest:
        write(host, guest, "--cr3", guest.facts["cr3"], hex(DIRECT_GVA + SECRET_GPA), "--string", "sealed")
        ask = sevkvm(host, guest, "write", "--gpa", hex(SECRET_GPA), "--bytes", "00", "--search-limit", "0")
        assert ask.returncode == 2
        assert "--private or --shared" in ask.stderr
        write(host, guest, "--no-scan", "--private", "--gpa", hex(SECRET_GPA + 6), "--string", "!")
        said = sevkvm(host, guest, "xp", "/7c", hex(SECRET_GPA))
        assert "'s' 'e' 'a' 'l' 'e' 'd' '!'" in said.stdout


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_firmware_error_in_the_middle(host: Host, guest: LabGuest, tmp_path: Path, after: int) -> None:
    fault = parse_fault(f"dbg_encrypt:after={after}:status=HWSEV_RET_PLATFORM")
    host.kernel.firmware.faults = Faults([fault])
    start = SECRET_GPA + PAGE - 100
    sizes = [0, 100, 100 + PAGE]
    done = sevkvm(host, guest, "write", hex(DIRECT_GVA + start), "--bytes", "00" * (2 * PAGE + 200), "--json")
    heal(host)
    assert done.returncode == 1
    assert "HWSEV_RET_PLATFORM (0x13)" in done.stderr
    told = json.loads(done.stdout)
    assert (told["written"], told["failed_at"]) == (sizes[after], hex(DIRECT_GVA + start + sizes[after]))
    expected = image(guest)
    assert bytes.fromhex(told["old"]) == expected[0][start : start + 2 * PAGE + 200]
    expected[0][start : start + sizes[after]] = bytes(sizes[after])
    assert_memory(host, guest, tmp_path, expected)
    write(host, guest, told["address"], "--bytes", told["old"])


def test_a_driver_that_fails_under_it(host: Host, guest: LabGuest) -> None:
    host.kernel.firmware.faults = Faults([parse_fault("dbg_encrypt:after=1:count=1:errno=EBUSY")])
    where = hex(DIRECT_GVA + SECRET_GPA)
    done = sevkvm(host, guest, "write", where, "--bytes", "00" * 3 * PAGE, "--json")
    heal(host)
    write(host, guest, where, "--bytes", json.loads(done.stdout)["old"])
    assert done.returncode == 1
    assert "EBUSY" in done.stderr
    assert "stopped answering" in done.stderr
    assert json.loads(done.stdout)["written"] == PAGE


def test_a_command_that_takes_longer_than_the_timeout(host: Host, guest: LabGuest) -> None:
    host.kernel.firmware.faults = Faults([parse_fault("dbg_encrypt:count=1:delay=2")])
    where = hex(DIRECT_GVA + SECRET_GPA)
    # what is still in flight is let go when the process that waited for it has ended
    words = ("write", where, "--string", "late", "--timeout", "0.5", "--json")
    done = sevkvm(host, guest, *words, apart=True)
    heal(host)
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert (told["written"], told["old"]) == (0, b"sevk".hex())
    # whether it came to pass is not known to the one who waited no longer
    assert write(host, guest, where, "--bytes", told["old"])["old"] in (b"late".hex(), b"sevk".hex())
