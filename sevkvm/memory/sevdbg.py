"""Plaintext of private pages through KVM_SEV_DBG_DECRYPT. Every alignment rule lives here.

The rules that make old and new kernels behave alike (Linux arch/x86/kvm/svm/sev.c, 5.11 to 7.2): source and
destination at equal page offsets, whole 16-byte blocks, a destination page that nobody else uses. The kernel
holds ``kvm->lock`` and sends one firmware command a page for as long as one ioctl lasts, so requests are cut into
chunks that take about ``LOCK_TARGET_NS``.
"""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sevkvm import errors
from sevkvm.abi.sev import BLOCK_NBYTES, FwStatus
from sevkvm.abi.x86 import PAGE_MASK, PAGE_NBYTES

if TYPE_CHECKING:
    from sevkvm.host.kvm import VmFd

LOCK_TARGET_NS: Final = 10_000_000
_FIRST_CHUNK_NBYTES: Final = 16 * PAGE_NBYTES

# A page that cannot be pinned, or that the firmware will not read, is a hole; anything else is an error.
_HOLE_ERRNOS: Final = frozenset({errno.ENOMEM, errno.EFAULT, errno.EINVAL})
_HOLE_STATUSES: Final = frozenset(
    {FwStatus.INVALID_ADDRESS, FwStatus.INVALID_PAGE_STATE, FwStatus.INVALID_PAGE_OWNER}
)


@dataclass
class DecryptCounters:
    """What decryption cost: ``commands`` are firmware commands, one a page touched."""

    commands: int = 0
    ioctls: int = 0
    nbytes: int = 0


def pages_touched(address: int, nbytes: int) -> int:
    """How many 4 KiB pages ``[address, address + nbytes)`` touches: the firmware commands it costs."""
    return ((address + nbytes + PAGE_MASK) >> 12) - (address >> 12) if nbytes else 0


class SevDbgSource:
    """A MemorySource that has the firmware decrypt into the port's scratch area."""

    def __init__(self, vm: VmFd) -> None:
        self._vm = vm
        self._port = vm.port
        self._chunk_nbytes = min(_FIRST_CHUNK_NBYTES, vm.port.scratch_nbytes)
        self.counters = DecryptCounters()
        self.reason = ""
        """Why the last short read was short."""

    def readinto(self, gpa: int, hva: int, buffer: memoryview) -> int:
        """Decrypt guest memory at ``hva``; the short-read rule. FirmwareError where the firmware refuses."""
        done = 0
        while done < len(buffer):
            at = hva + done
            start = at & ~(BLOCK_NBYTES - 1)
            room = self._chunk_nbytes - (start & PAGE_MASK)
            end = min(start + room, -(-(hva + len(buffer)) // BLOCK_NBYTES) * BLOCK_NBYTES)
            if not self._decrypt(start, end - start):
                if (end - 1) >> 12 == start >> 12:
                    return done
                # Some page of this chunk: come closer from below. What was done stays done, but uncounted.
                self._chunk_nbytes = max(PAGE_NBYTES, self._chunk_nbytes // 2 & ~PAGE_MASK)
                continue
            piece = buffer[done : done + (end - at)]
            got = self._port.readinto(self._port.scratch_hva + (at & PAGE_MASK), piece)
            if got < len(piece):
                raise errors.TargetGone("the scratch area in the VMM has vanished", pid=self._port.pid)
            done += got
        return done

    def _decrypt(self, src_hva: int, nbytes: int) -> bool:
        """One ioctl into the scratch area, at the same page offset; False for a hole."""
        counters = self.counters
        counters.ioctls += 1
        counters.commands += pages_touched(src_hva, nbytes)
        began = time.monotonic_ns()
        try:
            self._vm.sev_dbg_decrypt(src_hva, self._port.scratch_hva + (src_hva & PAGE_MASK), nbytes)
        except errors.FirmwareError as error:
            if error.status not in _HOLE_STATUSES:
                raise
            self.reason = error.message
            return False
        except errors.IoctlError as error:
            if error.errno not in _HOLE_ERRNOS:
                raise
            self.reason = error.message
            return False
        counters.nbytes += nbytes
        self._adapt(nbytes, time.monotonic_ns() - began)
        return True

    def _adapt(self, nbytes: int, took_ns: int) -> None:
        """Let the next chunk take about as long as the lock may be held."""
        if took_ns > LOCK_TARGET_NS:
            wanted = nbytes * LOCK_TARGET_NS // took_ns
        elif nbytes >= self._chunk_nbytes // 2 and took_ns < LOCK_TARGET_NS // 2:
            wanted = self._chunk_nbytes * 2
        else:
            return
        self._chunk_nbytes = max(PAGE_NBYTES, min(wanted & ~PAGE_MASK, self._port.scratch_nbytes))
