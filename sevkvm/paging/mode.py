"""The paging modes of an x86 processor.

Source: AMD64 Architecture Programmer's Manual, volume 2, sections 5.1 to 5.3.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from sevkvm.abi.x86 import CR3_ADDRESS_MASK


class PagingMode(IntEnum):
    """``enum sk_paging_mode`` of csrc/sk_walk.h. LEGACY and PSE are 32-bit tables without and with 4 MiB pages."""

    OFF = 0
    LEGACY = 1
    PSE = 2
    PAE = 3
    LEVEL4 = 4
    LEVEL5 = 5

    @property
    def levels(self) -> int:
        """How many levels of tables a walk goes through."""
        return _LEVELS[self]

    @property
    def option_name(self) -> str:
        """What ``--paging`` calls it."""
        return OPTION_NAMES[self]

    @property
    def long(self) -> bool:
        """Long mode: addresses have 64 bits."""
        return self >= PagingMode.LEVEL4

    @property
    def root_mask(self) -> int:
        """The bits of CR3 that are the top table's gpa. PAE's table of 4 entries lies at any multiple of 32."""
        return _ROOT_MASKS[self]


OPTION_NAMES: Final = ("none", "32", "pse", "pae", "4level", "5level")
_LEVELS: Final = (0, 2, 2, 3, 4, 5)
_ROOT_MASKS: Final = (0, 0xFFFF_F000, 0xFFFF_F000, 0xFFFF_FFE0, CR3_ADDRESS_MASK, CR3_ADDRESS_MASK)
