"""``sevkvm policy``: what it prints, where the policy comes from, how it ends."""

from __future__ import annotations

import json

import pytest

from sevkvm import errors
from sevkvm.cli import policy_source
from sevkvm.memory.policy import SevKind
from tests.unit.cli.conftest import make_guest
from tests.unit.cli.test_json_documented import documented, keys

OBJECT = "sev-guest,id=sev0,cbitpos=51,reduced-phys-bits=1,policy=0x3"


def answer(run, *args):
    result = run("policy", *args, "--json")
    return json.loads(result.stdout), result


def test_every_bit_is_explained(run):
    result = run("policy", "decode", "0x5")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split()[1:] == ["0x5,", "SEV-ES,", "as", "given"]
    told = [line.split()[:3] for line in lines if line[:3].strip().isdigit()]
    assert told == [
        ["0", "1", "NODBG"],
        ["1", "0", "NOKS"],
        ["2", "1", "ES"],
        ["3", "0", "NOSEND"],
        ["4", "0", "DOMAIN"],
        ["5", "0", "SEV"],
    ]
    assert "debugging is forbidden" in result.stdout
    assert "SEV-ES is required: registers are encrypted" in result.stdout
    assert "warning: the host may give this guest's key" in result.stdout


def test_json(run):
    found, result = answer(run, "decode", "0x45")
    assert result.exit_code == 0
    assert keys(found) - documented("policy") == set()
    assert {key: found[key] for key in ("value", "kind", "source", "valid", "debug_allowed", "reserved")} == {
        "value": "0x45",
        "kind": "sev-es",
        "source": "argument",
        "valid": True,
        "debug_allowed": False,
        "reserved": "0x40",
    }
    assert found["flags"] == ["NODBG", "ES", "bit6"]
    assert [each["code"] for each in found["advice"]] == ["reserved", "key-sharing", "es-send"]
    assert found["bits"][1] | {"owner": "", "meaning": ""} == {
        "bit": 1,
        "name": "NOKS",
        "set": False,
        "meaning": "",
        "owner": "",
        "tool": None,
    }


@pytest.mark.parametrize(
    ("args", "status"),
    [
        (("decode", "0x0"), 0),
        (("decode", "0x0", "--strict"), 1),
        (("decode", "0xb", "--strict"), 0),
        (("decode", "--snp", "0x30000", "--strict"), 0),
        (("decode", "--snp", "0x10000"), 1),
        (("decode", "--snp", "0x4020000"), 1),
        (("decode", "0x100000000"), 1),
        (("decode", "five"), 2),
        (("decode", "0x1", "--pid", "1"), 2),
        (("decode", "0x1", "--qemu-args", OBJECT), 2),
        (("decode", "--snp", "--qemu-args", OBJECT), 2),
        (("decode", "--command-line"), 2),
        (("decode", "--file", "core"), 2),
        (("encode", "--snp", "--es"), 2),
        (("encode", "--smt"), 2),
        (("encode", "--api", "1"), 2),
        (("encode", "--api", "1.256"), 2),
        (("encode", "--strict"), 1),
    ],
)
def test_exit_status(run, args, status):
    assert run("policy", *args).exit_code == status


@pytest.mark.parametrize(
    ("args", "value"),
    [
        ((), "0x0"),
        (("--debug",), "0x0"),
        (("--no-debug",), "0x1"),
        (("--no-key-sharing",), "0x2"),
        (("--es",), "0x4"),
        (("--no-send",), "0x8"),
        (("--domain",), "0x10"),
        (("--sev-only",), "0x20"),
        (("--no-debug", "--es", "--api", "1.51"), "0x33010005"),
        (("--snp",), "0x20000"),
        (("--snp", "--no-debug"), "0x20000"),
        (("--snp", "--smt", "--api", "1.51"), "0x30133"),
        (("--snp", "--migration-agent"), "0x60000"),
        (("--snp", "--debug"), "0xa0000"),
        (("--snp", "--single-socket"), "0x120000"),
        (("--snp", "--cxl"), "0x220000"),
        (("--snp", "--aes-256-xts"), "0x420000"),
        (("--snp", "--no-rapl"), "0x820000"),
        (("--snp", "--ciphertext-hiding"), "0x1020000"),
        (("--snp", "--no-page-swap"), "0x2020000"),
    ],
)
def test_encode(run, args, value):
    result = run("policy", "encode", *args)
    assert (result.stdout, result.exit_code) == (f"{value}\n", 0)
    found, _ = answer(run, "encode", *args)
    assert (found["value"], found["source"]) == (value, "options")
    # and back
    again, _ = answer(run, "decode", value, *(["--snp"] if "--snp" in args else []))
    assert again | {"source": "options"} == found


def test_encode_warns_beside_the_number(run):
    result = run("policy", "encode", "--no-send", "--domain", "--no-debug", "--no-key-sharing")
    assert result.stdout == "0x1b\n"
    assert "NOSEND forbids all sending: DOMAIN" in result.stderr


def test_qemus_command_line(run):
    found, result = answer(run, "decode", "--qemu-args", OBJECT)
    assert (found["value"], found["source"], result.stderr) == ("0x3", "qemu-args", "")
    found, result = answer(run, "decode", "--qemu-args", "sev-guest,id=s")
    assert found["value"] == "0x1"
    assert "QEMU's default" in result.stderr
    assert run("policy", "decode", "--qemu-args", "qemu -m 1G").exit_code == 2


@pytest.fixture
def cmdline(monkeypatch):
    argv: list[str] = []
    monkeypatch.setattr(policy_source.procfs, "cmdline", lambda pid: argv)
    return argv


@pytest.mark.parametrize("policy", [0, 1, 5])
def test_a_running_guest_says_the_firmware(attached, run, cmdline, policy):
    attached.guest = make_guest(attached, policy=policy)
    found, result = answer(run, "decode", "--pid", "4242")
    assert (found["value"], found["source"]) == (hex(policy), "firmware")
    assert attached.need_debug is False
    assert result.stderr == ""


def test_a_command_line_that_asked_for_something_else(attached, run, cmdline):
    cmdline += ["qemu-system-x86_64", "-object", OBJECT, "-only-migratable"]
    attached.guest = make_guest(attached, policy=9)
    found, result = answer(run, "decode", "--pid", "4242")
    assert found["value"] == "0x9"
    assert "asks for policy 0x3, but the firmware says 0x9" in result.stderr
    assert "migration" in [each["code"] for each in found["advice"]]


def test_a_guest_that_is_not_encrypted(attached, run, cmdline):
    attached.guest = make_guest(attached, policy=None)
    assert run("policy", "decode", "--pid", "4242").exit_code == 1
    cmdline += ["qemu-system-x86_64", "-object", OBJECT]
    found, result = answer(run, "decode", "--pid", "4242")
    assert (found["value"], found["source"]) == ("0x3", "qemu-args")
    assert "not encrypted" in result.stderr


def test_snp_which_linux_does_not_tell(attached, run, cmdline):
    guest = make_guest(attached, policy=0, kind=SevKind.SEV_SNP)
    guest.sev = type(guest.sev)(SevKind.SEV_SNP)
    attached.guest = guest
    assert run("policy", "decode", "--pid", "4242").exit_code == 5
    cmdline += ["qemu-system-x86_64", "-object", "sev-snp-guest,id=s,policy=0xb0000"]
    found, _ = answer(run, "decode", "--pid", "4242")
    assert (found["value"], found["kind"]) == ("0xb0000", "sev-snp")


def test_a_process_without_a_vm(attached, run, cmdline):
    attached.error = errors.VmNotFound("process 4242 has no KVM VM open")
    assert run("policy", "decode", "--pid", "4242").exit_code == 4
    cmdline += ["qemu-system-x86_64", "-object", OBJECT]
    found, result = answer(run, "decode", "--pid", "4242")
    assert found["value"] == "0x3"
    assert "no KVM VM" in result.stderr


def test_the_command_line_alone_needs_no_attaching(attached, run, cmdline):
    attached.error = AssertionError("must not attach")
    cmdline += ["qemu-system-x86_64", "-object", OBJECT]
    found, _ = answer(run, "decode", "--pid", "4242", "--command-line")
    assert found["value"] == "0x3"
    cmdline[0] = "cat"
    assert run("policy", "decode", "--pid", "4242", "--command-line").exit_code == 1
