"""KVM_SEV_DBG_DECRYPT and _ENCRYPT: the old kernel's way, or that of the 2026 rewrite, which is told here.

Source: sev_dbg_crypt, Linux 7.2. One firmware command for each piece that stays inside one source page and one
destination page; what is not made of whole blocks goes through a bounce buffer.
"""

from __future__ import annotations

import errno

from sevkvm.abi.x86 import PAGE_MASK, PAGE_NBYTES
from sevkvm.shim import dbg_crypt_old
from sevkvm.shim.dbg_command import (
    ADDRESS_END,
    BLOCK_MASK,
    DbgRequest,
    aligned_run,
    key_for,
    require_memlock,
)
from sevkvm.shim.sev_op import Errno, SevOp


def dbg_decrypt(op: SevOp) -> None:
    """KVM_SEV_DBG_DECRYPT: plaintext of private memory into ordinary memory of the caller."""
    _dbg_crypt(op, decrypt=True)


def dbg_encrypt(op: SevOp) -> None:
    """KVM_SEV_DBG_ENCRYPT: ordinary memory of the caller into private memory."""
    _dbg_crypt(op, decrypt=False)


def _dbg_crypt(op: SevOp, *, decrypt: bool) -> None:
    op.require_sev()
    request = DbgRequest.of(op, decrypt=decrypt)
    if op.generation == "old":
        dbg_crypt_old.dbg_crypt(op, request)
        return
    if not request.nbytes or not request.src or not request.dst:
        raise Errno(errno.EINVAL)
    if request.src + request.nbytes >= ADDRESS_END or request.dst + request.nbytes >= ADDRESS_END:
        raise Errno(errno.EINVAL)
    require_memlock(op)
    while request.nbytes:
        request = request.rest(_piece(op, request))


def _piece(op: SevOp, request: DbgRequest) -> int:
    """Carry out the next piece; returns its length."""
    src, dst = request.src, request.dst
    nbytes = min(request.nbytes, PAGE_NBYTES - (src & PAGE_MASK), PAGE_NBYTES - (dst & PAGE_MASK))
    if request.direct(nbytes) and request.same_offset:
        return aligned_run(op, request)
    source = op.pin_some(src, nbytes, write=False)
    target = op.pin_some(dst, nbytes, write=True)
    if request.decrypt and request.direct(nbytes):
        data = op.load(src, nbytes)
        key_for(op, True, source.spa, target.spa, nbytes).decrypt_into(source.spa, data, data)
        op.store(dst, data)
    elif request.decrypt:
        before, length = _blocks(src, nbytes)
        plain = _bounce(op, src - before, source.spa - before, length)
        op.store(dst, plain[before : before + nbytes])
    elif request.direct(nbytes):
        _encrypt(op, op.load(src, nbytes), dst, target.spa)
    else:
        before, length = _blocks(dst, nbytes)
        plain = _bounce(op, dst - before, target.spa - before, length)
        plain[before : before + nbytes] = op.copy_from_user(src, nbytes)
        _encrypt(op, plain, dst - before, target.spa - before)
    op.record.pages += 1
    return nbytes


def _blocks(address: int, nbytes: int) -> tuple[int, int]:
    """The whole blocks around a range inside one page: bytes before it, and their length."""
    before = address & BLOCK_MASK
    return before, (before + nbytes + BLOCK_MASK) & ~BLOCK_MASK


def _bounce(op: SevOp, hva: int, spa: int, nbytes: int) -> memoryview:
    """Whole blocks, decrypted into a buffer of the kernel's own."""
    data = op.load(hva, nbytes)
    key_for(op, True, spa, 0, nbytes).decrypt_into(spa, data, data)
    return data


def _encrypt(op: SevOp, data: memoryview, dst: int, dst_spa: int) -> None:
    key_for(op, False, 0, dst_spa, len(data)).encrypt_into(dst_spa, data, data)
    op.store(dst, data)
