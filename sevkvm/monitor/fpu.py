"""The x87 and vector registers of ``info registers``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sevkvm.abi.kvm import Sregs
    from sevkvm.abi.kvmstate import Fpu, MoreState

_CR4_OSXSAVE: Final = 1 << 18
_XCR0_AVX: Final = 0b110  # SSE and YMM state


def fpu_lines(more: MoreState, sregs: Sregs, *, long: bool) -> Iterator[str]:
    """Nothing where the FPU is not told. 16 vector registers in 64-bit code, else 8."""
    fpu = more.fpu
    if fpu is None:
        return
    yield f"FCW={fpu.fcw:04x} FSW={fpu.fsw:04x} [ST={fpu.fsw >> 11 & 7}] FTW={fpu.ftwx:02x} MXCSR={fpu.mxcsr:08x}\n"
    cells = [f"FPR{number}={low:016x} {high:04x}" for number, (low, high) in enumerate(fpu.fpr)]
    yield from _pairs(cells)
    count = 16 if long else 8
    enabled = more.xcr0 is not None and more.xcr0 & _XCR0_AVX == _XCR0_AVX and sregs.cr4 & _CR4_OSXSAVE
    if enabled:
        for number in range(count):
            low, high = fpu.xmm[number], fpu.ymm_high[number]
            yield f"YMM{number:02}={high[1]:016x} {high[0]:016x} {low[1]:016x} {low[0]:016x}\n"
    else:
        yield from _pairs(_xmm(fpu, count))


def _xmm(fpu: Fpu, count: int) -> list[str]:
    return [f"XMM{number:02}={high:016x} {low:016x}" for number, (low, high) in enumerate(fpu.xmm[:count])]


def _pairs(cells: list[str]) -> Iterator[str]:
    for left, right in zip(cells[::2], cells[1::2], strict=True):
        yield f"{left} {right}\n"
