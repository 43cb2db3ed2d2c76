"""The program of a lab guest that is alive: it counts in a private page, flips a word of a shared one, and halts.

64-bit code, put together by hand from the AMD64 Architecture Programmer's Manual, volume 3. It needs no stack, no
interrupts and no devices. A burst of beats ends in ``hlt`` with interrupts off, which without an interrupt controller
in the kernel comes back to the VMM: it enters again for the next burst, or lets the guest rest.
"""

from __future__ import annotations

import struct
from typing import Final

BURST: Final = 1001  # beats; an odd number, so that the shared word differs from burst to burst
WORD_NBYTES: Final = 8  # of each vCPU in both pages
VCPUS_MAX: Final = 64


def program(counter_gva: int, flag_gva: int) -> bytes:
    """Code that may lie anywhere. vCPU n counts at ``counter_gva + 8n`` and flips at ``flag_gva + 8n``.

    RCX holds n in its bits 39:32 at first (vcpus.py).
    """
    setup = (
        b"\xfa"  # cli
        b"\x48\x89\xcb"  # mov rbx, rcx
        b"\x48\xc1\xeb\x20"  # shr rbx, 32
        b"\x0f\xb6\xdb"  # movzx ebx, bl
        + (b"\x48\xbf" + struct.pack("<Q", counter_gva))  # mov rdi, counter
        + b"\x48\x8d\x3c\xdf"  # lea rdi, [rdi + rbx * 8]
        + (b"\x48\xbe" + struct.pack("<Q", flag_gva))  # mov rsi, flag
        + b"\x48\x8d\x34\xde"  # lea rsi, [rsi + rbx * 8]
    )
    beat = (
        b"\xf0\x48\xff\x07"  # lock inc qword [rdi]
        b"\xf0\x48\xf7\x16"  # lock not qword [rsi]
        b"\xff\xc9"  # dec ecx
    )
    beats = beat + b"\x75" + _back(len(beat) + 2)  # jnz beat
    burst = b"\xb9" + struct.pack("<I", BURST) + beats + b"\xf4"  # mov ecx, BURST; the beats; hlt
    return setup + burst + b"\xeb" + _back(len(burst) + 2)  # jmp burst


def _back(nbytes: int) -> bytes:
    """The displacement of a short jump that ends so many bytes behind its target."""
    return struct.pack("<b", -nbytes)
