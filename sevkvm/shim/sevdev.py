"""The pretend ``/dev/sev`` (SEV_ISSUE_CMD), as drivers/crypto/ccp/sev-dev.c answers it (v6.18).

PLATFORM_STATUS, GET_ID2 and PDH_CERT_EXPORT answer; commands that would change the platform's keys are EPERM
without a writable descriptor and UNSUPPORTED by this firmware model with one.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from typing import Final

from sevkvm.abi import sev
from sevkvm.abi.sev import FwStatus, PlatformCmd
from sevkvm.shim.firmware import CHAIN_NBYTES, DH_CERT_NBYTES, FirmwareFailure
from sevkvm.shim.kernel import Kernel
from sevkvm.shim.log import Record
from sevkvm.shim.sev_op import Errno
from sevkvm.shim.target import Caller, read_exactly

_GET_ID2: Final = struct.Struct("<QI")  # address, length: packed
_PDH_EXPORT: Final = struct.Struct("<QIQI")  # PDH address and length, chain address and length: packed
_KNOWN: Final = frozenset(PlatformCmd)
_NEED_WRITE: Final = frozenset(
    (
        PlatformCmd.FACTORY_RESET,
        PlatformCmd.PEK_GEN,
        PlatformCmd.PEK_CSR,
        PlatformCmd.PDH_GEN,
        PlatformCmd.PEK_CERT_IMPORT,
        PlatformCmd.SNP_SET_CONFIG,
        PlatformCmd.SNP_VLEK_LOAD,
    )
)


@dataclass
class _Command:
    caller: Caller
    data: int
    error: int

    def get(self, hva: int, nbytes: int) -> bytes:
        data = read_exactly(self.caller.memory, hva, nbytes)
        if data is None:
            raise Errno(errno.EFAULT)
        return data

    def put(self, hva: int, data: bytes) -> None:
        if self.caller.memory.write(hva, data) < len(data):
            raise Errno(errno.EFAULT)

    def fail(self, status: FwStatus) -> Errno:
        self.error = status
        return Errno(errno.EIO)


class SevDevice:
    """The device node's driver."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def ioctl(self, caller: Caller, request: int, argument: int, *, writable: bool) -> int:
        """An ioctl on an open ``/dev/sev``: 0 or -errno."""
        if request != sev.SEV_ISSUE_CMD:
            return -errno.EINVAL
        raw = read_exactly(caller.memory, argument, sev.SevIssueCmd.NBYTES)
        if raw is None:
            return -errno.EFAULT
        issue = sev.SevIssueCmd.unpack(raw)
        if issue.cmd not in _KNOWN:
            return -errno.EINVAL
        command = _Command(caller, issue.data, issue.error)
        record = Record(PlatformCmd(issue.cmd).name, caller.pid, 0)
        result = 0
        try:
            self._run(PlatformCmd(issue.cmd), command, writable)
        except Errno as failure:
            result = -failure.errno
        back = sev.SevIssueCmd(issue.cmd, issue.data, command.error).pack()
        if caller.memory.write(argument, back) < len(back):
            result = -errno.EFAULT
        record.errno, record.status = -result, command.error
        self._kernel.log.add(record)
        return result

    def _run(self, which: PlatformCmd, command: _Command, writable: bool) -> None:
        if which in _NEED_WRITE and not writable:
            raise Errno(errno.EPERM)
        match which:
            case PlatformCmd.PLATFORM_STATUS:
                status = self._kernel.firmware.platform_status()
                command.error = 0
                command.put(command.data, status.pack())
            case PlatformCmd.GET_ID2:
                self._get_id2(command)
            case PlatformCmd.PDH_CERT_EXPORT:
                self._pdh_cert_export(command)
            case PlatformCmd.SNP_PLATFORM_STATUS if not command.data:
                raise Errno(errno.EINVAL)
            case _:
                try:
                    self._kernel.firmware.unsupported(which.name)
                except FirmwareFailure as failure:
                    raise command.fail(failure.status) from failure

    def _get_id2(self, command: _Command) -> None:
        address, nbytes = _GET_ID2.unpack(command.get(command.data, _GET_ID2.size))
        try:
            ids = self._kernel.firmware.get_id(nbytes if address else 0)
        except FirmwareFailure as failure:
            command.put(command.data, _GET_ID2.pack(address, failure.nbytes or 0))
            raise command.fail(failure.status) from failure
        command.error = 0
        command.put(command.data, _GET_ID2.pack(address, len(ids)))
        command.put(address, ids)

    def _pdh_cert_export(self, command: _Command) -> None:
        pdh, nbytes, chain, chain_nbytes = _PDH_EXPORT.unpack(command.get(command.data, _PDH_EXPORT.size))
        query = not pdh or not chain
        try:
            answer = self._kernel.firmware.pdh_cert_export(0 if query else nbytes, chain_nbytes)
        except FirmwareFailure as failure:
            command.put(command.data, _PDH_EXPORT.pack(pdh, DH_CERT_NBYTES, chain, CHAIN_NBYTES))
            raise command.fail(failure.status) from failure
        command.error = 0
        command.put(command.data, _PDH_EXPORT.pack(pdh, DH_CERT_NBYTES, chain, CHAIN_NBYTES))
        command.put(pdh, answer[0])
        command.put(chain, answer[1])
