"""The SNP commands of SEV_ISSUE_CMD on a host that has none (drivers/crypto/ccp/sev-dev.c).

Old kernels answer EINVAL while SNP is not initialised. New ones try to initialise it, which a host without SNP
refuses with ENODEV and, in ``error``, INVALID_PLATFORM_STATE; only the status is told in every state.
"""

from __future__ import annotations

import errno
import struct
from typing import Final

from sevkvm.abi.sev import FwStatus
from sevkvm.shim.platform_op import PlatformOp
from sevkvm.shim.sev_op import Errno

_CONFIG_NBYTES: Final = 64  # struct sev_user_data_snp_config
_VLEK_LOAD: Final = struct.Struct("<IB3xQ")  # struct sev_user_data_snp_vlek_load: length, version, address
_VLEK_HASHSTICK_NBYTES: Final = 432


def snp_platform_status(op: PlatformOp) -> None:
    """SNP_PLATFORM_STATUS: version, state UNINIT, no guests."""
    _require(op, data=True)
    op.copy_to_user(op.data, op.issue(op.firmware.snp_platform_status))


def snp_commit(op: PlatformOp) -> None:
    """SNP_COMMIT."""
    _require(op, data=False)
    _cannot_init(op)


def snp_set_config(op: PlatformOp) -> None:
    """SNP_SET_CONFIG."""
    _require(op, data=True)
    op.require_writable()
    op.copy_from_user(op.data, _CONFIG_NBYTES)
    _cannot_init(op)


def snp_vlek_load(op: PlatformOp) -> None:
    """SNP_VLEK_LOAD."""
    _require(op, data=True)
    op.require_writable()
    nbytes, version, hva = _VLEK_LOAD.unpack(op.copy_from_user(op.data, _VLEK_LOAD.size))
    if nbytes != _VLEK_LOAD.size or version:
        raise Errno(errno.EINVAL)
    op.copy_blob(hva, _VLEK_HASHSTICK_NBYTES)
    _cannot_init(op)


def _require(op: PlatformOp, *, data: bool) -> None:
    if op.generation == "old" or (data and not op.data):
        raise Errno(errno.EINVAL)


def _cannot_init(op: PlatformOp) -> None:
    op.error = FwStatus.INVALID_PLATFORM_STATE
    raise Errno(errno.ENODEV)
