"""DBG_DECRYPT and DBG_ENCRYPT as both kernel generations send them where no bounce buffer is needed.

Pieces that lie contiguously at equal page offsets are carried out together, which nobody can tell but by the
speed; they are counted one by one.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Final

from sevkvm.abi.sev import BLOCK_NBYTES, DBG_NBYTES, unpack_dbg
from sevkvm.abi.x86 import PAGE_MASK, PAGE_NBYTES
from sevkvm.shim.cipher import GuestCipher
from sevkvm.shim.sev_op import Errno, SevOp, npages

ADDRESS_END: Final = 1 << 64
BLOCK_MASK: Final = BLOCK_NBYTES - 1


@dataclass(frozen=True, slots=True)
class DbgRequest:
    """``struct kvm_sev_dbg``, or what is left of it: both addresses are the caller's."""

    src: int
    dst: int
    nbytes: int
    decrypt: bool

    @classmethod
    def of(cls, op: SevOp, *, decrypt: bool) -> DbgRequest:
        """What the caller asks for."""
        src, dst, nbytes = unpack_dbg(op.copy_from_user(op.data, DBG_NBYTES))
        op.record.args.update(src=src, dst=dst, nbytes=nbytes)
        return cls(src, dst, nbytes, decrypt)

    def rest(self, done: int) -> DbgRequest:
        """What is left after the first ``done`` bytes."""
        return DbgRequest(self.src + done, self.dst + done, self.nbytes - done, self.decrypt)

    def direct(self, nbytes: int) -> bool:
        """May the firmware work on the caller's pages themselves for that many bytes?"""
        return (self.src | self.dst | nbytes) & BLOCK_MASK == 0

    @property
    def same_offset(self) -> bool:
        """Do both addresses lie at the same place in their pages?"""
        return (self.src ^ self.dst) & PAGE_MASK == 0


def key_for(op: SevOp, decrypt: bool, src_spa: int, dst_spa: int, nbytes: int, count: int = 1) -> GuestCipher:
    """Send the command, or ``count`` equal ones: the firmware's checks, then the key to work with."""
    name = "DBG_DECRYPT" if decrypt else "DBG_ENCRYPT"
    return op.issue(lambda: op.firmware.dbg(name, op.vm.handle, src_spa, dst_spa, nbytes, count))


def aligned_run(op: SevOp, request: DbgRequest) -> int:
    """Whole blocks at equal page offsets, as far as both sides are contiguous; returns how many bytes."""
    source = op.pin_some(request.src, _run_nbytes(op, request), write=False)
    target = op.pin_some(request.dst, source.nbytes, write=True)
    data = op.load_some(request.src, target.nbytes)
    nbytes = len(data)
    count = npages(request.src, nbytes)
    if request.decrypt:
        key = key_for(op, True, source.spa, request.dst & PAGE_MASK, nbytes, count)
        key.decrypt_into(source.spa, data, data)
    else:
        key = key_for(op, False, 0, target.spa, nbytes, count)
        key.encrypt_into(target.spa, data, data)
    done = op.store_some(request.dst, data)
    op.record.pages += npages(request.dst, done)
    return done


def _run_nbytes(op: SevOp, request: DbgRequest) -> int:
    """How far direct pieces follow each other: to the end if that is one too, else to a page border."""
    if op.firmware.faults.watching:
        return min(request.nbytes, PAGE_NBYTES - (request.src & PAGE_MASK))
    if request.nbytes <= len(op.room) and not request.nbytes & BLOCK_MASK:
        return request.nbytes
    nbytes = min(request.nbytes, len(op.room))
    return nbytes - (request.src + nbytes & PAGE_MASK)


def require_memlock(op: SevOp) -> None:
    """One page of either side is pinned at a time, on top of what is pinned already (RLIMIT_MEMLOCK): ENOMEM."""
    if not op.caller.may_lock(op.vm.pages_locked + 2):
        raise Errno(errno.ENOMEM)
