"""The commands of SEV_ISSUE_CMD, with the driver's checks in its order (drivers/crypto/ccp/sev-dev.c)."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import Final

from sevkvm.abi.sev import PlatformState
from sevkvm.shim.firmware import API_VERSION
from sevkvm.shim.platform_keys import CHIP_ID_NBYTES
from sevkvm.shim.platform_op import PlatformOp
from sevkvm.shim.sev_op import BLOB_MAX_NBYTES, Errno, lengths_told

_BUFFER: Final = struct.Struct("<QI")  # sev_user_data_get_id2, sev_user_data_pek_csr: address, length; packed
_TWO_BUFFERS: Final = struct.Struct("<QIQI")  # sev_user_data_pdh_cert_export, _pek_cert_import; packed
_API_WITH_GET_ID: Final = (0, 16)
_ENOTSUPP: Final = 524  # the kernel's own; errno has no name for it
_ALLOC_MAX_NBYTES: Final = 4 << 20  # what the page allocator gives in one piece


def factory_reset(op: PlatformOp) -> None:
    """SEV_FACTORY_RESET: the platform goes down and forgets its identity; EBUSY while there are guests."""
    op.require_writable()
    status = op.issue(op.firmware.platform_status)
    if status.state == PlatformState.WORKING:
        raise Errno(errno.EBUSY)
    if status.state == PlatformState.INIT:
        op.issue(op.firmware.shutdown)
    op.issue(op.firmware.platform_reset)


def platform_status(op: PlatformOp) -> None:
    """SEV_PLATFORM_STATUS."""
    status = op.issue(op.firmware.platform_status)
    op.copy_to_user(op.data, status.pack())


def pek_gen(op: PlatformOp) -> None:
    """SEV_PEK_GEN: a new identity."""
    op.require_writable()
    with op.initialised():
        op.issue(op.firmware.pek_gen)


def pdh_gen(op: PlatformOp) -> None:
    """SEV_PDH_GEN: a new Diffie-Hellman key."""
    op.require_writable()
    with op.initialised():
        op.issue(op.firmware.pdh_gen)


def pek_csr(op: PlatformOp) -> None:
    """SEV_PEK_CSR: the request for an owner to sign; without a buffer its length (and EIO)."""
    op.require_writable()
    hva, nbytes = _BUFFER.unpack(op.copy_from_user(op.data, _BUFFER.size))
    room = nbytes if hva else 0
    if room > BLOB_MAX_NBYTES:
        raise Errno(errno.EFAULT)
    with op.initialised():
        _one_buffer(op, hva, room, lambda: op.firmware.pek_csr(room))


def pek_cert_import(op: PlatformOp) -> None:
    """SEV_PEK_CERT_IMPORT: the signed PEK and the certificate of the OCA that signed it."""
    op.require_writable()
    pek, pek_nbytes, oca, oca_nbytes = _TWO_BUFFERS.unpack(op.copy_from_user(op.data, _TWO_BUFFERS.size))
    pek_cert = op.copy_blob(pek, pek_nbytes)
    oca_cert = op.copy_blob(oca, oca_nbytes)
    with op.initialised():
        op.issue(lambda: op.firmware.pek_cert_import(pek_cert, oca_cert))


def pdh_cert_export(op: PlatformOp) -> None:
    """SEV_PDH_CERT_EXPORT: without buffers both lengths (and EIO). A platform that is down needs a writer.

    Old kernels look at that before anything else, and new ones after the buffers.
    """
    down = op.firmware.state == PlatformState.UNINIT
    if down and op.generation == "old":
        op.require_writable()
        with op.initialised():
            down = False
    pdh, pdh_nbytes, chain, chain_nbytes = _TWO_BUFFERS.unpack(op.copy_from_user(op.data, _TWO_BUFFERS.size))
    query = not pdh or not pdh_nbytes or not chain
    if not query and max(pdh_nbytes, chain_nbytes) > BLOB_MAX_NBYTES:
        raise Errno(errno.EFAULT)
    rooms = (0, 0) if query else (pdh_nbytes, chain_nbytes)
    if down:
        op.require_writable()
    with op.initialised():
        try:
            certs = op.issue(lambda: op.firmware.pdh_cert_export(*rooms))
        except Errno as refusal:
            told = lengths_told(refusal) or rooms
            op.copy_to_user(op.data, _TWO_BUFFERS.pack(pdh, told[0], chain, told[1]))
            raise
        op.copy_to_user(op.data, _TWO_BUFFERS.pack(pdh, len(certs[0]), chain, len(certs[1])))
        op.copy_to_user(pdh, certs[0])
        op.copy_to_user(chain, certs[1])


def get_id(op: PlatformOp) -> None:
    """SEV_GET_ID, deprecated: room for the ids of two sockets, and no length."""
    _require_get_id()
    op.copy_to_user(op.data, op.issue(lambda: op.firmware.get_id(2 * CHIP_ID_NBYTES)))


def get_id2(op: PlatformOp) -> None:
    """SEV_GET_ID2: without a buffer the length (and EIO)."""
    _require_get_id()
    hva, nbytes = _BUFFER.unpack(op.copy_from_user(op.data, _BUFFER.size))
    room = nbytes if hva else 0
    if room > _ALLOC_MAX_NBYTES:
        raise Errno(errno.ENOMEM)
    _one_buffer(op, hva, room, lambda: op.firmware.get_id(room))


def _require_get_id() -> None:
    if API_VERSION < _API_WITH_GET_ID:
        raise Errno(_ENOTSUPP)


def _one_buffer(op: PlatformOp, hva: int, room: int, command: Callable[[], bytes]) -> None:
    """The length that the firmware tells goes back in any case, the data only after a success."""
    try:
        data = op.issue(command)
    except Errno as refusal:
        told = lengths_told(refusal) or (room,)
        op.copy_to_user(op.data, _BUFFER.pack(hva, *told))
        raise
    op.copy_to_user(op.data, _BUFFER.pack(hva, len(data)))
    op.copy_to_user(hva, data)
