"""What the pretend host was asked: one record a SEV ioctl, counters, and a JSON line a record on request."""

from __future__ import annotations

import errno
import json
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Final, TextIO

from sevkvm.abi.sev import SEV_RET_NO_FW_CALL, fw_status_name

_KEPT: Final = 65536


@dataclass
class Record:
    """One command. ``errno`` is 0 on success; ``status`` the ``error`` field as it went back to the caller.

    ``time`` is seconds since the epoch when it was finished, ``vm`` the VM's number on this host, 0 for
    ``/dev/sev``; ``pages`` counts the page-bounded pieces that the firmware processed; ``notes`` tell what a kernel
    would have done wrong without a word.
    """

    command: str
    pid: int
    vm: int
    args: dict[str, int] = field(default_factory=dict)
    pages: int = 0
    errno: int = 0
    status: int | None = None
    time: float = 0.0
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Remember a silent mistake of the kernel's; once, however many pages it hits."""
        if text not in self.notes:
            self.notes.append(text)

    @property
    def errno_name(self) -> str:
        """``EIO`` and the like; empty on success."""
        return errno.errorcode.get(self.errno, str(self.errno)) if self.errno else ""

    @property
    def status_name(self) -> str:
        """The firmware's word; empty where the firmware was not reached."""
        reached = self.status is not None and self.status != SEV_RET_NO_FW_CALL
        return fw_status_name(self.status or 0) if reached else ""


class CommandLog:
    """The last records, counters over all of them, and the file they are written to as they come."""

    def __init__(self, file: TextIO | None = None) -> None:
        self.records: deque[Record] = deque(maxlen=_KEPT)
        self.counts: Counter[str] = Counter()
        self._file = file

    def add(self, record: Record) -> None:
        """Take a finished record."""
        record.time = time.time()
        self.records.append(record)
        self.counts[record.command] += 1
        if self._file:
            line = asdict(record) | {"errno": record.errno_name, "status": record.status_name}
            self._write(line)

    def finish(self, firmware_counts: Mapping[str, int]) -> None:
        """The last line of the file: how often each ioctl command and each firmware command was seen."""
        if self._file:
            self._write({"counts": dict(self.counts), "firmware_counts": dict(firmware_counts)})

    def _write(self, line: Mapping[str, object]) -> None:
        assert self._file
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def names(self) -> list[str]:
        """The commands of the kept records, in order."""
        return [record.command for record in self.records]
