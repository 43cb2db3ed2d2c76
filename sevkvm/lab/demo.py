"""The guest of the demonstration and of most tests: small, and every byte of it known.

Guest-physical layout (the rest is ``image.pattern``, private)::

    0x000001000  GDT                       0x000102000  user code       read-only, executable
    0x000002000  IDT: all zero             0x000103000  user stack      writable, not executable
    0x000010000  page tables               0x000104000  shared page     a message in plain sight
    0x000100000  the secret                0x000105000  counters        one for each vCPU
    0x000101000  random bytes              0x000200000  kernel text     2 MiB, read-only
    0x0ffff0000  ROM, 64 KiB               last 2 MiB of low RAM        shared buffers
                                           0x100000000  high RAM: a quarter of all

A guest that is alive (pulse.py) counts in the counters and flips words at the end of the shared page.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass
from typing import Final

from sevkvm import errors
from sevkvm.abi import x86
from sevkvm.lab import pulse
from sevkvm.lab.expected import Miss
from sevkvm.lab.image import Image, Landmark, Region, Slot, tile
from sevkvm.lab.tables import TableBuilder
from sevkvm.lab.vcpus import GDT, long_mode_vcpu

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

SECRET: Final = b"sevkvm lab: the secret is 'a plain text in an encrypted guest'.\n"
SHARED_MESSAGE: Final = b"sevkvm lab: this page is shared with the host, on purpose.\n"
BANNER: Final = b"sevkvm lab guest, built in code\n"
RANDOM_SEED: Final = 20
PCID: Final = 0x005

DIRECT_GVA: Final = 0xFFFF_8880_0000_0000
DIRECT_LA57_GVA: Final = 0xFF11_0000_0000_0000
GIANT_GVA: Final = 0xFFFF_A000_0000_0000
TEXT_GVA: Final = 0xFFFF_FFFF_8100_0000
ROM_GVA: Final = 0xFFFF_FFFF_FF20_0000
APIC_GVA: Final = 0xFFFF_FFFF_FF5F_C000
USER_TEXT_GVA: Final = 0x0000_0000_0040_0000
USER_STACK_GVA: Final = 0x0000_7FFF_FFFF_E000

GDT_GPA, IDT_GPA = 0x1000, 0x2000
TABLES_GPA, TABLES_END = 0x10000, 0x90000
SECRET_GPA, RANDOM_GPA = 0x100000, 0x101000
USER_TEXT_GPA, USER_STACK_GPA, SHARED_GPA = 0x102000, 0x103000, 0x104000
COUNTERS_GPA = 0x105000
FLAGS_GPA = SHARED_GPA + x86.PAGE_NBYTES - pulse.VCPUS_MAX * pulse.WORD_NBYTES
TEXT_GPA = 0x200000
PULSE_OFFSET = x86.PAGE_NBYTES  # in the text
ROM_GPA, ROM_NBYTES = 0xFFFF_0000, 64 * KIB
HIGH_GPA = 4 * GIB
APIC_GPA = 0xFEE0_0000
LOW_MAX = 3 * GIB
MEMORY_MIN, MEMORY_MAX = 8 * MIB, 64 * GIB

# cli; hlt; jmp back to the hlt
_IDLE_LOOP = bytes.fromhex("fa f4 eb fd")


@dataclass(frozen=True)
class DemoOptions:
    """``memory_nbytes``: RAM of both slots, a multiple of 2 MiB. ``cbit_pos`` None: a plain guest.

    ``alive``: vCPUs begin in the program of pulse.py, not in the idle loop.
    """

    memory_nbytes: int = 64 * MIB
    cbit_pos: int | None = None
    levels: int = 4
    pcid: bool = False
    vcpus: int = 1
    alive: bool = False


def _page(text: bytes, nbytes: int = x86.PAGE_NBYTES) -> bytes:
    """The text, then dots to the end of the page."""
    return text.ljust(nbytes, b".")


def _slots(memory_nbytes: int) -> tuple[Slot, Slot, Slot]:
    low = min(memory_nbytes * 3 // 4 // (2 * MIB) * (2 * MIB), LOW_MAX)
    return (
        Slot(0, low, "ram.low"),
        Slot(ROM_GPA, ROM_NBYTES, "rom", readonly=True),
        Slot(HIGH_GPA, memory_nbytes - low, "ram.high"),
    )


def _contents(buffers_gpa: int) -> list[Region]:
    text = (_IDLE_LOOP.ljust(64, b"\x90") + BANNER).ljust(x86.PAGE_NBYTES, b"\xcc")
    program = pulse.program(DIRECT_GVA + COUNTERS_GPA, DIRECT_GVA + FLAGS_GPA)
    private = [
        (GDT_GPA, GDT.ljust(x86.PAGE_NBYTES, b"\0")),
        (IDT_GPA, bytes(x86.PAGE_NBYTES)),
        (SECRET_GPA, _page(SECRET)),
        (RANDOM_GPA, random.Random(RANDOM_SEED).randbytes(x86.PAGE_NBYTES)),
        (USER_TEXT_GPA, _page(b"\xeb\xfe user code\n")),
        (USER_STACK_GPA, struct.pack("<512Q", *range(512))),
        (COUNTERS_GPA, bytes(x86.PAGE_NBYTES)),
        (TEXT_GPA, text),
        (TEXT_GPA + PULSE_OFFSET, program.ljust(x86.PAGE_NBYTES, b"\xcc")),
    ]
    shared = [
        (SHARED_GPA, _page(SHARED_MESSAGE)),
        (buffers_gpa, _page(b"shared buffers\n") * 512),
    ]
    return [Region(gpa, len(data), True, data) for gpa, data in private] + [
        Region(gpa, len(data), False, data) for gpa, data in shared
    ]


def _map_all(tables: TableBuilder, slots: tuple[Slot, Slot, Slot], buffers_gpa: int) -> None:
    low, _, high = slots
    for gpa in range(0, 2 * MIB, x86.PAGE_NBYTES):  # small pages: one of them is shared
        tables.map(DIRECT_GVA + gpa, gpa, private=gpa != SHARED_GPA)
    for slot, start in ((low, 2 * MIB), (high, high.gpa)):
        for gpa in range(start, slot.end, 2 * MIB):
            tables.map(DIRECT_GVA + gpa, gpa, 2 * MIB, private=gpa != buffers_gpa)
    # Most of this page lies behind the end of high RAM: mapped, but no memory there.
    tables.map(GIANT_GVA, HIGH_GPA, GIB)
    tables.map(TEXT_GVA, TEXT_GPA, 2 * MIB, writable=False, nx=False, more=x86.PTE_G)
    for offset in range(0, ROM_NBYTES, x86.PAGE_NBYTES):
        tables.map(ROM_GVA + offset, ROM_GPA + offset)
    tables.restrict(ROM_GVA, level=2, readonly=True)  # the leaves say writable
    tables.map(APIC_GVA, APIC_GPA, private=False, more=x86.PTE_PCD | x86.PTE_PWT)
    tables.map(USER_TEXT_GVA, USER_TEXT_GPA, writable=False, user=True, nx=False)
    tables.map(USER_STACK_GVA, USER_STACK_GPA, user=True, nx=False)
    tables.restrict(USER_STACK_GVA, level=3, nx=True)  # the leaf says executable
    if tables.levels == 5:
        tables.map(DIRECT_LA57_GVA, TEXT_GPA, 2 * MIB)


def demo_image(options: DemoOptions = DemoOptions()) -> Image:
    """Build the guest; UsageError for a size or a C-bit that it cannot have."""
    memory = options.memory_nbytes
    if memory % (2 * MIB) or not MEMORY_MIN <= memory <= MEMORY_MAX:
        raise errors.UsageError("guest memory must be a multiple of 2 MiB, from 8 MiB to 64 GiB")
    if options.cbit_pos is not None and not 37 <= options.cbit_pos < x86.MAX_PHYS_BIT:
        raise errors.UsageError(
            f"C-bit {options.cbit_pos} collides with guest memory or is no address bit",
            help="hardware has 47 or 51; the lab takes 37 to 51",
        )
    slots = _slots(memory)
    buffers_gpa = slots[0].end - 2 * MIB
    tables = TableBuilder(options.levels, TABLES_GPA, TABLES_END, options.cbit_pos)
    _map_all(tables, slots, buffers_gpa)
    table_pages = [Region(gpa, len(data), True, data) for gpa, data in tables.pages()]
    cr3 = tables.root_gpa | tables.cbit | (PCID if options.pcid else 0)
    vcpus = tuple(
        long_mode_vcpu(
            number,
            cr3=cr3,
            rip=TEXT_GVA + (PULSE_OFFSET if options.alive else 0),
            rsp=DIRECT_GVA + USER_STACK_GPA + x86.PAGE_NBYTES,
            gdt_gva=DIRECT_GVA + GDT_GPA,
            idt_gva=DIRECT_GVA + IDT_GPA,
            la57=options.levels == 5,
            pcide=options.pcid,
        )
        for number in range(options.vcpus)
    )
    return Image(
        slots=slots,
        regions=tile(slots, _contents(buffers_gpa) + table_pages),
        vcpus=vcpus,
        cbit_pos=options.cbit_pos,
        mappings=tuple(sorted(tables.mappings, key=lambda mapping: mapping.gva)),
        misses=(
            Miss(0xFFFF_EB00_0000_0000, level=4),
            Miss(DIRECT_GVA + 3 * GIB, level=3),
            Miss(TEXT_GVA - 2 * MIB, level=2),
            Miss(USER_TEXT_GVA + x86.PAGE_NBYTES, level=1),
        ),
        landmarks=(
            Landmark("secret", DIRECT_GVA + SECRET_GPA, SECRET_GPA, len(SECRET)),
            Landmark("random", DIRECT_GVA + RANDOM_GPA, RANDOM_GPA, x86.PAGE_NBYTES),
            Landmark("shared", DIRECT_GVA + SHARED_GPA, SHARED_GPA, len(SHARED_MESSAGE)),
            Landmark("counters", DIRECT_GVA + COUNTERS_GPA, COUNTERS_GPA, options.vcpus * pulse.WORD_NBYTES),
            Landmark("flags", DIRECT_GVA + FLAGS_GPA, FLAGS_GPA, options.vcpus * pulse.WORD_NBYTES),
            Landmark("text", TEXT_GVA, TEXT_GPA, x86.PAGE_NBYTES),
            Landmark("rom", ROM_GVA, ROM_GPA, ROM_NBYTES),
        ),
    )
