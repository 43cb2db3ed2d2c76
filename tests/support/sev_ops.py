"""Raw commands on door 2 of the pretend SEV host: errno, error field, and data as it came back."""

from __future__ import annotations

import struct
from collections.abc import Callable

from sevkvm import errors
from sevkvm.abi import sev
from sevkvm.abi.sev import PlatformCmd, SevCmd
from sevkvm.shim.port import FakePort

Outcome = tuple[int, int, bytes]
DATA_OFFSET = 64


def errno_of(command: Callable[[], object]) -> int:
    """0, or what an ioctl failed with."""
    try:
        command()
    except errors.IoctlError as error:
        return error.errno or 0
    return 0


def platform(port: FakePort, fd: int, command: int, data: bytes = b"") -> Outcome:
    """SEV_ISSUE_CMD; without ``data`` its pointer is NULL."""
    where = port.args_hva + DATA_OFFSET
    cmd = sev.SevIssueCmd(command, where if data else 0)
    port.write(port.args_hva, cmd.pack().ljust(DATA_OFFSET, b"\0") + data)
    code = errno_of(lambda: port.ioctl(fd, sev.SEV_ISSUE_CMD, port.args_hva))
    back = sev.SevIssueCmd.unpack(port.read(port.args_hva, sev.ISSUE_CMD_NBYTES))
    return code, back.error, port.read(where, len(data))


def vm_op(port: FakePort, vm_fd: int, command: SevCmd, data: bytes = b"", sev_fd: int = 0) -> Outcome:
    """KVM_MEMORY_ENCRYPT_OP."""
    code = errno_of(lambda: port.sev_op(vm_fd, command, data, sev_fd=sev_fd))
    return code, port.sev_error(), port.read(port.args_hva + DATA_OFFSET, len(data))


def export_chain(port: FakePort, fd: int) -> tuple[bytes, bytes]:
    """(PDH, PEK + OCA + CEK) through PDH_CERT_EXPORT."""
    room = port.map(4 * 2084).hva
    data = struct.pack("<QIQI", room, 2084, room + 2084, 3 * 2084)
    assert platform(port, fd, PlatformCmd.PDH_CERT_EXPORT, data) == (0, 0, data)
    return port.read(room, 2084), port.read(room + 2084, 3 * 2084)


def launch_start(
    port: FakePort, vm_fd: int, sev_fd: int, policy: int, owner: bytes | None = None, session: bytes = b""
) -> Outcome:
    """LAUNCH_START; the handle is in the first four bytes that come back."""
    owner_hva = port.map(owner).hva if owner else 0
    session_hva = port.map(session).hva if session else 0
    start = sev.LaunchStart(0, policy, owner_hva, len(owner or b""), session_hva, len(session))
    return vm_op(port, vm_fd, SevCmd.LAUNCH_START, start.pack(), sev_fd)


def launch_secret(
    port: FakePort, vm_fd: int, header: bytes, hva: int, nbytes: int, packet: bytes
) -> tuple[int, int]:
    """LAUNCH_SECRET: errno and error."""
    header_hva = port.map(header).hva if header else 0
    packet_hva = port.map(packet).hva if packet else 0
    data = struct.pack("<QI4xQI4xQI4x", header_hva, len(header), hva, nbytes, packet_hva, len(packet))
    return vm_op(port, vm_fd, SevCmd.LAUNCH_SECRET, data)[:2]
