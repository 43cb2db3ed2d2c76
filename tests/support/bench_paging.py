"""What listing page tables costs: the section ``paging`` of scripts/bench. Ratios hold within one run only."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from tests.support.giant import GIB, PAGE_NBYTES, Giant, giant_vm

_IN_CACHE_NTABLES, _IN_MEMORY_NTABLES = 16, 16_384
_GIBS = (1, 4, 16, 64, 256, 1024)
_TLB_GIB = 16
_MORE = 10  # of what takes a millisecond
_MOST_RUNS_OF_A_TERABYTE = 3
# A process of its own, small, since a child's peak is at least what its parent had when it was made.
_MEASURE = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True)
wall, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""


class Report(Protocol):
    """Adds a row to the table."""

    def __call__(self, what: str, samples: list[float], unit: str, note: str = "") -> None: ...


def sevkvm(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "sevkvm", *arguments]


def _answer(argv: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=300)


class PagingBench:
    """The measurements, each a method that adds rows."""

    def __init__(self, report: Report, runs: int, directory: Path) -> None:
        self.report = report
        self.runs = max(runs, 5)
        self.directory = directory

    @property
    def parts(self) -> tuple[Callable[[], None], ...]:
        """All of them; each may fail on its own."""
        return self.linux_4_levels, self.linux_5_levels, self.commands, self.decoding, self.giant

    def _times(self, what: str, call: Callable[[], object], note: str = "", more: int = 1) -> float:
        """The median in ms of ``more`` times the runs; a first run is not counted."""
        call()
        samples = []
        for _ in range(self.runs * more):
            began = time.perf_counter()
            call()
            samples.append((time.perf_counter() - began) * 1e3)
        self.report(what, samples, "ms", note)
        return statistics.median(samples)

    # ---- a real Linux

    def linux_4_levels(self) -> None:
        """In QEMU on /dev/kvm: both lists, by QEMU's monitor, in this process, and by the whole program."""
        from sevkvm.attach import AttachOptions, open_guest
        from sevkvm.lab.linux import plain_linux
        from sevkvm.paging.listing import Listing
        from tests.support.qemu_sealed import sealed_qemu

        with sealed_qemu(plain_linux()) as vmm:
            where = ["--pid", str(vmm.pid), "--qmp", vmm.qmp_path]
            texts = {name: vmm.hmp(f"info {name}").encode() for name in ("tlb", "mem")}
            theirs = {
                name: self._times(
                    f"QEMU's info {name}, 4 levels",
                    lambda name=name: vmm.hmp(f"info {name}"),
                    lines(text),
                    more=_MORE,
                )
                for name, text in texts.items()
            }
            with open_guest(AttachOptions(pid=vmm.pid, qmp=vmm.qmp_path)) as guest:
                listing = Listing(guest.memory, guest.paging())
                calls = {"tlb": listing.leaves_text, "mem": listing.runs_text}
                ours = {
                    name: self._times(
                        f"  {name} in this process, attached",
                        lambda call=call: b"".join(call()),
                        same(b"".join(call()), texts[name]),
                        more=_MORE,
                    )
                    for name, call in calls.items()
                }
            goals = {"tlb": "goal: >= 5", "mem": ""}
            for name in ours:
                self.report(f"  {name}: faster than QEMU's", [theirs[name] / ours[name]], "x", goals[name])
            self.report("  mem: faster than our tlb", [ours["tlb"] / ours["mem"]], "x", "goal: >= 1")
            for name, text in texts.items():
                argv = sevkvm(name, *where)
                note = f"attach and start included; {same(_answer(argv).stdout, text)}"
                self._times(f"  sevkvm {name}", lambda argv=argv: _answer(argv), note)

    def linux_5_levels(self) -> None:
        """Under emulation, which cannot be attached to: RAM is read out of a file. QEMU's info mem takes minutes."""
        from sevkvm.lab.emulator import Machine
        from sevkvm.lab.linux import plain_linux
        from tests.support.emulated import emulated
        from tests.support.ours import form_of, our_mem, our_tlb

        machine = Machine(cpus=2, la57=True)
        linux = plain_linux(machine)
        sregs = linux.vcpus[0].sregs
        with emulated(ram_nbytes=machine.ram_nbytes, ram_file=linux.ram) as emulator:
            emulator.set_control(sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer)
            reader, form = emulator.reader(), form_of("5level", sregs.cr3)
            text = emulator.info_tlb()
            theirs = self._times("QEMU's info tlb, 5 levels", emulator.info_tlb, lines(text.encode()), _MORE)
            note = same(our_tlb(reader, form).encode(), text.encode())
            tlb = self._times("  tlb in this process", lambda: our_tlb(reader, form), note, _MORE)
            mem = self._times("  mem in this process", lambda: our_mem(reader, form), more=_MORE)
            self.report("  tlb: faster than QEMU's", [theirs / tlb], "x", "goal: >= 5")
            self.report("  mem: faster than our tlb", [tlb / mem], "x", "goal: >= 1")

    # ---- an encrypted one

    def commands(self) -> None:
        """Firmware commands of a Linux on the pretend SEV host, by the firmware's own count."""
        from sevkvm.lab.files import mapped
        from sevkvm.lab.linux import sealed_linux
        from sevkvm.shim.supervisor import SevHost
        from tests.support.qemu_sealed import sealed_qemu
        from tests.support.walker import table_pages

        linux = sealed_linux()
        cbit_pos = linux.seal.cbit_pos
        root = linux.vcpus[0].sregs.cr3 & 0x000F_FFFF_FFFF_F000 & ~(1 << cbit_pos)
        pages = table_pages(memoryview(mapped(linux.ram)), root, linux.seal.levels, cbit_pos)
        self.report("distinct table pages of an encrypted Linux", [len(pages)], "")
        with SevHost() as host, sealed_qemu(linux, popen=host.popen, sev_policy=0) as vmm:
            where = ["--pid", str(vmm.pid), "--qmp", vmm.qmp_path, "--cbit-pos", str(cbit_pos)]
            for name in ("tlb", "mem"):
                before = host.kernel.firmware.counts["DBG_DECRYPT"]
                _answer(sevkvm(name, *where))
                spent = host.kernel.firmware.counts["DBG_DECRYPT"] - before
                self.report(f"  firmware commands of sevkvm {name}", [spent], "", "goal: as many")
                self._times(f"  sevkvm {name}", lambda name=name: _answer(sevkvm(name, *where)))

    # ---- decoding

    def decoding(self) -> None:
        """Entries a second in C, beside 64-bit words added up, of the same page tables."""
        from tests.support.build import CSRC, compile_program

        sources = sorted(path.name for path in CSRC.glob("sk_*.c"))
        program = compile_program("bench_walk", self.directory, *sources)
        ways = {
            "sum": "words added up",
            "decode": "  decoded",
            "list": "  listed as runs, from tables in memory",
        }
        for ntables, place in ((_IN_CACHE_NTABLES, "in cache"), (_IN_MEMORY_NTABLES, "in memory")):
            for line in _answer([str(program), str(ntables), str(self.runs)]).stdout.decode().splitlines():
                kind, way, nentries, *times = line.split()
                if way == "list" and ntables == _IN_CACHE_NTABLES:
                    continue  # it would be the time that setting up takes
                speeds = [int(nentries) * 1e3 / int(ns) for ns in times]
                what = f"tables {place}, {kind}: {ways[way]}" if way == "sum" else ways[way]
                self.report(what, speeds, "M/s", "goal: >= 300" if way == "decode" else "")

    # ---- up to a terabyte

    def giant(self) -> None:
        """The whole program on a VM with up to 1 TiB mapped by 4 KiB pages; what it prints is thrown away."""
        gibs = [gib for gib in _GIBS if _fits(Giant(gib * GIB))]
        if not gibs:
            raise RuntimeError("no memory for a VM")
        for step, kind in ((1, "contiguous"), (8, "every 8th page")):
            giant = Giant(gibs[-1] * GIB, step)
            with giant_vm(giant) as where:
                for gib in gibs if step == 1 else gibs[-1:]:
                    note = f"{Giant(gib * GIB, step).ntables} tables, {Giant(gib * GIB, step).nruns} lines"
                    self._whole(f"mem of {gib} GiB, {kind}", "mem", where, gib, note)
                if _TLB_GIB in gibs and step == 1:
                    note = f"{Giant(_TLB_GIB * GIB).npages} lines"
                    self._whole(f"tlb of {_TLB_GIB} GiB, {kind}", "tlb", where, _TLB_GIB, note)
        if gibs != list(_GIBS):
            raise RuntimeError(f"no memory for the page tables of more than {gibs[-1]} GiB")

    def _whole(self, what: str, name: str, where: Sequence[str], gib: int, note: str) -> None:
        argv = [sys.executable, "-c", _MEASURE, *sevkvm(name, *where, f"0:+{gib}G")]
        runs = min(self.runs, _MOST_RUNS_OF_A_TERABYTE) if gib > 64 else self.runs
        walls, cpus, peaks = zip(*(json.loads(_answer(argv).stdout) for _ in range(runs)), strict=True)
        goals = ("; goal: < 10", "goal: < 200") if gib == _GIBS[-1] else ("", "")
        self.report(what, list(walls), "s", note + goals[0])
        self.report("  of which on a processor", list(cpus), "s")
        self.report("  peak of its memory", list(peaks), "MiB", goals[1])


def lines(text: bytes) -> str:
    return f"{text.count(10)} lines"


def same(ours: bytes, theirs: bytes) -> str:
    return "the same text" if ours == theirs else "THE TEXT DIFFERS"


def _fits(giant: Giant) -> bool:
    """May its tables take memory here?"""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 2 * giant.ntables * PAGE_NBYTES < free
