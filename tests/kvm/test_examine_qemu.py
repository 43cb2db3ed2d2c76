"""x and xp, character for character, against the monitor of a running QEMU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sevkvm.monitor.examine import examine, parse_format
from tests.support.qemu import QemuVmm, qemu, require_kvm_qemu

pytestmark = pytest.mark.kvm

RAM_NBYTES = 64 << 20
BASE = 0x100000
PAGE = 4096
# Every byte value, then the values whose sign or quoting matters.
DATA = bytes(range(256)) + bytes([0xFF, 0xFE, 0x80, 0, 10, 13, 9, 92, 39, 34, 127, 128]) * 64


@pytest.fixture(scope="module")
def vmm() -> Iterator[QemuVmm]:
    require_kvm_qemu()
    with qemu(ram="64M", machine="pc") as running:
        hva = running.gpa2hva(BASE)
        with Path(f"/proc/{running.pid}/mem").open("r+b", buffering=0) as memory:
            memory.seek(hva)
            memory.write(DATA)
        yield running


def read(address: int, nbytes: int) -> bytes:
    """What the guest has, by what was written: the pattern, zeros up to the end of RAM."""
    if not BASE <= address < RAM_NBYTES:
        return b""
    offset = address - BASE
    return DATA[offset : offset + nbytes].ljust(min(nbytes, RAM_NBYTES - address), b"\0")


def ours(text: str, address: int) -> str:
    return "".join(f"{line}\n" for line in examine(read, parse_format(text), address))


@pytest.mark.parametrize("command", ["x", "xp"])
@pytest.mark.parametrize("size", "bhwg")
@pytest.mark.parametrize("letter", "xduoc")
def test_every_format_and_size(vmm, command, size, letter):
    for count in (0, 1, 2, 3, 7, 8, 9, 16, 17, 64, 100):
        text = f"/{count}{letter}{size}"
        for address in (BASE, BASE + 3, BASE + 0xFB, BASE + len(DATA) - 5):
            assert ours(text, address) == vmm.hmp(f"{command} {text} 0x{address:x}"), (text, hex(address))


@pytest.mark.parametrize("text", ["/2xbw", "/2xwd", "/2Lx", "/3gdx", "/4hc"])
def test_letters_in_any_order(vmm, text):
    assert ours(text, BASE) == vmm.hmp(f"xp {text} 0x{BASE:x}")


@pytest.mark.parametrize("text", ["/20xb", "/16ub", "/8xh", "/4xw", "/2dg", "/9xg", "/40cb"])
@pytest.mark.parametrize("before_end", [4, 8, 12, 16, 20, 40])
def test_the_end_of_ram(vmm, text, before_end):
    address = RAM_NBYTES - before_end
    assert ours(text, address) == vmm.hmp(f"xp {text} 0x{address:x}")


@pytest.mark.parametrize("text", ["/-1x", "/2z", "/x/", "/0x10x", "/2l", "/2X", "/2a"])
def test_what_we_refuse_qemu_refuses(vmm, text):
    assert vmm.hmp(f"xp {text} 0").startswith("invalid char in format")
