"""KVM_SEV_DBG_DECRYPT and _ENCRYPT as the kernel's 2026 rewrite carries them out (sev_dbg_crypt, Linux 7.2).

One firmware command for each piece that stays inside one source page and one destination page. Pieces that need
no bounce buffer and lie contiguously are carried out together, which nobody can tell but by the speed; they are
counted one by one.
"""

from __future__ import annotations

import errno
from typing import Final

from sevkvm.abi.sev import BLOCK_NBYTES, DBG_NBYTES, unpack_dbg
from sevkvm.abi.x86 import PAGE_MASK, PAGE_NBYTES
from sevkvm.shim.sev_op import Errno, SevOp

_ADDRESS_END: Final = 1 << 64
_BLOCK_MASK: Final = BLOCK_NBYTES - 1


def dbg_decrypt(op: SevOp) -> None:
    """KVM_SEV_DBG_DECRYPT: plaintext of private memory into ordinary memory of the caller."""
    _dbg_crypt(op, decrypt=True)


def dbg_encrypt(op: SevOp) -> None:
    """KVM_SEV_DBG_ENCRYPT: ordinary memory of the caller into private memory."""
    _dbg_crypt(op, decrypt=False)


def _dbg_crypt(op: SevOp, *, decrypt: bool) -> None:
    op.require_sev()
    src, dst, nbytes = unpack_dbg(op.copy_from_user(op.data, DBG_NBYTES))
    op.record.args.update(src=src, dst=dst, nbytes=nbytes)
    if not nbytes or not src or not dst:
        raise Errno(errno.EINVAL)
    if src + nbytes > _ADDRESS_END or dst + nbytes > _ADDRESS_END:
        raise Errno(errno.EINVAL)
    done = 0
    while done < nbytes:
        done += _piece(op, src + done, dst + done, nbytes - done, decrypt)


def _piece(op: SevOp, src: int, dst: int, left: int, decrypt: bool) -> int:
    """Carry out the next piece; returns its length."""
    nbytes_max = min(left, PAGE_NBYTES - (src & PAGE_MASK), PAGE_NBYTES - (dst & PAGE_MASK))
    direct = (src | dst | nbytes_max) & _BLOCK_MASK == 0
    if direct and (src ^ dst) & PAGE_MASK == 0:
        nbytes_max = max(nbytes_max, _run(src, left, len(op.room)))
    source = op.pin_some(src, nbytes_max, write=False)
    target = op.pin_some(dst, nbytes_max, write=True)
    nbytes = min(nbytes_max, source.nbytes, target.nbytes)
    npages = (src % PAGE_NBYTES + nbytes + PAGE_MASK) // PAGE_NBYTES
    if direct and decrypt:
        _decrypt(op, src, source.spa, dst, nbytes, npages)
    elif direct:
        data = op.load(src, nbytes)
        _encrypt(op, data, dst, target.spa, npages)
    elif decrypt:
        _decrypt_slow(op, src, source.spa, dst, nbytes)
    else:
        _encrypt_slow(op, src, dst, target.spa, nbytes)
    op.record.pages += npages
    return nbytes


def _run(src: int, left: int, room: int) -> int:
    """How far direct pieces follow each other: to the end if that is one too, else to a page border."""
    if left <= room and not left & _BLOCK_MASK:
        return left
    nbytes = min(left, room)
    return nbytes - (src + nbytes & PAGE_MASK)


def _decrypt(op: SevOp, src: int, src_spa: int, dst: int, nbytes: int, npages: int) -> None:
    data = op.load(src, nbytes)
    cipher = op.issue(
        lambda: op.firmware.dbg("DBG_DECRYPT", op.vm.handle, src_spa, dst & PAGE_MASK, nbytes, npages)
    )
    cipher.decrypt_into(src_spa, data, data)
    op.store(dst, data)


def _encrypt(op: SevOp, data: memoryview, dst: int, dst_spa: int, npages: int) -> None:
    cipher = op.issue(lambda: op.firmware.dbg("DBG_ENCRYPT", op.vm.handle, 0, dst_spa, len(data), npages))
    cipher.encrypt_into(dst_spa, data, data)
    op.store(dst, data)


def _blocks(address: int, nbytes: int) -> tuple[int, int]:
    """The whole blocks around a range inside one page: bytes before it, and their length."""
    before = address & _BLOCK_MASK
    return before, (before + nbytes + _BLOCK_MASK) & ~_BLOCK_MASK


def _decrypt_slow(op: SevOp, src: int, src_spa: int, dst: int, nbytes: int) -> None:
    before, length = _blocks(src, nbytes)
    plain = _bounce(op, src - before, src_spa - before, length)
    op.copy_to_user(dst, bytes(plain[before : before + nbytes]))


def _encrypt_slow(op: SevOp, src: int, dst: int, dst_spa: int, nbytes: int) -> None:
    before, length = _blocks(dst, nbytes)
    plain = _bounce(op, dst - before, dst_spa - before, length)
    plain[before : before + nbytes] = op.copy_from_user(src, nbytes)
    _encrypt(op, plain, dst - before, dst_spa - before, 1)


def _bounce(op: SevOp, hva: int, spa: int, nbytes: int) -> memoryview:
    """Whole blocks, decrypted into a buffer of the kernel's own."""
    data = op.load(hva, nbytes)
    cipher = op.issue(lambda: op.firmware.dbg("DBG_DECRYPT", op.vm.handle, spa, 0, nbytes))
    cipher.decrypt_into(spa, data, data)
    return data
