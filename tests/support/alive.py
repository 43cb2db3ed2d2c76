"""A lab guest that is alive (`sevkvm lab --alive`), seen from outside: counters that grow, words that flip."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from tests.support.lab import SUBPROCESS_ENVIRONMENT, LabGuest

# What the tests know of sevkvm/lab/pulse.py, by themselves: beats in a burst, where the program lies in the text.
BURST = 1001
ENTRY, HALTED = 0xFFFF_FFFF_8100_1000, 0xFFFF_FFFF_8100_1039
STILL = b"." * 8
FLIPPED = bytes(byte ^ 0xFF for byte in STILL)
_SECONDS = 60.0


def tool(guest: LabGuest, command: str, *words: str, popen: Callable[..., Any] = subprocess.Popen) -> Any:
    """What a command says of the guest in JSON."""
    argv = [sys.executable, "-m", "sevkvm", command, "--json", *guest.facts["arguments"], *words]
    process = popen(argv, stdout=subprocess.PIPE, env=SUBPROCESS_ENVIRONMENT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return json.loads(said)


def counters(guest: LabGuest, popen: Callable[..., Any] = subprocess.Popen) -> list[int]:
    """Of each vCPU, as sevkvm reads them at their virtual address: decrypted where the guest is encrypted."""
    mark = guest.image.landmark("counters")
    told = tool(guest, "x", f"/{mark.nbytes}xb", hex(mark.gva), popen=popen)
    return list(struct.unpack(f"<{mark.nbytes // 8}Q", bytes.fromhex(told["bytes"])))


def flags(guest: LabGuest) -> list[bytes]:
    """The words in the shared page, as the host sees them."""
    mark = guest.image.landmark("flags")
    seen = guest.host_bytes(mark.gpa, mark.nbytes)
    return [seen[at : at + 8] for at in range(0, mark.nbytes, 8)]


def wait_for(condition: Callable[[], bool]) -> None:
    """Until it holds; AssertionError if that takes very long."""
    deadline = time.monotonic() + _SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_it_moves(guest: LabGuest, popen: Callable[..., Any] = subprocess.Popen) -> None:
    """It counts where only the guest sees it, and shows the host a word that flips; its code is where it runs."""
    stored = guest.image.landmark("counters")
    before = guest.host_bytes(stored.gpa, 16)
    first = counters(guest, popen)
    wait_for(lambda: all(now > then for now, then in zip(counters(guest, popen), first, strict=True)))
    for index in range(len(first)):
        for wanted in (STILL, FLIPPED, STILL):
            wait_for(lambda index=index, wanted=wanted: flags(guest)[index] == wanted)
    assert guest.host_bytes(stored.gpa, 16) != before
    for vcpu in tool(guest, "regs", popen=popen):
        assert ENTRY < int(vcpu["rip"], 16) <= HALTED
