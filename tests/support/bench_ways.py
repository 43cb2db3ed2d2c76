"""What the ways in cost, on one encrypted guest: the section ``ways`` of scripts/bench.

On a pretend host, whose cipher takes most of the time; on hardware it is the secure processor. A read without SEV is
one of the same bytes as they are stored. The measurements are made in a process on the pretend host, in turns.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sevkvm.attach.entry import Way, enter
from sevkvm.attach.options import AttachOptions, Needs
from sevkvm.attach.told import MonitorFacts
from sevkvm.host import discovery
from sevkvm.memory.guest import GuestMemory
from sevkvm.memory.hva import HvaSource
from sevkvm.memory.sevdbg import SevDbgSource
from sevkvm.memory.source import Slot, SlotMap
from sevkvm.shim.supervisor import SevHost
from tests.support.lab import SUBPROCESS_ENVIRONMENT, lab_guest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.bench_paging import Report

MIB = 1 << 20
_PAGE = 4096
_PAGES = 200  # one by one
_WAYS = ("deputy", "mirror")


def ways(report: Report, runs: int, nbytes: int) -> None:
    """Add the rows."""
    # the lab's low RAM is three quarters of its memory
    with (
        SevHost() as host,
        lab_guest(policy=0, memory_mib=nbytes // MIB * 2, backing="memfd", popen=host.popen) as guest,
    ):
        asked = {
            "pid": guest.pid,
            "vm_fd": guest.vm_fd,
            "slots": [[slot.gpa, slot.nbytes, slot.hva] for slot in guest.slots],
            "nbytes": min(nbytes, guest.slots[0].nbytes),
            "runs": runs,
        }
        process = host.popen(
            [sys.executable, "-m", "tests.support.bench_ways", json.dumps(asked)],
            stdout=subprocess.PIPE,
            text=True,
            env=SUBPROCESS_ENVIRONMENT,
        )
        out, _ = process.communicate(timeout=600)
    if process.returncode:
        raise RuntimeError(f"measuring failed with exit status {process.returncode}")
    for what, unit, note in (
        ("attach and leave again", "ms", ""),
        ("one page decrypted", "us", ""),
        ("one page read without SEV", "us", ""),
        ("all decrypted", "MiB/s", "the pretend cipher"),
        ("all read without SEV", "MiB/s", ""),
    ):
        for way in _WAYS:
            report(f"{what}, {way}", json.loads(out)[way][what], unit, note)


class _Measured:
    """One way in, measured again and again; ``samples`` by what."""

    def __init__(self, via: str, asked: dict[str, Any]) -> None:
        self._via = via
        self._asked = asked
        self._vm = discovery.resolve(asked["pid"], asked["vm_fd"])
        self._slots = SlotMap(Slot(*each) for each in asked["slots"])
        self.samples: dict[str, list[float]] = {}

    @contextmanager
    def _entered(self) -> Iterator[Way]:
        way = enter(self._vm, MonitorFacts(), AttachOptions(via=self._via), Needs.STATUS)
        try:
            way.show(self._slots, print)
            yield way
        finally:
            way.close()

    def measure(self) -> None:
        """One turn."""
        began = time.perf_counter()
        with self._entered():
            pass
        self._note("attach and leave again", (time.perf_counter() - began) * 1e3)
        with self._entered() as way:
            assert way.vm is not None
            source, plain = SevDbgSource(way.vm), HvaSource(way.port)
            hva = self._slots.slots[0].hva
            page = memoryview(bytearray(_PAGE))
            self._note("one page decrypted", self._each(lambda at: source.readinto(at, hva + at, page)))
            self._note("one page read without SEV", self._each(lambda at: plain.readinto(at, hva + at, page)))
            memory = GuestMemory(self._slots, plain, source)
            self._note("all decrypted", self._all(memory, private=True))
            self._note("all read without SEV", self._all(memory, private=False))

    def _each(self, read: Callable[[int], int]) -> float:
        """Microseconds a page."""
        began = time.perf_counter()
        for number in range(_PAGES):
            assert read(number * _PAGE) == _PAGE
        return (time.perf_counter() - began) / _PAGES * 1e6

    def _all(self, memory: GuestMemory, *, private: bool) -> float:
        """MiB/s, in the pieces in which a dump reads."""
        nbytes, piece = self._asked["nbytes"], memory.chunk_nbytes
        buffer = memoryview(bytearray(piece))
        began = time.perf_counter()
        for gpa in range(0, nbytes, piece):
            want = min(piece, nbytes - gpa)
            assert memory.readinto(gpa, private, buffer[:want], nbytes - gpa - want) == want
        return nbytes / MIB / (time.perf_counter() - began)

    def _note(self, what: str, value: float) -> None:
        self.samples.setdefault(what, []).append(value)


def main() -> None:
    """In the process on the pretend host; the first turn warms up."""
    asked = json.loads(sys.argv[1])
    measured = {via: _Measured(via, asked) for via in _WAYS}
    for turn in range(asked["runs"] + 1):
        for each in measured.values():
            if turn == 1:
                each.samples.clear()
            each.measure()
    print(json.dumps({via: each.samples for via, each in measured.items()}))


if __name__ == "__main__":
    main()
