"""/dev/sev where there is none, and the errors that say so; the rest is tested where a platform answers."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sevkvm import errors, native
from sevkvm.abi import sev
from sevkvm.host.sevdev import SevDevice

STATUS = sev.PlatformStatus(1, 55, sev.PlatformState.WORKING, 0x100, 21, 3)


def test_no_device(tmp_path: Path) -> None:
    with pytest.raises(errors.PlatformUnsupported, match="No such file") as caught:
        SevDevice(str(tmp_path / "sev"))
    assert caught.value.exit_code == errors.EXIT_FORBIDDEN
    assert caught.value.help is not None
    assert "EPYC" in caught.value.help


def test_no_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, flags: int) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(errors.AttachError, match="/dev/sev"):
        SevDevice()


def test_another_file_is_not_the_device(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with SevDevice(str(tmp_path / "file")) as device, pytest.raises(errors.IoctlError) as caught:
        device.platform_status()
    assert (caught.value.errno, caught.value.request) == (errno.ENOTTY, "SEV_PLATFORM_STATUS")
    assert device.fd == -1
    device.close()


def answering(result: int, error: int | None) -> Callable[[int, int, int], int]:
    """The driver's part of the ioctl; it reads and writes our memory as the kernel would."""

    def ioctl(fd: int, request: int, argument: int = 0) -> int:
        assert request == 0xC0105300
        command = sev.SevIssueCmd.unpack(native.read(os.getpid(), argument, 16))
        assert (command.cmd, command.error) == (1, 0xFFFFFFFF)
        if result == 0:
            native.write(os.getpid(), command.data, STATUS.pack())
        if error is not None:
            native.write(os.getpid(), argument, sev.SevIssueCmd(command.cmd, command.data, error).pack())
        return result

    return ioctl


def ask(tmp_path: Path) -> sev.PlatformStatus:
    (tmp_path / "sev").touch()
    with SevDevice(str(tmp_path / "sev")) as device:
        return device.platform_status()


def test_platform_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "ioctl", answering(0, 0))
    assert ask(tmp_path) == STATUS


def test_a_firmware_status_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "ioctl", answering(-errno.EIO, 0x14))
    with pytest.raises(errors.FirmwareError) as caught:
        ask(tmp_path)
    assert (caught.value.status, caught.value.status_name) == (0x14, "HWSEV_RET_UNSAFE")


@pytest.mark.parametrize(
    ("result", "error"), [(-errno.EIO, None), (-errno.ENODEV, None), (-errno.ENODEV, 0x14), (-errno.EIO, 0)]
)
def test_a_kernels_refusal_is_no_firmware_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: int, error: int | None
) -> None:
    monkeypatch.setattr(native, "ioctl", answering(result, error))
    with pytest.raises(errors.IoctlError) as caught:
        ask(tmp_path)
    assert caught.value.errno == -result
