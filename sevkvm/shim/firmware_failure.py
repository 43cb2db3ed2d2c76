"""How a firmware command fails, or never gets there."""

from __future__ import annotations

import os

from sevkvm.abi.sev import FwStatus, fw_status_name


class FirmwareFailure(Exception):
    """A command ended with ``status``; ``lengths`` are those that the firmware filled in, where it does."""

    def __init__(self, status: int, *lengths: int) -> None:
        super().__init__(fw_status_name(status))
        self.status = status
        self.lengths = lengths

    @property
    def nbytes(self) -> int:
        """The length that the firmware filled in, or 0."""
        return self.lengths[0] if self.lengths else 0


class DriverFailure(Exception):
    """The driver gives up with ``errno`` before the firmware has answered; ``error`` is None if it leaves it alone."""

    def __init__(self, code: int, *, error: int | None = None) -> None:
        super().__init__(os.strerror(code))
        self.errno = code
        self.error = error


def require(condition: bool, status: FwStatus) -> None:
    """Fail with ``status`` unless the condition holds."""
    if not condition:
        raise FirmwareFailure(status)
