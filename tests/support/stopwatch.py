"""For how long a guest stands still, as it sees it itself: a loop of machine code looks for gaps in its own time.

    watch = Stopwatch(vmm)                 # a QEMU with a stopped Linux in it, which is lost for anything else
    watch.longest_ms(lambda: dump(vmm))    # the longest gap meanwhile

The vCPU never halts and takes no interrupt. A gap is also what the host's scheduler makes: on a busy machine a few ms.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from typing import Final

from sevkvm import native
from sevkvm.host.deputy import Deputy
from sevkvm.host.kvm import VcpuFd
from tests.support.qemu import QemuVmm

# QEMU may have the registers in its own hands, so none is set: rdi is a place below the stack.
# rbx: the time at the last look; [rdi]: the longest gap so far; [rdi + 8]: the time now
_CODE: Final = bytes.fromhex(
    "fa 488dbc2400ffffff 4883e7c0"  # cli; rdi = rsp - 256 & ~63
    "0f31 48c1e220 4809d0 4889c3"  # rdtsc; rbx = rdx:rax
    "0f31 48c1e220 4809d0"  # again: rdtsc; rax = rdx:rax
    "4889c1 4829d9 4889c3"  # rcx = rax - rbx; rbx = rax
    "48894708"  # [rdi + 8] = rax
    "483b0f 7603 48890f"  # if rcx > [rdi]: [rdi] = rcx
    "ebe0"  # again
)
_DATA_BELOW_STACK: Final = 256
_STARTED_SECONDS: Final = 20.0
_CALIBRATION_SECONDS: Final = 0.5


class Stopwatch:
    """Puts the loop where the first vCPU stands, and lets the guest run; RuntimeError if it does not."""

    def __init__(self, vmm: QemuVmm) -> None:
        self._pid = vmm.pid
        with Deputy(vmm.pid) as port:
            vcpu = VcpuFd(port, vmm.vcpu_fd(0), 0)
            regs = vcpu.get_regs()
            self._data_hva = _hva(vmm, regs.rsp - _DATA_BELOW_STACK & ~0x3F)
            port.write(_hva(vmm, regs.rip), _CODE)  # the kernel's text is mapped by large pages
            port.write(self._data_hva, bytes(16))
        vmm.execute("cont")
        deadline = time.monotonic() + _STARTED_SECONDS
        while not self._now():
            if time.monotonic() > deadline:
                raise RuntimeError(f"the guest's clock does not run: {vmm.hmp('info status').strip()}")
            time.sleep(0.01)
        began, ticks = time.perf_counter(), self._now()
        time.sleep(_CALIBRATION_SECONDS)
        self._ticks_a_ms = (self._now() - ticks) / (time.perf_counter() - began) / 1e3

    def longest_ms(self, call: Callable[[], object]) -> float:
        """The longest gap in the guest's time while ``call`` is at work."""
        native.write(self._pid, self._data_hva, bytes(8))
        call()
        time.sleep(0.01)  # the vCPU may only just have been let go
        (gap,) = struct.unpack("<Q", native.read(self._pid, self._data_hva, 8))
        return float(gap / self._ticks_a_ms)

    def _now(self) -> int:
        return int.from_bytes(native.read(self._pid, self._data_hva + 8, 8), "little")


def _hva(vmm: QemuVmm, gva: int) -> int:
    answer = vmm.hmp(f"gva2gpa {gva:#x}")
    return vmm.gpa2hva(int(answer.partition("gpa: ")[2], 16))
