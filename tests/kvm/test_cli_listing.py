"""``sevkvm tlb`` and ``sevkvm mem`` against an unmodified QEMU: its own lists, hostile tables, slow readers."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sevkvm import native
from sevkvm.cli.program import program
from sevkvm.lab.sealed import PlainLinux
from tests.support.linux import require_sealed_linux
from tests.support.qemu import QemuVmm, qemu, require_kvm_qemu
from tests.support.qemu_sealed import sealed_qemu

pytestmark = pytest.mark.kvm

PATIENCE = 30
PAGE = 4096
BOMB_GPA = 0x100000
TREE_GPA = 0x200000
PRESENT = 0x27  # P RW US A


@pytest.fixture(scope="module")
def linux() -> PlainLinux:
    require_kvm_qemu()
    return require_sealed_linux().plain


@pytest.fixture(scope="module")
def vmm(linux: PlainLinux) -> Iterator[QemuVmm]:
    with sealed_qemu(linux) as running:
        yield running


def sevkvm(vmm: QemuVmm, command: str, *args: str) -> Result:
    """Run a command on this VMM, in this process."""
    return CliRunner().invoke(program, [command, "--pid", str(vmm.pid), "--qmp", vmm.qmp_path, *args])


@pytest.mark.parametrize("command", ["tlb", "mem"])
def test_the_monitor_prints_the_same(vmm, command):
    result = sevkvm(vmm, command)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == vmm.hmp(f"info {command}").replace("\r\n", "\n")
    assert len(result.stdout) > 4000


def test_a_range_is_that_part_of_it(vmm):
    lines = vmm.hmp("info tlb").splitlines()
    start = 0xFFFF_FFFF_8000_0000
    expected = [line for line in lines if start <= int(line[:16], 16) < start + (1 << 30)]
    assert 10 < len(expected) < len(lines)
    assert sevkvm(vmm, "tlb", f"{start:#x}:+1G").stdout.splitlines() == expected


def test_every_format_tells_the_same_pages(vmm):
    expected = [(int(line[:16], 16), int(line[18:34], 16)) for line in vmm.hmp("info tlb").splitlines()]
    pages = json.loads(sevkvm(vmm, "tlb", "--json").stdout)
    assert [(int(page["gva"], 16), int(page["gpa"], 16)) for page in pages] == expected
    rows = list(csv.DictReader(io.StringIO(sevkvm(vmm, "tlb", "--csv").stdout)))
    assert [(row["gva"], row["gpa"], row["entry"]) for row in rows] == [
        (page["gva"], page["gpa"], page["entry"]) for page in pages
    ]
    lines = sevkvm(vmm, "tlb", "--columns").stdout.splitlines()
    assert [(int(line.split()[0], 16), int(line.split()[1], 16)) for line in lines[1:]] == expected
    assert len({line.index(line.split("  ")[-1]) for line in lines if "P " in line}) == 1  # aligned


def test_runs_and_sums_are_those_of_the_pages(vmm):
    pages = json.loads(sevkvm(vmm, "tlb", "--json").stdout)
    runs = json.loads(sevkvm(vmm, "mem", "--json").stdout)
    assert sum(run["size"] for run in runs) == sum(page["page_size"] for page in pages)
    told = ("page_size", "private", "writable", "user", "nx")
    by_gva = {page["gva"]: page for page in pages}
    for run in runs:
        first = by_gva[run["gva"]]
        assert [run[key] for key in told] == [first[key] for key in told]
    sums = json.loads(sevkvm(vmm, "mem", "--summary", "--json").stdout)
    assert sums["mapped"] == sum(page["page_size"] for page in pages)
    assert sums["user"] == sum(page["page_size"] for page in pages if page["user"])
    assert sums["writable"] == sum(page["page_size"] for page in pages if page["writable"])
    assert {each["page_size"]: each["count"] for each in sums["pages"]} == {
        nbytes: sum(page["page_size"] == nbytes for page in pages)
        for nbytes in {page["page_size"] for page in pages}
    }
    assert sums["complete"] is True


def test_translate_knows_the_rights_that_the_list_tells(vmm):
    pages = json.loads(sevkvm(vmm, "tlb", "--json").stdout)[::97]
    found = json.loads(sevkvm(vmm, "translate", "--json", *(page["gva"] for page in pages)).stdout)
    told = ("gva", "gpa", "page_size", "writable", "user", "nx")
    assert [[each[key] for key in told] for each in found] == [[page[key] for key in told] for page in pages]


def test_translate_tells_the_monitors_host_address(vmm):
    gpas = {page["gpa"]: page["gva"] for page in json.loads(sevkvm(vmm, "tlb", "--json").stdout)[::301]}
    found = json.loads(sevkvm(vmm, "translate", "--json", *gpas.values()).stdout)
    in_ram = [each for each in found if each["slot"]]
    assert len(in_ram) > 5
    for each in in_ram:
        assert int(each["hva"], 16) == vmm.gpa2hva(int(each["gpa"], 16))


# ---- hostile tables, in a QEMU of their own


@pytest.fixture
def small() -> Iterator[QemuVmm]:
    """A paused QEMU in whose RAM are tables that nobody honest would have."""
    require_kvm_qemu()
    with qemu(ram="64M") as running:
        ram = running.gpa2hva(0)
        bomb = struct.pack("<512Q", *[BOMB_GPA | PRESENT] * 512)
        native.write(running.pid, ram + BOMB_GPA, bomb)
        # 2048 distinct tables of 512 pages each: a list of 47 MB
        pds = range(TREE_GPA + 2 * PAGE, TREE_GPA + 6 * PAGE, PAGE)
        pts = range(TREE_GPA + 6 * PAGE, TREE_GPA + (6 + 4 * 512) * PAGE, PAGE)
        tree = [[TREE_GPA + PAGE | PRESENT], [pd | PRESENT for pd in pds]]
        tree += [[pt | PRESENT for pt in pts[index * 512 :][:512]] for index in range(4)]
        tables = b"".join(struct.pack("<512Q", *entries, *[0] * (512 - len(entries))) for entries in tree)
        leaves = struct.pack("<512Q", *range(PRESENT, PRESENT + 512 * PAGE, PAGE))
        native.write(running.pid, ram + TREE_GPA, tables + leaves * len(pts))
        yield running


def child(vmm: QemuVmm, *args: str, **settings) -> subprocess.Popen[bytes]:
    """A command as a process of its own; the vCPU is in real mode, so the tables are named."""
    argv = [sys.executable, "-m", "sevkvm", *args, "--pid", str(vmm.pid), "--qmp", vmm.qmp_path]
    return subprocess.Popen(argv, stderr=subprocess.PIPE, **settings)


def stopped_threads(pid: int) -> int:
    """Threads that a tracer keeps from running; an idle deputy is one."""
    stats = (path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat"))
    return sum(stat.rpartition(")")[2].split()[0] == "t" for stat in stats)


def wait_until_it_runs(vmm: QemuVmm) -> None:
    deadline = time.monotonic() + PATIENCE
    while stopped_threads(vmm.pid) > 1:
        assert time.monotonic() < deadline, "the guest still stands still"
        time.sleep(0.02)


def unread(vmm: QemuVmm, *args: str) -> tuple[subprocess.Popen[bytes], int]:
    """A command whose output began and is not read on; it has let the guest go. And the pipe's end to read."""
    reader, writer = os.pipe()
    process = child(vmm, *args, stdout=writer)
    os.close(writer)
    assert os.read(reader, 1)
    wait_until_it_runs(vmm)
    return process, reader


def test_a_bomb_is_one_run(small):
    result = sevkvm(small, "mem", "--cr3", hex(BOMB_GPA), "--columns")
    halves = ("0x0000000000000000  0x0000800000000000", "0xffff800000000000  0x10000000000000000")
    assert [line[:39].rstrip() for line in result.stdout.splitlines()[1:]] == [
        half[:39].rstrip() for half in halves
    ]
    sums = json.loads(sevkvm(small, "mem", "--cr3", hex(BOMB_GPA), "--summary", "--json").stdout)
    assert sums["pages"] == [{"page_size": PAGE, "count": 512**4}]


def test_a_bomb_is_listed_as_far_as_wanted(small):
    result = sevkvm(small, "tlb", "--cr3", hex(BOMB_GPA), "--limit", "70000")
    lines = result.stdout.splitlines()
    assert lines == [f"{n * PAGE:016x}: {BOMB_GPA:016x} ----A--UW" for n in range(70000)]
    assert result.stderr == "sevkvm: stopped after 70000 lines; there is more\n"


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_nobody_reads_and_somebody_interrupts(small, signum, status):
    process, reader = unread(small, "tlb", "--cr3", hex(BOMB_GPA), "--hold", "3600")
    process.send_signal(signum)
    _, err = process.communicate(timeout=PATIENCE)
    os.close(reader)
    assert process.returncode == status
    assert err.endswith(f"sevkvm: stopped by {signum.name}\n".encode())
    assert b"Traceback" not in err
    assert stopped_threads(small.pid) == 0
    assert small.hmp("info status").startswith("VM status")


def test_a_slow_reader_gets_all_of_it(small):
    limit = 800_000  # 36 MB: more than the queue takes
    args = ("tlb", "--cr3", hex(TREE_GPA), "--limit", str(limit), "--hold", "3600")
    process, reader = unread(small, *args)
    with open(reader, "rb") as rest:
        lines = rest.read().count(b"\n")
    err = process.stderr.read().decode()
    process.stderr.close()
    assert (process.wait(PATIENCE), lines) == (0, limit)
    assert "on the tables were read while the guest ran: nobody took the output fast enough\n" in err
    assert f"sevkvm: stopped after {limit} lines; there is more\n" in err


@pytest.mark.parametrize("args", [("tlb",), ("tlb", "--csv"), ("mem", "--json")])
def test_a_reader_that_leaves(small, args):
    process = child(small, *args, "--cr3", hex(BOMB_GPA), stdout=subprocess.PIPE)
    assert process.stdout.read(1)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    # all of `mem` may have gone into the pipe before its reader left
    assert process.wait(PATIENCE) in ((1,) if args[0] == "tlb" else (0, 1))
    assert b"Traceback" not in err
    assert b"error" not in err
    assert stopped_threads(small.pid) == 0


def test_a_full_disk(small):
    with open("/dev/full", "wb") as full:
        process = child(small, "tlb", "--cr3", hex(BOMB_GPA), stdout=full)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert b"No space left" in err
    assert b"Traceback" not in err


def test_a_vmm_that_dies_in_the_middle(small):
    process, reader = unread(small, "tlb", "--cr3", hex(TREE_GPA))
    os.kill(small.pid, signal.SIGKILL)
    with open(reader, "rb") as rest:
        text = rest.read()
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert text.endswith(b"UW\n")  # what was listed is whole
    assert b"sevkvm: error: " in err
    assert b"Traceback" not in err
