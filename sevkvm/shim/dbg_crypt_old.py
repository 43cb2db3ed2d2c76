"""KVM_SEV_DBG_DECRYPT and _ENCRYPT as kernels up to 7.1 carried them out, with all that went wrong silently.

Source: sev_dbg_crypt and its helpers, Linux 5.8 to 7.1. The request is cut at *source* pages only, so:

* page overflow: where the destination lies further into its page than the source, the firmware writes past the
  pinned destination page into the next physical one. Here the page frames of a mapping descend in physical memory,
  so that the page that is hit is the one in front of the destination page, and the page behind it, where the bytes
  belonged, keeps what it held. Bytes that run out of the mapping hit nobody whom we know, and are lost.
* dropped tail: an ENCRYPT that is not made of whole blocks writes back its length rounded up, whatever the offset
  in the first block, so that its last bytes may not be written.
* wrong offset (before 5.11): a DECRYPT that is not made of whole blocks reads its length rounded up, whatever the
  offset, so that its last bytes come out of a buffer that nobody has filled (``STALE`` here).
* heap overflow: an ENCRYPT whose part from one source page, and the offset in its first destination block, exceed
  a page does not fit its bounce page. What a kernel does after that is anybody's guess; here KernelCorrupted.

Everything else is as in the rewrite. Each of these leaves a note in the log.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Final

from sevkvm.abi.x86 import PAGE_MASK, PAGE_NBYTES
from sevkvm.shim.dbg_command import (
    ADDRESS_END,
    BLOCK_MASK,
    DbgRequest,
    aligned_run,
    key_for,
    require_memlock,
)
from sevkvm.shim.sev_op import Errno, KernelCorrupted, SevOp

STALE: Final = 0x5A


def dbg_crypt(op: SevOp, request: DbgRequest) -> None:
    """The whole request; the first error ends it, and what was done before stays done."""
    # a destination that wraps and a source of NULL are not looked at: they fail to be pinned
    if not request.nbytes or request.src + request.nbytes >= ADDRESS_END or not request.dst:
        raise Errno(errno.EINVAL)
    require_memlock(op)
    while request.nbytes:
        request = request.rest(_source_page(op, request))


def _source_page(op: SevOp, request: DbgRequest) -> int:
    """What lies in the first source page; returns its length."""
    src, dst = request.src, request.dst
    nbytes = min(request.nbytes, PAGE_NBYTES - (src & PAGE_MASK))
    if request.direct(nbytes) and request.same_offset:
        return aligned_run(op, request)
    source = op.pin_some(src, nbytes, write=False)
    target = op.pin_some(dst, 1, write=True)
    if not request.decrypt:
        _encrypt(op, request, nbytes, target.spa)
    elif request.direct(nbytes):
        data = op.load(src, nbytes)
        key_for(op, True, source.spa, target.spa, nbytes).decrypt_into(source.spa, data, data)
        for place in _frames(op, dst, target.spa, nbytes):
            place.store(op, data[place.start : place.start + place.nbytes])
    else:
        _decrypt_slow(op, request, nbytes, source.spa)
    op.record.pages += 1
    return nbytes


def _decrypt_slow(op: SevOp, request: DbgRequest, nbytes: int, src_spa: int) -> None:
    before = request.src & BLOCK_MASK
    length = (nbytes + BLOCK_MASK) & ~BLOCK_MASK  # without ``before``: the wrong offset
    plain = bytearray(op.load(request.src - before, length))
    key_for(op, True, src_spa - before, 0, length).decrypt_into(src_spa - before, plain, plain)
    missing = before + nbytes - length
    if missing > 0:
        op.record.note(f"wrong offset: the last {missing} bytes were never decrypted")
        plain += bytes([STALE]) * missing
    op.copy_to_user(request.dst, bytes(plain[before : before + nbytes]))


def _encrypt(op: SevOp, request: DbgRequest, nbytes: int, dst_spa: int) -> None:
    """From the source page, or from a copy of it where it is not made of whole blocks."""
    src, dst = request.src, request.dst
    data = bytearray(op.copy_from_user(src, nbytes) if src & BLOCK_MASK else op.load(src, nbytes))
    before = dst & BLOCK_MASK
    if before or nbytes & BLOCK_MASK:
        data = _merged(op, request, data, dst_spa)
    frames = _frames(op, dst - before, dst_spa - before, len(data))
    key = key_for(op, False, 0, dst_spa - before, len(data))
    for place in frames:
        place.store(op, key.encrypt(place.spa, data[place.start : place.start + place.nbytes]))


def _merged(op: SevOp, request: DbgRequest, data: bytearray, dst_spa: int) -> bytearray:
    """Read, modify: the destination's blocks, decrypted, with ``data`` laid over them."""
    before = request.dst & BLOCK_MASK
    length = (len(data) + BLOCK_MASK) & ~BLOCK_MASK
    key = key_for(op, True, dst_spa - before, 0, length)
    if before + len(data) > PAGE_NBYTES:
        note = f"heap overflow: {before + len(data)} bytes into a bounce buffer of {PAGE_NBYTES}"
        op.record.note(note)
        raise KernelCorrupted(note)
    merged = bytearray()
    for place in _frames(op, request.dst - before, dst_spa - before, length):
        merged += key.decrypt(place.spa, place.load(op))
    kept = data[: length - before]
    if len(kept) < len(data):
        op.record.note(f"dropped tail: the last {len(data) - len(kept)} bytes were not written")
    merged[before : before + len(kept)] = kept
    return merged


@dataclass(frozen=True, slots=True)
class _Frame:
    """Part of a physical range that lies in one page; ``hva`` is None where the frame is nobody's."""

    hva: int | None
    spa: int
    start: int
    nbytes: int

    def load(self, op: SevOp) -> bytearray:
        return bytearray(self.nbytes) if self.hva is None else bytearray(op.load(self.hva, self.nbytes))

    def store(self, op: SevOp, data: bytearray | memoryview) -> None:
        """The firmware writes to memory: no page protection."""
        if self.start:
            op.record.note(f"page overflow: {self.nbytes} bytes written past the destination page")
        if self.hva is not None:
            op.caller.memory.write(self.hva, data)


def _frames(op: SevOp, hva: int, spa: int, nbytes: int) -> list[_Frame]:
    """The physical range that begins at ``hva``, of at most a page: in its page, and in the frame after it."""
    room = PAGE_NBYTES - (hva & PAGE_MASK)
    first = _Frame(hva, spa, 0, min(nbytes, room))
    if nbytes <= room:
        return [first]
    page_hva, page_spa = hva & ~PAGE_MASK, spa & ~PAGE_MASK
    pieces = op.caller.memory.backing(page_hva - PAGE_NBYTES, 2 * PAGE_NBYTES)
    contiguous = len(pieces) == 1 and pieces[0].nbytes == 2 * PAGE_NBYTES
    next_hva = page_hva - PAGE_NBYTES if contiguous else None
    return [first, _Frame(next_hva, page_spa - PAGE_NBYTES & ADDRESS_END - 1, room, nbytes - room)]
