"""How a firmware command fails."""

from __future__ import annotations

from sevkvm.abi.sev import FwStatus


class FirmwareFailure(Exception):
    """A command ended with ``status``; ``lengths`` are those that the firmware filled in, where it does."""

    def __init__(self, status: FwStatus, *lengths: int) -> None:
        super().__init__(status.name)
        self.status = status
        self.lengths = lengths

    @property
    def nbytes(self) -> int:
        """The length that the firmware filled in, or 0."""
        return self.lengths[0] if self.lengths else 0


def require(condition: bool, status: FwStatus) -> None:
    """Fail with ``status`` unless the condition holds."""
    if not condition:
        raise FirmwareFailure(status)
