"""The pretend ``/dev/sev`` (SEV_ISSUE_CMD), as drivers/crypto/ccp/sev-dev.c answers it (v6.18).

The commands themselves are in platform_ops. Where kernels differ, "old" is before the driver learnt to undo an
implicit INIT (v6.15), "new" after it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from sevkvm.abi import sev
from sevkvm.abi.sev import PlatformCmd
from sevkvm.shim import platform_ops, snp_ops
from sevkvm.shim.kernel import Kernel
from sevkvm.shim.log import Record
from sevkvm.shim.platform_op import PlatformOp
from sevkvm.shim.sev_op import Errno
from sevkvm.shim.target import Caller, read_exactly

_HANDLERS: Final[dict[int, Callable[[PlatformOp], None]]] = {
    PlatformCmd.FACTORY_RESET: platform_ops.factory_reset,
    PlatformCmd.PLATFORM_STATUS: platform_ops.platform_status,
    PlatformCmd.PEK_GEN: platform_ops.pek_gen,
    PlatformCmd.PEK_CSR: platform_ops.pek_csr,
    PlatformCmd.PDH_GEN: platform_ops.pdh_gen,
    PlatformCmd.PDH_CERT_EXPORT: platform_ops.pdh_cert_export,
    PlatformCmd.PEK_CERT_IMPORT: platform_ops.pek_cert_import,
    PlatformCmd.GET_ID: platform_ops.get_id,
    PlatformCmd.GET_ID2: platform_ops.get_id2,
    PlatformCmd.SNP_PLATFORM_STATUS: snp_ops.snp_platform_status,
    PlatformCmd.SNP_COMMIT: snp_ops.snp_commit,
    PlatformCmd.SNP_SET_CONFIG: snp_ops.snp_set_config,
    PlatformCmd.SNP_VLEK_LOAD: snp_ops.snp_vlek_load,
}


class SevDevice:
    """The device node's driver. ``present`` is False on a host whose secure processor never came up."""

    def __init__(self, kernel: Kernel, *, present: bool = True) -> None:
        self._kernel = kernel
        self.present = present

    def ioctl(self, caller: Caller, request: int, argument: int, *, writable: bool) -> int:
        """An ioctl on an open ``/dev/sev``: 0 or -errno."""
        if not self.present:
            return -errno.ENODEV
        if request != sev.SEV_ISSUE_CMD:
            return -errno.EINVAL
        raw = read_exactly(caller.memory, argument, sev.ISSUE_CMD_NBYTES)
        if raw is None:
            return -errno.EFAULT
        issue = sev.SevIssueCmd.unpack(raw)
        handler = _HANDLERS.get(issue.cmd)
        if handler is None:
            return -errno.EINVAL
        kernel = self._kernel
        op = PlatformOp(caller, kernel.firmware, issue.data, issue.error, writable, kernel.generation)
        record = Record(PlatformCmd(issue.cmd).name, caller.pid, 0)
        with kernel.mailbox:
            try:
                handler(op)
            except Errno as failure:
                record.errno = failure.errno
        # an id that is known has its struct copied back whatever happened
        back = sev.SevIssueCmd(issue.cmd, issue.data, op.error).pack()
        if caller.memory.write(argument, back) < len(back):
            record.errno = errno.EFAULT
        record.status = op.error
        kernel.log.add(record)
        return -record.errno
