"""What dumps cost against QEMU's own and makedumpfile's, of one plain Linux: the section ``formats`` of scripts/bench.

Time, processor time, size, memory, and for how long the guest stood still. Ratios hold within one run only.
"""

from __future__ import annotations

import resource
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Protocol

from sevkvm.abi import lzo
from sevkvm.doctor.machine import has_library
from sevkvm.lab.emulator import Machine
from sevkvm.lab.linux import plain_linux
from tests.support.qemu import QemuVmm
from tests.support.qemu_sealed import sealed_qemu
from tests.support.stopwatch import Stopwatch

MIB: Final = 1 << 20
# A process of its own, small, since a child's peak is at least what its parent had when it was made.
PEAK: Final = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
if done.returncode:
    sys.exit(done.stdout.decode())
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
"""


class Report(Protocol):
    """Adds a row to the table."""

    def __call__(self, what: str, samples: list[float], unit: str, note: str = "") -> None: ...


@dataclass
class Dump:
    """One way to dump the guest. ``argv``: of a program, or empty where QEMU does it by ``options``.

    against: whose time ours is compared with. of_file: what it reads is a dump, not the guest.
    """

    name: str
    argv: list[str] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)
    against: str = ""
    of_file: bool = False
    goal: str = ""
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    nbytes: int = 0
    blocks: int = 0  # of 512 bytes, on the disk


class DumpsBench:
    """``nbytes`` of RAM; files go to ``directory``, which should not be a disk."""

    def __init__(self, report: Report, runs: int, directory: Path, nbytes: int) -> None:
        self._report = report
        self._runs = runs
        self._out = directory / "dump"
        self._core = directory / "core"
        self._nbytes = nbytes

    def run(self) -> None:
        """All of it, on one guest."""
        with sealed_qemu(plain_linux(Machine(ram_nbytes=self._nbytes))) as vmm:
            dumps = self._dumps(vmm)
            # makedumpfile reads no guest but a file; QEMU's it does not open
            subprocess.run(self._ours(vmm, "elf", out=self._core), check=True, capture_output=True)
            for turn in range(self._runs + 1):  # in turns, so that a busy machine is busy for all
                for dump in dumps:
                    self._measure(vmm, dump, counts=turn > 0)  # the first warms up
            peaks = {dump.name: self._peak_mib(vmm, dump) for dump in dumps}
            stops, why_not = self._stops(vmm, dumps)
        rates = {dump.name: statistics.median(dump.seconds) for dump in dumps}
        for dump in dumps:
            note = "reads the file of sevkvm's elf" if dump.of_file else ""
            mib = self._nbytes / MIB
            self._report(dump.name, [mib / took for took in dump.seconds], "MiB/s", note)
            if dump.against:
                faster = rates[dump.against] / rates[dump.name]
                self._report(f"  against {dump.against}", [faster], "x", dump.goal)
            self._report("  CPU", dump.cpu, "s")
            self._report("  size", [dump.nbytes / MIB], "MiB", f"{dump.blocks * 512 / MIB:.0f} on the disk")
            self._report("  memory at its peak", [peaks[dump.name]], "MiB")
            if dump.name in stops:
                self._report("  the guest stood still", stops[dump.name], "ms")
        if why_not:
            raise RuntimeError(f"how long the guest stood still: {why_not}")

    def _dumps(self, vmm: QemuVmm) -> list[Dump]:
        known = vmm.execute("query-dump-guest-memory-capability")["formats"]
        dumps = [
            Dump("QEMU's elf of a Linux"),
            Dump("sevkvm's elf", self._ours(vmm, "elf"), against="QEMU's elf of a Linux", goal="goal: >= 1"),
        ]
        for name, ours in (
            ("zlib", True),
            ("lzo", has_library(lzo.NAME)),
            ("snappy", bool(find_spec("cramjam"))),
        ):
            if f"kdump-{name}" in known:
                dumps.append(Dump(f"QEMU's kdump-{name}", options={"format": f"kdump-{name}"}))
            if ours:
                against = dumps[-1].name if f"kdump-{name}" in known else ""
                argv = self._ours(vmm, "kdump", "--compress", name)
                dumps.append(Dump(f"sevkvm's kdump-{name}", argv, against=against, goal="goal: >= 1"))
        if find_spec("zstandard"):
            zlib = "QEMU's kdump-zlib"
            argv = self._ours(vmm, "kdump", "--compress", "zstd")
            dumps.append(Dump("sevkvm's kdump-zstd", argv, against=zlib, goal="goal: > 1, and smaller"))
        argv = self._ours(vmm, "kdump", "--exclude", "31")
        dumps.append(Dump("sevkvm's kdump-zlib, level 31", argv))
        if program := shutil.which("makedumpfile"):
            files = [str(self._core), str(self._out)]
            for name, options in {"zlib": ["-c"], "zlib, level 31": ["-c", "-d", "31"]}.items():
                argv = [program, "-f", *options, *files]
                dumps.append(Dump(f"makedumpfile's kdump-{name}", argv, of_file=True))
                ours = next(dump for dump in dumps if dump.name == f"sevkvm's kdump-{name}")
                ours.against = ours.against or f"makedumpfile's kdump-{name}"
        return dumps

    def _ours(self, vmm: QemuVmm, file_format: str, *options: str, out: Path | None = None) -> list[str]:
        guest = ["--pid", str(vmm.pid), "--qmp", vmm.qmp_path]
        argv = [sys.executable, "-m", "sevkvm", "dump", *guest, "--format", file_format, *options]
        return [*argv, "--force", "-o", str(out or self._out)]

    def _measure(self, vmm: QemuVmm, dump: Dump, *, counts: bool) -> None:
        cpu, began = cpu_seconds(vmm.pid), time.perf_counter()
        self._make(vmm, dump)
        if counts:
            dump.seconds.append(time.perf_counter() - began)
            dump.cpu.append(cpu_seconds(vmm.pid) - cpu)
        info = self._out.stat()
        dump.nbytes, dump.blocks = info.st_size, info.st_blocks

    def _make(self, vmm: QemuVmm, dump: Dump) -> None:
        if dump.argv:
            done = subprocess.run(dump.argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=300)
            if done.returncode:
                raise RuntimeError(f"{dump.name}: {(done.stderr or done.stdout).decode(errors='replace')}")
            return
        vmm.execute("dump-guest-memory", paging=False, protocol=f"file:{self._out}", **dump.options)

    def _peak_mib(self, vmm: QemuVmm, dump: Dump) -> float:
        """Of the program; of QEMU, by how much it grew meanwhile."""
        if dump.argv:
            argv = [sys.executable, "-c", PEAK, *dump.argv]
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
            return float(done.stdout) if not done.returncode else float("nan")
        Path(f"/proc/{vmm.pid}/clear_refs").write_text("5")  # the peak begins anew: proc(5)
        before = _resident_mib(vmm.pid, "VmRSS")
        self._make(vmm, dump)
        return _resident_mib(vmm.pid, "VmHWM") - before

    def _stops(self, vmm: QemuVmm, dumps: list[Dump]) -> tuple[dict[str, list[float]], str]:
        """Milliseconds by name, as the guest itself saw them; or why there are none."""
        found: dict[str, list[float]] = {}
        try:
            watch = Stopwatch(vmm)
        except RuntimeError as error:
            return {}, str(error)
        for dump in dumps:
            if not dump.of_file:
                found[dump.name] = [
                    watch.longest_ms(lambda dump=dump: self._make(vmm, dump)) for _ in range(self._runs)
                ]
        return found, ""


def cpu_seconds(pid: int) -> float:
    """User and system time of that process, and of all that we started and that has ended."""
    ours = resource.getrusage(resource.RUSAGE_CHILDREN)
    # the clock of another process: clock_getcpuclockid(3)
    return ours.ru_utime + ours.ru_stime + time.clock_gettime(~pid << 3 | 2)


def _resident_mib(pid: int, name: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024
