"""The lab's Linux for tests: booted once, then out of the cache; a skip that says why where it cannot be had."""

from __future__ import annotations

from typing import Any

import pytest

from sevkvm.lab.debian import LabUnavailable
from sevkvm.lab.emulator import Machine
from sevkvm.lab.linux import sealed_linux
from sevkvm.lab.sealed import SealedLinux
from tests.support.sevhost import host_cbit_pos


def require_sealed_linux(machine: Machine | None = None, **options: Any) -> SealedLinux:
    """:func:`sevkvm.lab.linux.sealed_linux`, with the C-bit where tests have it, or a skip."""
    try:
        return sealed_linux(machine or Machine(), **{"cbit_pos": host_cbit_pos()} | options)
    except LabUnavailable as error:
        pytest.skip(f"{error} ({error.help})")
