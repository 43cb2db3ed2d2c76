"""The pretend /dev/sev."""

from __future__ import annotations

import errno
import struct

import pytest

from sevkvm import errors
from sevkvm.abi import sev
from sevkvm.abi.sev import SEV_RET_NO_FW_CALL, FwStatus, PlatformCmd
from sevkvm.shim.port import FakePort, launch_guest

PRESET = SEV_RET_NO_FW_CALL
DATA_OFFSET = 64


def issue(port: FakePort, fd: int, command: int, data: bytes = b"") -> tuple[int, int, bytes]:
    """(errno, error, data as it came back)."""
    where = port.args_hva + DATA_OFFSET
    cmd = sev.SevIssueCmd(command, where if data else 0)
    port.write(port.args_hva, cmd.pack().ljust(DATA_OFFSET, b"\0") + data)
    code = 0
    try:
        port.ioctl(fd, sev.SEV_ISSUE_CMD, port.args_hva)
    except errors.IoctlError as error:
        code = error.errno or 0
    back = sev.SevIssueCmd.unpack(port.read(port.args_hva, sev.ISSUE_CMD_NBYTES))
    return code, back.error, port.read(where, len(data))


def test_platform_status() -> None:
    port = launch_guest({0: bytes(4096)}).port
    code, error, data = issue(port, port.open_sev(writable=False), PlatformCmd.PLATFORM_STATUS, bytes(12))
    assert (code, error) == (0, 0)
    assert sev.PlatformStatus.unpack(data) == sev.PlatformStatus(1, 55, 2, 0x100, 21, 1)
    assert issue(port, port.open_sev(), PlatformCmd.PLATFORM_STATUS) == (errno.EFAULT, 0, b"")


def test_what_is_no_command_leaves_the_struct_alone() -> None:
    port = FakePort()
    fd = port.open_sev()
    assert issue(port, fd, 13) == (errno.EINVAL, PRESET, b"")
    with pytest.raises(errors.IoctlError) as refused:
        port.ioctl(fd, 0x5401, port.args_hva)
    assert refused.value.errno == errno.EINVAL
    with pytest.raises(errors.IoctlError) as refused:
        port.ioctl(fd, sev.SEV_ISSUE_CMD, 0x1000)
    assert refused.value.errno == errno.EFAULT


@pytest.mark.parametrize("command", [0, 2, 3, 4, 6])
def test_what_changes_the_platform_needs_a_writable_descriptor(command: int) -> None:
    port = FakePort()
    assert issue(port, port.open_sev(writable=False), command) == (errno.EPERM, PRESET, b"")


def test_get_id2_asked_for_its_length_and_for_the_ids() -> None:
    port = FakePort()
    fd, room = port.open_sev(writable=False), port.scratch_hva
    code, error, data = issue(port, fd, PlatformCmd.GET_ID2, struct.pack("<QI", 0, 0))
    assert (code, error, struct.unpack("<QI", data)) == (errno.EIO, FwStatus.INVALID_LEN, (0, 64))
    code, error, data = issue(port, fd, PlatformCmd.GET_ID2, struct.pack("<QI", room, 63))
    assert (code, error, struct.unpack("<QI", data)) == (errno.EIO, FwStatus.INVALID_LEN, (room, 64))
    for nbytes in (64, 100, 128):  # of one socket there is one id, whatever the room
        code, error, data = issue(port, fd, PlatformCmd.GET_ID2, struct.pack("<QI", room, nbytes))
        assert (code, error, struct.unpack("<QI", data)) == (0, 0, (room, 64))
    assert port.read(room, 64) != bytes(64)
    assert port.read(room + 64, 64) == bytes(64)


def test_pdh_cert_export_asked_for_its_lengths_and_for_the_certificates() -> None:
    port = FakePort()
    fd, pdh = port.open_sev(), port.scratch_hva
    chain = pdh + 4096
    code, error, data = issue(port, fd, PlatformCmd.PDH_CERT_EXPORT, struct.pack("<QIQI", 0, 0, 0, 0))
    _, pdh_nbytes, _, chain_nbytes = struct.unpack("<QIQI", data)
    assert (code, error) == (errno.EIO, FwStatus.INVALID_LEN)
    assert (pdh_nbytes, chain_nbytes) == (2084, 3 * 2084)
    wanted = struct.pack("<QIQI", pdh, pdh_nbytes, chain, chain_nbytes)
    assert issue(port, fd, PlatformCmd.PDH_CERT_EXPORT, wanted) == (0, 0, wanted)
    assert port.read(pdh, 4) == port.read(chain, 4) == b"\1\0\0\0"


def test_snp_platform_status_without_a_buffer() -> None:
    port = FakePort()
    assert issue(port, port.open_sev(), PlatformCmd.SNP_PLATFORM_STATUS) == (errno.EINVAL, PRESET, b"")
