"""Does the host have SEV? From files made here."""

from __future__ import annotations

from pathlib import Path

import pytest

from sevkvm.host.sevdev import host_has_sev


@pytest.mark.parametrize(
    ("value", "expected"), [("Y\n", True), ("1\n", True), ("N\n", False), ("0\n", False), (None, False)]
)
def test_the_module_parameter(tmp_path: Path, value: str | None, expected: bool) -> None:
    if value is not None:
        (tmp_path / "sev").write_text(value)
    assert host_has_sev(str(tmp_path / "no-device"), tmp_path) is expected


def test_the_device(tmp_path: Path) -> None:
    device = tmp_path / "sev-device"
    device.touch()
    assert host_has_sev(str(device), tmp_path / "no-module")
