"""From an encrypted QEMU on the pretend SEV host to readers of the dump, by the command line, with no option."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevkvm.lab.initrd import KEEPERS
from sevkvm.lab.sealed import SealedLinux
from tests.support.linux import require_sealed_linux
from tests.support.qemu import require_kvm_qemu
from tests.support.qemu_sealed import sealed_qemu
from tests.support.readers.programs import (
    HERE,
    require_libkdumpfile,
    require_module,
    require_program,
    run,
)
from tests.support.readers.symbols import require_vmlinux
from tests.support.readers.told import Told, told_by
from tests.support.sevhost import sev_host

pytestmark = [pytest.mark.kvm, pytest.mark.sev]

FORMATS = ("elf", "kdump")


@pytest.fixture(scope="module")
def linux() -> SealedLinux:
    require_kvm_qemu()
    return require_sealed_linux()


@pytest.fixture(scope="module")
def told(linux: SealedLinux) -> Told:
    return told_by(linux)


@pytest.fixture(scope="module")
def dumps(linux: SealedLinux, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A file of each format, of one guest."""
    directory = tmp_path_factory.mktemp("dumps")
    paths = {name: directory / name for name in FORMATS}
    with sev_host() as host, sealed_qemu(linux, popen=host.popen, sev_policy=0) as vmm:
        for name, path in paths.items():
            argv = [sys.executable, "-m", "sevkvm", "dump", "--pid", str(vmm.pid), "--qmp", vmm.qmp_path]
            # CPUID of this processor cannot tell the C-bit: it has none
            argv += ["--cbit-pos", str(linux.seal.cbit_pos), "--format", name, "--json", "-o", str(path)]
            done = subprocess.run(argv, capture_output=True, timeout=120, check=False)
            assert done.returncode == 0, done.stderr.decode()
            summary = json.loads(done.stdout)
            assert (summary["cbit"], summary["cbit_fallback"], summary["cbit_unknown"]) == ("strip", None, [])
            assert summary["stripped_tables"] > 100
            assert summary["vmcoreinfo"] == told_by(linux).release
    yield paths
    for path in paths.values():
        path.unlink()


@pytest.mark.parametrize("name", FORMATS)
def test_drgn(dumps: dict[str, Path], told: Told, name: str) -> None:
    drgn = require_module("drgn")
    vmlinux = require_vmlinux(told.release)
    said = json.loads(
        run(drgn, "-q", "-c", dumps[name], "-s", vmlinux, HERE / "drgn_says.py").splitlines()[0]
    )
    assert told.missing_processes({int(pid): comm for pid, comm in said["processes"].items()}) == {}
    assert told.missing_log(said["log"]) == []
    assert said["secrets"] == {f"keeper-{keeper.name}": keeper.secret.decode() for keeper in KEEPERS}


@pytest.mark.parametrize("name", FORMATS)
def test_makedumpfile(dumps: dict[str, Path], told: Told, name: str, tmp_path: Path) -> None:
    makedumpfile = require_program("makedumpfile", "makedumpfile")
    run(makedumpfile, "--dump-dmesg", dumps[name], tmp_path / "log")
    assert told.missing_log((tmp_path / "log").read_text()) == []


@pytest.mark.parametrize("name", FORMATS)
def test_libkdumpfile(dumps: dict[str, Path], told: Told, name: str) -> None:
    python = require_libkdumpfile()
    said = json.loads(run(python, HERE / "kdumpfile_says.py", dumps[name], "{}", "0"))
    assert (said["release"], said["version"], said["nodename"]) == (told.release, told.version, told.nodename)
