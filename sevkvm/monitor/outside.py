"""What only the VMM or the host's kernel can tell or do, as the monitor asks for it; ``attach`` has the real one."""

from __future__ import annotations

from typing import Protocol


class Outside(Protocol):
    """Asked while the vCPUs are not held: a VMM may wait for them before it answers."""

    def ask(self, command: str) -> str | None:
        """The VMM's own monitor's answer to a command of its human monitor; None where there is no such monitor."""
        ...

    def thread_ids(self) -> dict[int, int]:
        """The host's thread of each vCPU, by index; empty where nobody tells."""
        ...

    def hpa(self, hva: int) -> int:
        """The host-physical address of the VMM's page at ``hva``; MemoryFault, or another SevKvmError."""
        ...


class NoOutside:
    """A dump's: nobody is there to ask."""

    def ask(self, command: str) -> None:
        """Nobody answers."""

    def thread_ids(self) -> dict[int, int]:
        """None."""
        return {}

    def hpa(self, hva: int) -> int:
        """A dump's memory lies in no host's."""
        from sevkvm import errors

        raise errors.UsageError("this guest is a dump: no host's memory holds it")
