"""What the lab's Linux printed of itself before it was stopped: readers of its dump must find the same."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sevkvm.lab.sealed import SealedLinux

_PROCESS = re.compile(r" *(\d+) \S+ +(.+)")
_LOG_LINE = re.compile(r"\[ *\d+\.\d{6}\] ")
_COMM_NBYTES = 15


@dataclass(frozen=True)
class Told:
    """``processes``: comm by pid, less kernel workers, which come and go. ``log``: the kernel's last lines."""

    processes: dict[int, str]
    log: tuple[str, ...]
    release: str
    version: str
    nodename: str

    def missing_processes(self, found: dict[int, str]) -> dict[int, str]:
        """Those that ``found`` (comm by pid) lacks or names otherwise."""
        return {pid: comm for pid, comm in self.processes.items() if found.get(pid) != comm}

    def missing_log(self, found: str) -> list[str]:
        """Lines that are not in ``found``, where lines of a record after its first may lack the time."""
        lines = {line.rstrip() for line in found.splitlines()}
        later = {line.strip() for line in lines if not _LOG_LINE.match(line)}
        return [
            line for line in self.log if line not in lines and _LOG_LINE.sub("", line).strip() not in later
        ]


def told_by(linux: SealedLinux) -> Told:
    """From its console."""
    lines = linux.plain.console.splitlines()
    uname = next(line for line in lines if line.startswith("Linux "))
    _, nodename, release = uname.split()[:3]
    start = next(number for number, line in enumerate(lines) if line.startswith("PID "))
    processes = {}
    for line in lines[start + 1 :]:
        match = _PROCESS.fullmatch(line)
        if match is None:
            break
        comm = _comm(match[2])
        if not comm.startswith("kworker/") and not match[2].endswith("busybox ps"):
            processes[int(match[1])] = comm
    log = tuple(line.rstrip() for line in lines[start:] if _LOG_LINE.match(line))
    assert len(processes) > 20
    assert len(log) == 20
    version = uname.partition(release + " ")[2].partition(" x86_64")[0]
    return Told(processes, log, release, version, nodename)


def _comm(shown: str) -> str:
    """From what busybox's ps shows: ``[kthread]``, ``{comm} command line``, or a command line."""
    if shown[0] in "[{":
        return re.split(r"[\]}]", shown[1:])[0][:_COMM_NBYTES]
    return shown.split()[0].rpartition("/")[2][:_COMM_NBYTES]
