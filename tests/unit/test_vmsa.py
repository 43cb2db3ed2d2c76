"""VMSAs from elsewhere: as pages, as the two shapes of the kernel's log, through the command, and what is none."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from sevkvm.abi import vmsa as vmsa_abi
from sevkvm.abi.vmsa import Vmsa
from sevkvm.abi.vmsalog import read_vmsas
from sevkvm.cli.program import program
from sevkvm.errors import BadGuestData
from tests.support.layouts import VMSA_FIELDS, VMSA_NBYTES, VMSA_SEGMENTS

FIXED: dict[str, int] = {
    "efer": 0x1D01,
    "rflags": 0x246,
    "cr0": 0x80050033,
    "cr4": 0x3506F0,
    "cpl": 0,
    "vmpl": 0,
}


def values(seed: int) -> dict[str, Any]:
    """Of every field, no two alike."""
    dice = random.Random(seed)
    told: dict[str, Any] = {name: dice.getrandbits(8 * nbytes) for name, (_, nbytes) in VMSA_FIELDS.items()}
    told |= FIXED | {"cr3": 1 << 51 | 0x1234000}
    for name in VMSA_SEGMENTS:
        told[name] = (dice.getrandbits(16), dice.getrandbits(12), dice.getrandbits(32), dice.getrandbits(64))
    told["cs"] = (0x10, 0x29B, 0xFFFFFFFF, 0)  # present, code, 64-bit
    told["ss"] = (0x18, 0xC93, 0xFFFFFFFF, 0)
    told["ds"] = (0, 0, 0, 0)
    return told


def area(told: dict[str, Any]) -> bytearray:
    data = bytearray(random.Random(5).randbytes(VMSA_NBYTES))  # what is not decoded may be anything
    for name, offset in VMSA_SEGMENTS.items():
        struct.pack_into("<HHIQ", data, offset, *told[name])
    for name, (offset, nbytes) in VMSA_FIELDS.items():
        data[offset : offset + nbytes] = told[name].to_bytes(nbytes, "little")
    return data


def fields_log(told: dict[str, Any], prefix: str = "[ 1234.567890] kvm_amd: ") -> str:
    """As dump_vmcb prints it (Linux 6.16)."""
    lines = ["VMCB Control Area:", f"{'cr_read:':<20}{0x10:04x}", f"{'exit_info1:':<20}{7:016x}"]
    lines += ["VMCB State Save Area:"]
    for name in ("es", "cs", "ss", "ds", "fs", "gs", "gdtr", "ldtr", "idtr", "tr"):
        selector, attrib, limit, base = told[name]
        lines.append(f"{name + ':':<5} s: {selector:04x} a: {attrib:04x} l: {limit:08x} b: {base:016x}")
    lines.append(
        f"vmpl: {told['vmpl']}   cpl:  {told['cpl']}               efer:          {told['efer']:016x}"
    )

    def pairs(*names: str) -> None:
        for first, second in zip(names[::2], names[1::2], strict=True):
            numbers = (told.get(first, 0x11), told.get(second, 0x22))
            lines.append(f"{first + ':':<15} {numbers[0]:016x} {second + ':':<13} {numbers[1]:016x}")

    pairs("cr0", "cr2", "cr3", "cr4", "dr6", "dr7", "rip", "rflags", "rsp", "rax", "star", "lstar")
    pairs("cstar", "sfmask", "kernel_gs_base", "sysenter_cs", "sysenter_esp", "sysenter_eip")
    pairs("gpat", "dbgctl", "br_from", "br_to", "excp_from", "excp_to")
    lines.append(f"{'sev_features':<15} {told['sev_features']:016x}")
    pairs("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13")
    pairs("r14", "r15", "xcr0", "xss")
    return "".join(f"{prefix}{line}\n" for line in lines)


def bytes_log(data: bytes, prefix: str = "[   12.000001] ") -> str:
    """As LAUNCH_UPDATE_VMSA prints it with dynamic debug on."""
    rows = [data[at : at + 16] for at in range(0, len(data), 16)]
    lines = ["kvm_amd: Virtual Machine Save Area (VMSA):", *(row.hex(" ") for row in rows)]
    return "".join(f"{prefix}{line}\n" for line in lines)


def assert_is(found: Vmsa, told: dict[str, Any]) -> None:
    assert found._asdict() == {name: told[name] for name in found._fields}


def test_the_layout_is_the_kernels() -> None:
    assert vmsa_abi.SAVE_AREA_NBYTES == VMSA_NBYTES
    assert vmsa_abi.SEGMENTS == VMSA_SEGMENTS
    assert vmsa_abi.BYTES | vmsa_abi.QUADS == {name: offset for name, (offset, _) in VMSA_FIELDS.items()}
    assert set(Vmsa._fields) == set(VMSA_SEGMENTS) | set(VMSA_FIELDS)


@pytest.mark.parametrize("nbytes", [VMSA_NBYTES, 0x3F0, 4096])
def test_a_page(nbytes: int) -> None:
    told = values(1)
    assert_is(Vmsa.unpack(bytes(area(told).ljust(4096, b"\0")[:nbytes])), told)


def test_registers_are_those_of_the_ioctls() -> None:
    told = values(2) | {"cpl": 3}
    found = Vmsa.unpack(bytes(area(told)))
    assert found.regs()._asdict() == {name: told[name] for name in found.regs()._fields}
    sregs = found.sregs()
    assert (sregs.cr3, sregs.cr0, sregs.efer, sregs.cr2) == (
        1 << 51 | 0x1234000,
        0x80050033,
        0x1D01,
        told["cr2"],
    )
    assert (sregs.gdt, sregs.idt) == (told["gdtr"][3:1:-1], told["idtr"][3:1:-1])
    cs = sregs.cs
    assert (cs.selector, cs.type, cs.s, cs.present, cs.l, cs.db, cs.g) == (0x10, 0xB, 1, 1, 1, 0, 0)
    assert (sregs.ss.dpl, sregs.ss.db, sregs.ss.g, sregs.ds.unusable) == (3, 1, 1, 1)


@pytest.mark.parametrize("prefix", ["", "[ 1.0] kvm_amd: ", "Nov 28 19:00:01 host kernel: SVM: ", "<3>"])
def test_the_fields_of_a_failed_vmrun(prefix: str) -> None:
    told = [values(3), values(4)]
    noise = "[ 2.0] something else: 0000000000000001\n"
    log = noise + fields_log(told[0], prefix) + noise + fields_log(told[1], prefix)
    found = read_vmsas(log.encode())
    assert len(found) == 2
    for one, each in zip(found, told, strict=True):
        assert_is(one, each)


@pytest.mark.parametrize("prefix", ["", "[   12.000001] ", "Nov 28 19:00:01 host kernel: "])
@pytest.mark.parametrize("nbytes", [VMSA_NBYTES, 1032])
def test_the_bytes_of_a_launch(prefix: str, nbytes: int) -> None:
    told = values(5)
    log = bytes_log(bytes(area(told)[:nbytes]), prefix).splitlines(keepends=True)
    log.insert(7, f"{prefix}usb 1-1: new device\n")
    (found,) = read_vmsas("".join(log).encode())
    assert_is(found, told)


@settings(deadline=None)
@given(st.integers(1, 103))
def test_a_log_that_lost_a_line_is_not_read(which: int) -> None:
    log = bytes_log(bytes(area(values(6)))).splitlines(keepends=True)
    del log[which]
    with pytest.raises(BadGuestData, match="lines are missing"):
        read_vmsas("".join(log).encode())


def test_what_an_older_kernel_leaves_out_is_named() -> None:
    log = fields_log(values(7)).partition("[ 1234.567890] kvm_amd: sev_features")[0]
    with pytest.raises(BadGuestData, match="lacks rcx, rdx, rbx") as caught:
        read_vmsas(log.encode())
    assert "6.16" in (caught.value.help or "")


def test_ciphertext_is_no_state() -> None:
    for seed in range(8):
        page = b"\0" + random.Random(seed).randbytes(4095)
        with pytest.raises(BadGuestData, match="no vCPU's state"):
            read_vmsas(page)


@pytest.mark.parametrize("data", [b"", b"nothing here\n", b"\0" * 100, b"\0" * 5000, b"\0" * 4096])
def test_what_is_none(data: bytes) -> None:
    with pytest.raises(BadGuestData):
        read_vmsas(data)


@settings(deadline=None)
@given(
    st.binary(max_size=3000) | st.text(alphabet="0123456789abcdef: slab[]\n", max_size=3000).map(str.encode)
)
def test_any_bytes_are_vmsas_or_an_error(data: bytes) -> None:
    marks = [b"", b"VMCB State Save Area:\n", b"Virtual Machine Save Area (VMSA):\n"]
    for mark in marks:
        try:
            assert read_vmsas(mark + data)
        except BadGuestData:
            continue


def invoke(*words: str, data: bytes | None = None) -> Any:
    return CliRunner().invoke(program, ["regs", *words], input=data)


def test_the_command(tmp_path: Path) -> None:
    told = [values(8), values(9)]
    path = tmp_path / "pages"
    path.write_bytes(b"".join(bytes(area(each).ljust(4096, b"\0")) for each in told))
    result = invoke("--vmsa", str(path), "--cbit-pos", "51")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("CPU#") == 2
    assert f"RAX={told[0]['rax']:016x}" in result.stdout
    assert "CR8=?" in result.stdout
    assert "paging: 4-level, tables at gpa 0x1234000, C-bit 51 set" in result.stdout
    (second,) = json.loads(invoke("--vmsa", str(path), "--cbit-pos", "51", "--vcpu", "1", "--json").stdout)
    assert (second["index"], second["r15"], second["apic_base"]) == (1, hex(told[1]["r15"]), None)
    assert second["paging"]["root_gpa"] == "0x1234000"


def test_a_log_on_standard_input() -> None:
    told = values(10)
    result = invoke("--vmsa", "-", data=fields_log(told).encode())
    assert result.exit_code == 0, result.output
    assert f"RIP={told['rip']:016x}" in result.stdout
    # nobody said where the C-bit is
    assert "tables' address unknown" in result.stdout


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        (["--vmsa", "PATH", "--pid", "1"], 2, "no --pid with it"),
        (["--vmsa", "PATH", "--vm-fd", "1"], 2, "no --vm-fd with it"),
        (["--vmsa", "PATH", "--slot", "0:4K:0"], 2, "no --slot with it"),
        (["--vmsa", "PATH", "--vcpu", "7"], 2, "no vCPU 7"),
        (["--vmsa", "/nonexistent"], 1, "/nonexistent"),
        (["--vmsa", "/dev/null"], 1, "no VMSA is in it"),
        (["--vmsa", "/dev/zero"], 1, "more than 64 MiB"),
        (["--vmsa", "/"], 1, "/"),
    ],
)
def test_what_goes_wrong_is_said(tmp_path: Path, words: list[str], status: int, complaint: str) -> None:
    (tmp_path / "page").write_bytes(area(values(11)))
    result = invoke(*(word.replace("PATH", str(tmp_path / "page")) for word in words))
    assert (result.exit_code, complaint in result.stderr) == (status, True), result.output
    assert result.stdout == ""
