"""KVM_MEMORY_ENCRYPT_REG_REGION and _UNREG_REGION: ranges that stay pinned (Linux sev.c, v6.18)."""

from __future__ import annotations

import errno
import struct
from typing import Final

from sevkvm.shim.sev_op import Errno, SevOp, npages

_REGION: Final = struct.Struct("<QQ")


def register(op: SevOp) -> None:
    """sev_mem_enc_register_region: ``op.data`` is the hva of ``struct kvm_enc_region``."""
    hva, nbytes = _region(op)
    op.require_sev()
    _require_no_mirror(op)
    op.pin(hva, nbytes, write=True)
    op.vm.regions.append((hva, nbytes))
    op.vm.pages_locked += npages(hva, nbytes)
    op.caller.memory.keep(hva, nbytes)


def unregister(op: SevOp) -> None:
    """sev_mem_enc_unregister_region: only a range that was registered as it is; EINVAL."""
    hva, nbytes = _region(op)
    _require_no_mirror(op)
    op.require_sev()
    if (hva, nbytes) not in op.vm.regions:
        raise Errno(errno.EINVAL)
    op.vm.regions.remove((hva, nbytes))
    op.vm.pages_locked -= npages(hva, nbytes)
    op.caller.memory.release(hva, nbytes)


def _region(op: SevOp) -> tuple[int, int]:
    hva, nbytes = _REGION.unpack(op.copy_from_user(op.data, _REGION.size))
    op.record.args.update(hva=hva, nbytes=nbytes)
    return hva, nbytes


def _require_no_mirror(op: SevOp) -> None:
    if op.vm.owner:
        raise Errno(errno.EINVAL)
