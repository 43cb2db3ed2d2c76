"""Which guest, and what the user knows about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sevkvm.paging.mode import PagingMode

Warn = Callable[[str], None]

VIAS = ("auto", "deputy", "mirror", "local")


class Needs(Enum):
    """What a caller wants of a guest, by which ``auto`` chooses the way in.

    STATUS: what attaching tells. MEMORY: memory of a guest that runs. ALL: registers, and a guest that stands still.
    """

    STATUS = 0
    MEMORY = 1
    ALL = 2


@dataclass(frozen=True)
class AttachOptions:
    """Which guest, and what the user knows about it. Addresses are ints; ``slots`` are ``GPA:SIZE:HVA``.

    ``paging`` overrides the mode that a vCPU says.
    ``search_limit``: how many bytes of guest memory may be read in search of the kernel, where no register leads there.
    ``mmio``: the VMM's monitor may be asked for the registers of devices, which can change them.
    ``timeout`` (seconds) bounds each single wait for the VMM or its monitor.
    ``via``: one of VIAS, or None for ``auto``.
    """

    pid: int | None = None
    vm_fd: int | None = None
    qmp: str | None = None
    libvirt: str | None = None
    slots: tuple[str, ...] = ()
    cbit_pos: int | None = None
    cr3: int | None = None
    vcpu: int | None = None
    paging: PagingMode | None = None
    search_limit: int = 4 << 30
    mmio: bool = False
    timeout: float = 5.0
    via: str | None = None
