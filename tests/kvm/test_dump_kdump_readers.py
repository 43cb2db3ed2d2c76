"""kdump files of a real Linux in an unmodified QEMU, by the command line, opened by libkdumpfile and makedumpfile."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevkvm.abi import lzo
from sevkvm.doctor.machine import has_library
from sevkvm.lab.sealed import PlainLinux
from tests.support.kdumpread import KdumpFile, dumped_pfns
from tests.support.libkdumpfile import digests, read_kdump
from tests.support.linux import require_sealed_linux
from tests.support.qemu import QemuVmm, require_kvm_qemu
from tests.support.qemu_sealed import sealed_qemu

pytestmark = pytest.mark.kvm
NEEDS = {"zlib": "zlib", "zstd": "zstandard", "snappy": "cramjam"}


@pytest.fixture(scope="module")
def linux() -> PlainLinux:
    require_kvm_qemu()
    return require_sealed_linux().plain


@pytest.fixture(scope="module")
def vmm(linux: PlainLinux) -> Iterator[QemuVmm]:
    with sealed_qemu(linux) as running:
        yield running


def sevkvm_dump(vmm: QemuVmm, *arguments: str) -> str:
    argv = [sys.executable, "-m", "sevkvm", "dump", "--pid", str(vmm.pid), "--qmp", vmm.qmp_path, *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def raw(vmm: QemuVmm, linux: PlainLinux, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A digest of each page of RAM, ROMs in between as QEMU shows them, from a raw dump."""
    path = tmp_path_factory.mktemp("raw") / "raw"
    sevkvm_dump(vmm, "--gpa", f"0:{linux.machine.ram_nbytes:#x}", "-o", str(path))
    return digests(path.read_bytes())


def require_codec(name: str) -> None:
    if name == "lzo" and not has_library(lzo.NAME):
        pytest.skip(f"no {lzo.NAME} (Debian: apt install {lzo.PACKAGE})")
    if name in NEEDS and not importlib.util.find_spec(NEEDS[name]):
        pytest.skip(f"no Python module {NEEDS[name]}")


@pytest.mark.parametrize("compress", ["zlib", "zstd", "snappy", "lzo"])
def test_libkdumpfile_reads_every_page_as_the_raw_dump_has_it(vmm, linux, raw, tmp_path, compress):
    require_codec(compress)
    path = tmp_path / "vmcore"
    sevkvm_dump(vmm, "--format", "kdump", "--compress", compress, "-o", str(path))
    found = read_kdump(path)
    holes = {pfn for pfn, page in enumerate(found["pages"]) if page is None}
    assert len(found["pages"]) == len(raw)
    assert all(theirs == ours for theirs, ours in zip(found["pages"], raw, strict=True) if theirs is not None)
    assert holes <= set(range(0xA0, 0x100))  # video memory, which is no RAM
    assert (found["format"], found["cpus"]) == ("diskdump", linux.machine.cpus)
    assert re.search(rf"Linux {found['node']} {re.escape(found['release'])} ", linux.console)


@pytest.mark.parametrize("compress", ["zlib", "lzo", "none"])
def test_makedumpfile_finds_the_kernels_log(vmm, linux, tmp_path, compress):
    if not shutil.which("makedumpfile"):
        pytest.skip("no makedumpfile")
    require_codec(compress)
    core, log = tmp_path / "vmcore", tmp_path / "dmesg"
    sevkvm_dump(vmm, "--format", "kdump", "--compress", compress, "-o", str(core))
    done = subprocess.run(
        ["makedumpfile", "--dump-dmesg", str(core), str(log)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    printed = re.findall(r"^\[ *[0-9.]+\] .+$", linux.console, re.M)
    assert len(printed) > 5
    lines = set(log.read_text().splitlines())
    assert [line for line in printed if line.rstrip() not in lines] == []


def test_makedumpfile_filters_it_again(vmm, tmp_path):
    if not shutil.which("makedumpfile"):
        pytest.skip("no makedumpfile")
    core, smaller = tmp_path / "vmcore", tmp_path / "smaller"
    sevkvm_dump(vmm, "--format", "kdump", "-o", str(core))
    done = subprocess.run(
        ["makedumpfile", "-c", "-d", "31", str(core), str(smaller)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert 0 < smaller.stat().st_size < core.stat().st_size


@pytest.mark.parametrize("level", ["cache", "cache-private", "user", "free", "31"])
def test_makedumpfile_leaves_out_the_same_pages(vmm, tmp_path, level):
    """Each of its levels by itself, and all together."""
    if not shutil.which("makedumpfile"):
        pytest.skip("no makedumpfile")
    full, ours, theirs = tmp_path / "full", tmp_path / "ours", tmp_path / "theirs"
    number = {"cache": "2", "cache-private": "4", "user": "8", "free": "16"}.get(level, level)
    sevkvm_dump(vmm, "--format", "kdump", "-o", str(full))
    sevkvm_dump(vmm, "--format", "kdump", "--exclude", level, "-o", str(ours))
    done = subprocess.run(
        ["makedumpfile", "-c", "-d", number, str(full), str(theirs)], capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    everything, kept = KdumpFile(full), KdumpFile(ours)
    assert kept.dumped == dumped_pfns(theirs)
    assert 0 < len(kept.dumped) < len(everything.dumped)
    assert all(page[0] == everything.pages[pfn][0] for pfn, page in kept.pages.items())


def test_a_pipe_and_virtual_addresses_are_refused_before_attaching(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "sevkvm", "dump", "--pid", "1", "--format", "kdump", "-o", "-"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "cannot go to a pipe" in done.stderr
    assert done.stdout == ""
