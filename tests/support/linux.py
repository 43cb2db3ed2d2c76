"""The lab's Linux for tests: booted once, then out of the cache; a skip that says why where it cannot be had."""

from __future__ import annotations

from typing import Any

import pytest

from sevkvm.lab.debian import LabUnavailable
from sevkvm.lab.emulator import Machine
from sevkvm.lab.linux import sealed_linux
from sevkvm.lab.sealed import SealedLinux


def require_sealed_linux(machine: Machine | None = None, **options: Any) -> SealedLinux:
    """:func:`sevkvm.lab.linux.sealed_linux`, or a skip."""
    try:
        return sealed_linux(machine or Machine(), **options)
    except LabUnavailable as error:
        pytest.skip(f"{error} ({error.help})")
