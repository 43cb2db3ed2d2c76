"""Debian's gdb debugs a real Linux that runs: QEMU's stub in front of which we stand runs it, memory is read by us.

What is typed on the guest's console goes through its terminal driver, where gdb waits for it, and comes back as the
driver's echo: that is how the guest shows what it makes of memory that gdb changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.emulatedgdb import MonitorVcpu, serving
from tests.support.gdb import gdb, require_gdb
from tests.support.livelinux import LiveLinux, live_linux
from tests.support.readers.symbols import require_vmlinux

pytestmark = pytest.mark.kvm


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[LiveLinux]:
    require_gdb()
    with live_linux(tmp_path) as guest:
        yield guest


def between(text: str, first: str, last: str) -> str:
    """What gdb said from one ``echo`` to the next."""
    return text.partition(f"<{first}>")[2].partition(f"<{last}>")[0]


def test_a_kernel_function_from_break_to_detach(guest: LiveLinux, tmp_path: Path) -> None:
    vmlinux = require_vmlinux(guest.release)
    guest.type(b"before\n")
    guest.wait_for(b"before\r\nbefore\r\n")  # the echo, and what `cat` makes of the line
    steps = {
        "look": ["x/s linux_banner", "print/x $cr3"],
        "hit": ["break n_tty_receive_buf2", f"shell printf a > {guest.typed}", "continue"],
        "bt": ["bt"],
        "memory": ["print *cp", "print count", "set var *(char *)cp = 'Z'", "print *cp"],
        "step": ["print/x $rip", "step", "print/x $rip"],
        "stepi": ["stepi", "print/x $rip"],
        "finish": ["delete", "finish"],
        "watch": ["watch jiffies_64", "continue", "continue", "bt 1"],
        "leave": ["delete", "detach"],
    }
    commands = ["set remotetimeout 60", f"symbol-file {vmlinux}"]
    for name, lines in steps.items():
        commands += [f"echo <{name}>\\n", *lines]
    vcpus = [MonitorVcpu(guest.vmm)]
    with serving(guest.vmm, guest.slots, tmp_path, write=True, vcpus=vcpus) as target:
        text = gdb(target, *commands, "echo <end>\\n", timeout=200)
    said = {
        name: between(text, name, after) for name, after in zip(steps, [*list(steps)[1:], "end"], strict=True)
    }
    assert f'"Linux version {guest.release} ' in said["look"], text
    assert re.search(
        r"Breakpoint 1, n_tty_receive_buf2 \(tty=0x\w+, cp=0x\w+ \"a\".*, count=1\)", said["hit"]
    ), text
    callers = re.findall(r"^#\d+ +(?:0x\w+ in )?(\w+) \(", said["bt"], re.M)
    assert callers[:2] == ["n_tty_receive_buf2", "tty_port_default_receive_buf"], text
    assert "process_one_work worker_thread kthread ret_from_fork" in " ".join(callers), text
    assert re.findall(r"^\$\d+ = (.*)$", said["memory"], re.M) == ["97 'a'", "1", "90 'Z'"], text
    before, stepped = (int(value, 16) for value in re.findall(r"= (0x\w+)$", said["step"], re.M))
    (stepped_again,) = (int(value, 16) for value in re.findall(r"= (0x\w+)$", said["stepi"], re.M))
    assert before < stepped < stepped_again < before + 64, text
    assert re.search(r"^0x\w+ in tty_port_default_receive_buf \(.*p=0x\w+ \"Z\"", said["finish"], re.M), text
    assert re.search(r"Value returned is \$\d+ = 1$", said["finish"], re.M), text
    ticks = re.findall(r"Old value = (\d+)\nNew value = (\d+)$", said["watch"], re.M)
    assert len(ticks) == 2, text
    assert all(int(old) < int(new) for old, new in ticks)
    assert ticks[0][1] == ticks[1][0]
    assert re.search(r"^#0 .*\bkernel/time/", said["watch"], re.M), text
    assert "detached" in said["leave"]
    # the guest has acted on it: it echoes what gdb wrote in place of what was typed, and lives
    guest.wait_for(b"Z")
    guest.type(b"b\n")
    guest.wait_for(b"b\r\nZb\r\n")
    assert "VM status: running" in guest.vmm.hmp("info status")
