"""The command line against the lab's encrypted guest, whose every byte, mapping and register is known."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from elftools.elf.elffile import ELFFile

import sevkvm
from sevkvm.cli.program import program
from tests.support.lab import LabGuest, lab_guest
from tests.support.sevhost import Host, commands, host_cbit_pos, sev_host

pytestmark = pytest.mark.sev

PAGE = 4096
CBIT_POS = host_cbit_pos()


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it said."""

    exit_code: int
    stdout: str
    stderr: str


@dataclass
class Lab:
    """A guest on a pretend host."""

    guest: LabGuest
    host: Host

    def run(self, command: str, *args: str) -> Outcome:
        """Run a command on it, in this process where that can be."""
        argv = [command, *self.guest.facts["arguments"], *args]
        if self.host.standin:
            return self.run_inside(*argv)
        result = CliRunner().invoke(program, argv)
        return Outcome(result.exit_code, result.stdout, result.stderr)

    def run_inside(self, *argv: str) -> Outcome:
        """Run a command under the shim, where ``/proc`` gives the pretend devices their names."""
        process = self.host.popen(
            [sys.executable, "-m", "sevkvm", *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(sevkvm.__file__).parents[1])},
        )
        out, err = process.communicate(timeout=60)
        return Outcome(process.returncode, out, err)

    def answer(self, command: str, *args: str) -> Any:
        """The command's JSON."""
        result = self.run(command, "--json", *args)
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    def decryptions(self) -> int:
        """Firmware commands so far, by the firmware's own count."""
        return self.host.kernel.firmware.counts["DBG_DECRYPT"]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with (
        sev_host(cbit_pos=CBIT_POS) as host,
        lab_guest(policy=0, vcpus=2, pcid=True, popen=host.popen) as guest,
    ):
        yield Lab(guest, host)


@pytest.fixture(scope="module")
def nodbg() -> Iterator[Lab]:
    with sev_host() as host, lab_guest(policy=1, popen=host.popen) as guest:
        yield Lab(guest, host)


@pytest.fixture(scope="module")
def es() -> Iterator[Lab]:
    with sev_host() as host, lab_guest(policy=4, popen=host.popen) as guest:
        yield Lab(guest, host)


def listed(lab: Lab) -> dict[str, Any]:
    guests = json.loads(lab.run_inside("list", "--json").stdout)
    (found,) = [guest for guest in guests if guest["pid"] == lab.guest.pid]
    return found


def test_list(lab, nodbg, es):
    found = listed(lab)
    assert found["vm_fd"] == lab.guest.vm_fd
    assert [found[key] for key in ("vcpus", "sev", "policy", "debug_allowed")] == [2, "sev", "0x0", True]
    found = listed(nodbg)
    assert [found[key] for key in ("sev", "policy", "debug_allowed")] == ["sev", "0x1", False]
    found = listed(es)
    assert [found[key] for key in ("sev", "policy", "debug_allowed")] == ["sev-es", "0x4", True]


def test_status(lab):
    status = lab.answer("status")
    assert [status[key] for key in ("sev", "state", "debug_allowed")] == ["sev", "running", True]
    assert (status["cbit_pos"], status["cbit_source"]) == (CBIT_POS, "guest-cpuid")
    assert [int(slot["hva"], 16) for slot in status["slots"]] == [slot.hva for slot in lab.guest.slots]


def test_regs(lab):
    for found, expected in zip(lab.answer("regs"), lab.guest.image.vcpus, strict=True):
        for name in ("rax", "r15", "rip", "rsp"):
            assert found[name] == hex(getattr(expected.regs, name))
        root = expected.sregs.cr3 & ~(1 << CBIT_POS | 0xFFF)
        assert found["paging"] == {"mode": "4-level", "pse": False, "root_gpa": hex(root)}


def test_translate_every_mapping_and_every_miss(lab):
    mappings, misses = lab.guest.image.mappings, lab.guest.image.misses
    answers = lab.answer("translate", *(hex(mapping.gva + 0x123) for mapping in mappings))
    for found, expected in zip(answers, mappings, strict=True):
        assert found["gpa"] == hex(expected.gpa + 0x123), found
        assert found["page_size"] == expected.page_nbytes
        for name in ("private", "writable", "user", "nx"):
            assert found[name] is getattr(expected, name), (found, name)
    result = lab.run("translate", "--json", *(hex(miss.gva) for miss in misses))
    assert result.exit_code == 1
    assert [found["level"] for found in json.loads(result.stdout)] == [miss.level for miss in misses]


def test_x_is_plaintext_where_the_host_sees_ciphertext(lab):
    for mark in lab.guest.image.landmarks:
        plain = lab.guest.image.plaintext(mark.gpa, 64)
        found = lab.answer("x", "/64xb", hex(mark.gva))
        assert bytes.fromhex(found["bytes"]) == plain, mark.name
        stored = lab.answer("xp", "--shared", "/64xb", hex(mark.gpa))
        assert bytes.fromhex(stored["bytes"]) == lab.guest.host_bytes(mark.gpa, 64)
        assert (lab.guest.host_bytes(mark.gpa, 64) == plain) == (mark.name in ("shared", "flags")), mark.name


def test_the_count_of_firmware_commands(lab):
    secret = lab.guest.image.landmark("secret")
    before = lab.decryptions()
    result = lab.run("translate", "--json", "--stats", hex(secret.gva))
    assert json.loads(result.stderr)["stats"]["firmware_commands"] == 4
    assert lab.decryptions() - before == 4
    before = lab.decryptions()
    result = lab.run("translate", "--json", "--stats", hex(secret.gva), hex(secret.gva + PAGE))
    stats = json.loads(result.stderr)["stats"]
    assert (stats["firmware_commands"], stats["table_commands"]) == (4, 4)
    assert lab.decryptions() - before == 4


def test_the_cost_of_a_dump_is_a_command_a_private_page(lab, tmp_path):
    before = lab.decryptions()
    result = lab.run("dump", "-o", str(tmp_path / "raw"), "--json", "--stats")
    assert result.exit_code == 0, result.stderr
    spent = lab.decryptions() - before
    pages = json.loads(result.stdout)["pages"]
    private = sum(nbytes for kind, nbytes in pages.items() if kind != "shared")
    assert pages["shared"] == PAGE + (2 << 20)
    stats = json.loads(result.stderr.splitlines()[-1])["stats"]
    assert stats["firmware_commands"] == spent == private // PAGE


def test_dump_raw(lab, tmp_path):
    for slot in lab.guest.image.slots:
        out = tmp_path / slot.name
        found = lab.answer("dump", "-o", str(out), "--gpa", f"{slot.gpa:#x}:+{slot.nbytes:#x}")
        assert found["complete"] is True
        assert hashlib.sha256(out.read_bytes()).hexdigest() == lab.guest.image.sha256(slot), slot.name


def test_a_manifest_names_the_firmware(lab, tmp_path):
    out = tmp_path / "raw"
    where = lab.guest.facts["arguments"]
    done = lab.run_inside("dump", *where, "-o", str(out), "--gpa", "0:4K", "--manifest")
    assert done.exit_code == 0, done.stderr
    firmware = json.loads((tmp_path / "raw.json").read_text())["firmware"]
    major, minor = map(int, firmware["api"].split("."))
    # that of the pretend firmware; on hardware, that of the host
    assert (major, minor) >= (0, 16)
    assert firmware["build"] > 0


def test_dump_elf(lab, tmp_path):
    out = tmp_path / "core"
    result = lab.run("dump", "-o", str(out), "--format", "elf", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["cbit"], found["vmcoreinfo"]) == ("keep", None)  # it is no Linux
    assert "no VMCOREINFO note" in result.stderr
    with out.open("rb") as file:
        segments = list(ELFFile(file).iter_segments("PT_LOAD"))
        assert [(s["p_paddr"], s["p_filesz"]) for s in segments] == [
            (slot.gpa, slot.nbytes) for slot in lab.guest.image.slots
        ]
        for segment in segments:
            expected = lab.guest.image.plaintext(segment["p_paddr"], segment["p_filesz"])
            assert segment.data() == expected, hex(segment["p_paddr"])


def test_dump_of_virtual_memory(lab, tmp_path):
    shared = lab.guest.image.landmark("shared")
    out = tmp_path / "virtual"
    lab.answer("dump", "-o", str(out), "--gva", f"{shared.gva - PAGE:#x}:+12K")
    assert out.read_bytes() == lab.guest.image.plaintext(shared.gpa - PAGE, 3 * PAGE)


@pytest.mark.parametrize(
    "args", [("dump", "-o", "file"), ("regs",), ("x", "0x1000"), ("xp", "0x1000"), ("translate", "0x1000")]
)
def test_a_policy_that_forbids_debugging(nodbg, tmp_path, monkeypatch, args):
    monkeypatch.chdir(tmp_path)
    result = nodbg.run(*args)
    assert result.exit_code == 5
    assert "policy 0x1 forbids debugging" in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []
    assert "DBG_DECRYPT" not in commands(nodbg.host)


def test_the_policy_comes_before_where_its_memory_is(nodbg, tmp_path):
    out = tmp_path / "file"
    argv = ["dump", "--pid", str(nodbg.guest.pid), "--vm-fd", str(nodbg.guest.vm_fd), "-o", str(out)]
    result = CliRunner().invoke(program, argv)
    assert result.exit_code == 5, result.stderr
    assert not out.exists()


def test_status_of_a_guest_that_forbids_debugging(nodbg):
    status = nodbg.answer("status")
    assert (status["debug_allowed"], status["policy_flags"]) == (False, ["NODBG"])
    assert "DBG_DECRYPT" not in commands(nodbg.host)


def test_sev_es_has_memory_but_no_registers(es, tmp_path):
    result = es.run("regs")
    assert result.exit_code == 1
    assert "registers are encrypted" in result.stderr
    secret = es.guest.image.landmark("secret")
    assert es.run("x", hex(secret.gva)).exit_code == 1
    cr3 = es.guest.image.vcpus[0].sregs.cr3
    found = es.answer("x", "/16xb", "--cr3", hex(cr3), hex(secret.gva))
    assert bytes.fromhex(found["bytes"]) == es.guest.image.plaintext(secret.gpa, 16)
    (slot,) = (slot for slot in es.guest.image.slots if slot.gpa == 0)
    out = tmp_path / "ram"
    es.answer("dump", "-o", str(out), "--gpa", f"0:{slot.nbytes:#x}", "--cr3", hex(cr3))
    assert hashlib.sha256(out.read_bytes()).hexdigest() == es.guest.image.sha256(slot)


def test_an_elf_core_of_a_sev_es_guest_says_what_it_lacks(es, tmp_path):
    out = tmp_path / "core"
    result = es.run("dump", "-o", str(out), "--format", "elf", "--json", "--gpa", "0x100000:+4K")
    assert result.exit_code == 0, result.stderr
    assert "holds no registers" in result.stderr
    assert "taken as private" in result.stderr
    assert out.read_bytes()[-PAGE:] == es.guest.image.plaintext(0x100000, PAGE)


def test_words_are_little_endian(lab):
    stack = next(m for m in lab.guest.image.mappings if m.user and m.writable)
    data = lab.guest.image.plaintext(stack.gpa, 32)
    words = " ".join(f"0x{word:016x}" for word in struct.unpack("<2Q", data[:16]))
    assert lab.run("x", "/2xg", hex(stack.gva)).stdout == f"{stack.gva:016x}: {words}\n"


def test_where_there_is_no_kvm(tmp_path):
    with sev_host(kvm="standin") as host, lab_guest(policy=0, popen=host.popen) as guest:
        lab = Lab(guest, host)
        found = listed(lab)
        assert [found[key] for key in ("vm_fd", "sev", "debug_allowed")] == [guest.vm_fd, "sev", True]
        secret = guest.image.landmark("secret")
        answer = lab.answer("x", "/64xb", hex(secret.gva))
        assert bytes.fromhex(answer["bytes"]) == guest.image.plaintext(secret.gpa, 64)
        (slot,) = (slot for slot in guest.image.slots if slot.gpa == 0)
        out = tmp_path / "ram"
        lab.answer("dump", "-o", str(out), "--gpa", f"0:{slot.nbytes:#x}")
        assert hashlib.sha256(out.read_bytes()).hexdigest() == guest.image.sha256(slot)
