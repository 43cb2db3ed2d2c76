"""The names of a real kernel: every one that we read is where ``nm`` and KASLR's offset say, and gdb knows them."""

from __future__ import annotations

import json
import random
import re
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner

from sevkvm.cli.program import program
from sevkvm.lab.sealed import SealedLinux
from sevkvm.linux.kallsyms import read_symbols
from sevkvm.linux.kallsymsearch import search_table
from sevkvm.linux.space import KernelSpace
from sevkvm.linux.tables import check
from tests.support.gdb import gdb, gdbserver, require_gdb
from tests.support.qemu import require_kvm_qemu
from tests.support.qemu_sealed import sealed_qemu
from tests.support.readers.dumps import Cell, Dumps, sealed
from tests.support.readers.sealedguest import SealedGuest
from tests.support.readers.symbols import require_vmlinux
from tests.support.readers.told import told_by

pytestmark = pytest.mark.kvm

CELLS = ((4, 51, "strip"), (5, 47, "keep"))
IMAGE = 0xFFFF_FFFF_8000_0000
SAMPLES = 20


@cache
def nm(release: str) -> str:
    """It takes a second."""
    vmlinux = require_vmlinux(release)
    return subprocess.run(["nm", vmlinux], capture_output=True, text=True, check=True, timeout=120).stdout


def truth(linux: SealedLinux) -> set[tuple[int, str, str]]:
    """Address, kind and name of each symbol of the kernel's ``vmlinux``, as this boot has it."""
    said = nm(told_by(linux).release)
    offset = int(re.findall(r"(?m)^KERNELOFFSET=(\w+)$", linux.vmcoreinfo.text)[0], 16)  # type: ignore[union-attr]
    assert offset, "no KASLR"
    found = set()
    for line in said.splitlines():
        if line[:16].strip():
            gva = int(line[:16], 16)
            found.add((gva + offset if gva >= IMAGE else gva, line[17], line[19:]))
    return found


def sevkvm(*words: str, status: int = 0) -> tuple[str, str]:
    done = CliRunner().invoke(program, list(words))
    assert done.exit_code == status, done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize("cell", CELLS, ids=["4-level", "5-level"])
def test_every_name_is_where_the_kernel_has_it(reader_dumps: Dumps, cell: Cell) -> None:
    real = truth(sealed(*cell[:2]))
    out, err = sevkvm("symbols", "--file", str(reader_dumps.dump(cell)))
    lines = [line.split(" ") for line in out.splitlines()]
    ours = {(int(gva, 16), letter, name) for gva, letter, name in lines}
    assert f"{len(lines)} symbols of Linux {told_by(sealed(*cell[:2])).release}, read with " in err
    assert {(gva, name) for gva, _, name in ours} <= {(gva, name) for gva, _, name in real}
    # kallsyms has its own letter for per-CPU variables only
    assert {each for each in ours if each[0] >= IMAGE and each[1] not in "aA"} <= real
    globals_ = {
        each for each in real if each[1] in "TDBR" and not each[2].startswith(("__ksymtab", "__kstrtab"))
    }
    assert len(globals_ - ours) < len(globals_) / 50, sorted(globals_ - ours)[:20]


@pytest.mark.parametrize("cell", CELLS, ids=["4-level", "5-level"])
def test_a_real_table_is_found_by_its_shape(cell: Cell) -> None:
    """As of a kernel before 6.0, whose note does not say where it is."""
    guest = SealedGuest(sealed(*cell[:2]))
    info = guest.vmcoreinfo()
    assert info is not None
    space = KernelSpace(guest.memory, check(guest.memory, info, cell[1]))
    told = {name: gva for name, gva in info.symbols.items() if name.startswith("kallsyms_")}
    assert len(told) == 6
    silent = replace(info, symbols={name: gva for name, gva in info.symbols.items() if name not in told})
    found = search_table(space, silent)
    assert found is not None
    assert {f"kallsyms_{name}": gva for name, gva in found.items()} == told
    assert read_symbols(space, silent) == read_symbols(space, info)


def test_lookups_both_ways(reader_dumps: Dumps) -> None:
    dump = str(reader_dumps.dump(CELLS[0]))
    real = truth(sealed(4, 51))
    named: dict[str, list[int]] = {}
    for gva, _, name in sorted(real):
        named.setdefault(name, []).append(gva)
    functions = sorted(name for gva, kind, name in real if kind == "T" and len(named[name]) == 1)
    wanted = random.Random(7).sample([name for name in functions if "." not in name], SAMPLES)
    out, _ = sevkvm("symbols", "--file", dump, "--json", *wanted)
    assert [(each["name"], int(each["gva"], 16)) for each in json.loads(out)] == [
        (name, named[name][0]) for name in wanted
    ]
    # an address in the middle of a function; an alias may have its address, too
    lines = [word for name in wanted for word in ("-c", f"sym {named[name][0] + 1:#x}")]
    out, _ = sevkvm("monitor", "--file", dump, *lines)
    for name, line in zip(wanted, out.splitlines(), strict=True):
        gva, _, label = line.partition(": ")
        assert int(gva, 16) == named[name][0] + 1
        assert label.removesuffix("+0x1") in {each[2] for each in real if each[0] == named[name][0]}
    out, err = sevkvm("symbols", "--file", dump, "init_task", "no_such_symbol", "0x1000", status=1)
    assert out == f"0x{named['init_task'][0]:016x}: init_task\n"
    assert "no_such_symbol is no symbol" in err
    assert "0x1000 is not in the kernel's image" in err


def test_gdb_knows_them_in_a_dump(reader_dumps: Dumps, tmp_path: Path) -> None:
    require_gdb()
    linux = sealed(4, 51)
    real = {(gva, name) for gva, _, name in truth(linux)}
    file = tmp_path / "kernel.sym"
    with gdbserver(
        "--file", str(reader_dumps.dump(CELLS[0])), "--symbols", str(file), directory=tmp_path
    ) as server:
        text = gdb(
            server.target,
            *("bt 1", "info symbol $rip", "info symbol schedule", "break schedule"),
            *("x/2i schedule", "x/s &linux_banner", "print &init_task", "info line schedule"),
            file=file,
        )
        assert f"gdb {file} -ex 'target remote" in server.stderr()
    assert file.stat().st_mode & 0o777 == 0o600
    gva = {name: gva for gva, name in real}
    (frame,) = re.findall(r"^#0 +0x([0-9a-f]+) in (\S+) \(\)$", text, re.M)
    assert int(frame[0], 16) == linux.vcpus[0].regs.rip
    below = max(gva for gva, _ in real if gva <= linux.vcpus[0].regs.rip)
    assert (below, frame[1]) in real
    assert "schedule in section .text" in text
    assert f"Breakpoint 1 at {gva['schedule']:#x}" in text
    assert f"{gva['schedule']:#x} <schedule>:\t" in text
    assert f'{gva["linux_banner"]:#x} <linux_banner>:\t"Linux version ' in text
    assert f"{gva['init_task']:#x} <init_task>" in text
    assert "warning" not in text


def test_a_file_that_is_not_ours_is_not_overwritten(reader_dumps: Dumps, tmp_path: Path) -> None:
    dump = str(reader_dumps.dump(CELLS[0]))
    file = tmp_path / "vmlinux"
    file.write_bytes(b"\x7fELF precious")
    _, err = sevkvm("symbols", "--file", dump, "-o", str(file), status=2)
    assert "exists" in err
    _, err = sevkvm("gdbserver", "--file", dump, "--symbols", str(file), status=2)
    assert "exists" in err
    assert file.read_bytes() == b"\x7fELF precious"
    for _ in range(2):  # the second time it is ours
        sevkvm("symbols", "--file", dump, "-o", str(tmp_path / "kernel.sym"))
    assert [path.name for path in tmp_path.iterdir() if path != file] == ["kernel.sym"]


def test_a_plain_guest_that_is_alive() -> None:
    require_kvm_qemu()
    linux = sealed(4, 51)
    with sealed_qemu(linux.plain) as vmm:
        options = ("--pid", str(vmm.pid), "--qmp", vmm.qmp_path)
        facts = {
            name.partition(".")[2]: int(gva, 16)
            for name, gva in linux.plain.facts.items()
            if name.startswith("symbol.")
        }
        lines = [word for name in facts for word in ("-c", f"addr {name}", "-c", f"sym {name}")]
        out, err = sevkvm("monitor", *options, "--symbols", *lines)
        assert " KiB of memory" in err
    for (name, gva), said in zip(facts.items(), zip(*[iter(out.splitlines())] * 2, strict=True), strict=True):
        assert said[0] == f"0x{gva:016x}: {name}"
        assert said[1].startswith(f"0x{gva:016x}: ")
