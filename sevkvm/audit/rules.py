"""Every rule of the audit: what it means, what to do, what it needs to know. A table; ids are never used again."""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple


class Severity(str, Enum):
    """ERROR: a protection is missing. WARNING: probably wrong. NOTE: a fact. As SARIF names its levels."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"

    @property
    def rank(self) -> int:
        """Higher is worse."""
        return _RANKS[self]


_RANKS: Final = {Severity.ERROR: 2, Severity.WARNING: 1, Severity.NOTE: 0}


class Need(Enum):
    """What a rule cannot do without."""

    TABLES = "tables"
    LONG_MODE = "long mode"
    NX = "no-execute"
    CBIT = "C-bit"
    DIRECT_MAP = "direct map"
    REGISTERS = "registers"
    SWIOTLB = "swiotlb"


class Rule(NamedTuple):
    """``severity`` is what its findings have unless they say less; ``meaning`` and ``advice`` are sentences."""

    id: str
    name: str
    severity: Severity
    title: str
    meaning: str
    advice: str
    needs: tuple[Need, ...]


_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE
_NX, _LONG, _CBIT, _REGS = (Need.NX,), (Need.LONG_MODE,), (Need.CBIT,), (Need.REGISTERS,)

KERNEL_WX = Rule(
    *("SEVKVM001", "kernel-writable-executable", _E, "a kernel mapping is writable and executable"),
    "Whoever can write there, with one stray write or one bug, runs code with the kernel's rights.",
    "Find who maps it: a module, firmware services, tables of a boot stage. Linux tells of its own with "
    "CONFIG_DEBUG_WX.",
    _NX,
)
KERNEL_USER = Rule(
    *("SEVKVM002", "kernel-user-accessible", _E, "user mode can reach a page of the kernel's half"),
    "The User bit is set all the way down the walk: any process can read there, and write if the page is writable.",
    "Find who set the bit. Linux has one such page at most, vsyscall, which vsyscall=none takes away.",
    _LONG,
)
SELF_MAP = Rule(
    *("SEVKVM003", "table-maps-itself", _W, "a page table is used at several levels"),
    "Through such an entry page tables show as ordinary memory: who can write there rewrites every right.",
    "Windows and some small kernels do so on purpose, and hide the address. Linux does not.",
    (Need.TABLES,),
)
RESERVED = Rule(
    *("SEVKVM004", "reserved-bits", _W, "present page-table entries have reserved bits set"),
    "The processor faults on them (page fault with RSVD set). They are corrupt, a trap on purpose, or written for a "
    "C-bit or a width of addresses that this processor does not have.",
    "Look at the entries: one bit is flipped memory, a whole table of them is no page table, and the same bit "
    "everywhere is a wrong C-bit (--cbit-pos).",
    (Need.TABLES,),
)
UNREADABLE = Rule(
    *("SEVKVM005", "unreadable-table", _W, "an entry leads to a page table that cannot be read"),
    "There is no RAM, or the VMM's memory or the dump has a hole there. What that table maps was not audited.",
    "If the address is RAM, tell sevkvm of it (--slot). If not, the entry is corrupt.",
    (Need.TABLES,),
)
TABLE_SHARED = Rule(
    *("SEVKVM006", "page-table-shared", _E, "a page that holds a page table is mapped shared"),
    "The processor always reads tables as private. Written through a shared mapping, or by the host in a page that is "
    "used as shared, they turn into noise; and the page was open to the host.",
    "Find who maps or shares the page: it was freed while it was shared, or shared while it was in use.",
    _CBIT,
)
IMAGE_SHARED = Rule(
    *("SEVKVM007", "kernel-text-shared", _E, "kernel text or read-only data is mapped shared"),
    "Instructions are always fetched as private, data by the C-bit: the page reads as noise there, or the host "
    "can choose what the kernel reads.",
    "Find who shared the page; the kernel shares memory of .bss..decrypted and of DMA, never of its image.",
    _CBIT,
)
CONFLICT = Rule(
    *("SEVKVM008", "private-and-shared", _W, "memory is mapped both private and shared"),
    "What is written through one mapping reads as noise through the other. One of them is stale or wrong.",
    "If one of the two is never used it does no harm (an alias of the kernel's .bss..decrypted in the direct map, "
    "for one). Else set_memory_decrypted() missed an alias.",
    _CBIT,
)
PRIVATE_MMIO = Rule(
    *("SEVKVM009", "private-not-ram", _W, "gpas that are no RAM are mapped private"),
    "Devices do not decrypt: a driver that uses such a mapping exchanges noise with its device, and SEV-ES refuses "
    "emulated MMIO through it.",
    "Map device memory with ioremap(), which leaves the C-bit clear. If there is RAM, tell sevkvm of it (--slot).",
    _CBIT,
)
SWIOTLB_PRIVATE = Rule(
    *("SEVKVM010", "swiotlb-private", _W, "the bounce buffer (swiotlb) is not shared"),
    "Devices reach an encrypted guest's memory through the swiotlb only; where it is private they exchange noise.",
    "Look at what freed or remapped it; the kernel shares all of it at boot.",
    (Need.CBIT, Need.SWIOTLB),
)
SHARED_RAM = Rule(
    *("SEVKVM011", "shared-memory", _N, "RAM that the guest shares with the host"),
    "The host can read and write all of it. A Linux guest shares its swiotlb (6 % of RAM, 64 MiB to 1 GiB), a few "
    "pages of its image, and what drivers allocate for DMA.",
    "Check that nothing large is shared that no device needs (sevkvm pages lists all of it).",
    _CBIT,
)
DIRECT_MAP_SHARED = Rule(
    *("SEVKVM012", "direct-map-shared", _N, "RAM that the kernel's own direct map has as shared"),
    "The kernel keeps the C-bit of the direct map right for each page it shares: this is what it knows to be shared.",
    "Compare with SEVKVM011: what is shared elsewhere only is not the kernel's doing.",
    (Need.CBIT, Need.DIRECT_MAP),
)
NX_OFF = Rule(
    *("SEVKVM013", "no-execute-off", _E, "EFER.NXE is clear: every mapping is executable"),
    "Data, stacks and heaps can be executed, in the kernel and in processes.",
    "A boot stage may run so; an operating system does not (noexec=off on its command line?).",
    _REGS,
)
WP_OFF = Rule(
    *("SEVKVM014", "write-protect-off", _E, "CR0.WP is clear: the kernel can write read-only pages"),
    "Read-only text and data, and copy-on-write pages, are not protected from kernel mode.",
    "Legitimate for an instant (firmware calls, old text patching). If it persists, find who cleared it: rootkits do.",
    _REGS,
)
SMEP_OFF = Rule(
    *("SEVKVM015", "smep-off", _W, "CR4.SMEP is clear: kernel mode may execute user pages"),
    "A kernel bug that jumps to a wrong address runs what a process has put there.",
    "Every EPYC has SMEP: give the guest a processor model that shows it, and no nosmep.",
    _REGS,
)
SMAP_OFF = Rule(
    *("SEVKVM016", "smap-off", _W, "CR4.SMAP is clear: kernel mode may access user pages at any time"),
    "A kernel bug that follows a wrong pointer reads what a process has put there.",
    "Every EPYC has SMAP: give the guest a processor model that shows it, and no nosmap.",
    _REGS,
)
ISOLATION = Rule(
    *("SEVKVM017", "page-table-isolation", _N, "page-table isolation (PTI)"),
    "With isolation user mode runs on tables that leave most of the kernel out.",
    "AMD processors do not need it: a guest that pays for it takes its processor for another (or has pti=on).",
    _LONG,
)
FIVE_LEVEL = Rule(
    *("SEVKVM018", "five-level-paging", _N, "the guest uses 5-level paging"),
    "A walk has one level more; tools that expect 4 read nonsense.",
    "Nothing; no5lvl on the kernel's command line goes back to 4.",
    _LONG,
)

RULES: Final = (
    *(
        KERNEL_WX,
        KERNEL_USER,
        SELF_MAP,
        RESERVED,
        UNREADABLE,
        TABLE_SHARED,
        IMAGE_SHARED,
        CONFLICT,
        PRIVATE_MMIO,
    ),
    *(
        SWIOTLB_PRIVATE,
        SHARED_RAM,
        DIRECT_MAP_SHARED,
        NX_OFF,
        WP_OFF,
        SMEP_OFF,
        SMAP_OFF,
        ISOLATION,
        FIVE_LEVEL,
    ),
)
