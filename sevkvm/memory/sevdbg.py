"""Plaintext of private pages through KVM_SEV_DBG_DECRYPT, and back. Every alignment rule lives here.

The rules that make old and new kernels behave alike (Linux arch/x86/kvm/svm/sev.c, 5.11 to 7.2): source and
destination at equal page offsets, whole 16-byte blocks, a destination page that nobody else uses. The kernel
holds ``kvm->lock`` and sends one firmware command a page for as long as one ioctl lasts, so requests are cut into
chunks that take about ``LOCK_TARGET_NS``.
"""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from sevkvm import errors
from sevkvm.abi.sev import BLOCK_NBYTES, FwStatus
from sevkvm.abi.x86 import PAGE_MASK, PAGE_NBYTES
from sevkvm.host.kvm import OUT_OF_REACH

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
    """What decryption cost: ``commands`` are firmware commands, one a page touched; ``encryptions`` as many writes."""

    commands: int = 0
    encryptions: int = 0
    ioctls: int = 0
    nbytes: int = 0


def pages_touched(address: int, nbytes: int) -> int:
    """How many 4 KiB pages ``[address, address + nbytes)`` touches: the firmware commands it costs."""
    return ((address + nbytes + PAGE_MASK) >> 12) - (address >> 12) if nbytes else 0


class _Flight(NamedTuple):
    """A decryption that was submitted: ``[src_hva, end_hva)`` into the scratch area at ``dst_hva``."""

    src_hva: int
    end_hva: int
    dst_hva: int
    began_ns: int


class SevDbgSource:
    """A MemorySource that has the firmware decrypt into the port's scratch area.

    The scratch area has two halves: while one is copied out, and written to a file, the firmware fills the other.
    """

    def __init__(self, vm: VmFd) -> None:
        self._vm = vm
        self._port = vm.port
        self._half_nbytes = vm.port.scratch_nbytes // 2 & ~PAGE_MASK
        self._chunk_nbytes = min(_FIRST_CHUNK_NBYTES, self._half_nbytes)
        self._flight: _Flight | None = None
        self._upper_half = False
        self.counters = DecryptCounters()
        self.reason = ""
        """Why the last short read was short."""

    @property
    def chunk_nbytes(self) -> int:
        """The most that one ioctl is asked for."""
        return self._half_nbytes

    def readinto(self, gpa: int, hva: int, buffer: memoryview, ahead: int = 0) -> int:
        """Decrypt guest memory at ``hva``; the short-read rule. FirmwareError where the firmware refuses.

        ``ahead``: how many bytes after the buffer the caller is going to ask for next, at the next ``hva``; they are
        begun while it works on these. What it then does not ask for was decrypted in vain.
        """
        end = hva + len(buffer)
        at = hva
        if self._port.operand(hva) is None:
            self.reason = OUT_OF_REACH
            return 0
        while at < end:
            flight = self._take(at) or self._submit(at, end)
            if not self._complete(flight):
                if (flight.end_hva - 1) >> 12 == flight.src_hva >> 12:
                    break
                # Some page of this chunk: come closer from below. What was done stays done, but uncounted.
                self._chunk_nbytes = max(PAGE_NBYTES, self._chunk_nbytes // 2 & ~PAGE_MASK)
                continue
            stop = min(flight.end_hva, end)
            if stop < end:
                self._flight = self._submit(stop, end)
            elif ahead and not end & PAGE_MASK:
                self._flight = self._submit(end, end + ahead)
            self._copy_out(flight, at, buffer[at - hva : stop - hva])
            at = stop
        return at - hva

    def write(self, hva: int, data: bytes) -> None:
        """Encrypt whole blocks to ``hva``, inside one page: one firmware command, which does all of it or nothing.

        If we die before the command is issued nothing is written; once it is, it needs us no more. The kernel flushes
        its own view of the page; a line that a processor without coherent encryption still holds may win over us.
        """
        if (hva | len(data)) % BLOCK_NBYTES or pages_touched(hva, len(data)) != 1:
            raise ValueError("private memory is written in whole 16-byte blocks of one page")
        self.settle()
        src_hva = self._port.scratch_hva + (hva & PAGE_MASK)
        self._port.write(src_hva, data)
        self.counters.encryptions += 1
        self._vm.sev_dbg_encrypt_unchecked(src_hva, hva, len(data))

    def settle(self) -> None:
        """Wait for what was begun in advance, and drop it."""
        flight, self._flight = self._flight, None
        if flight is not None:
            self._complete(flight)

    def _take(self, hva: int) -> _Flight | None:
        """What was begun in advance, if it begins there; anything else is waited for and dropped."""
        if self._flight is None or self._flight.src_hva != hva:
            self.settle()
        flight, self._flight = self._flight, None
        return flight

    def _submit(self, hva: int, end: int) -> _Flight:
        """One ioctl into the next half of the scratch area, at the same page offset."""
        start = hva & ~(BLOCK_NBYTES - 1)
        stop = min(start + self._chunk_nbytes - (start & PAGE_MASK), -(-end // BLOCK_NBYTES) * BLOCK_NBYTES)
        half_hva = self._port.scratch_hva + (self._half_nbytes if self._upper_half else 0)
        self._upper_half = not self._upper_half
        flight = _Flight(start, stop, half_hva + (start & PAGE_MASK), time.monotonic_ns())
        self.counters.ioctls += 1
        self.counters.commands += pages_touched(start, stop - start)
        self._vm.submit_sev_dbg_decrypt(start, flight.dst_hva, stop - start)
        return flight

    def _complete(self, flight: _Flight) -> bool:
        """Wait for it; False for a hole."""
        asked_ns = time.monotonic_ns()
        try:
            self._vm.complete_sev_dbg_decrypt()
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
        nbytes = flight.end_hva - flight.src_hva
        self.counters.nbytes += nbytes
        done_ns = time.monotonic_ns()
        took_ns = done_ns - flight.began_ns
        # had it ended long before we asked, we would not know how long it took
        if done_ns - asked_ns >= took_ns // 2:
            self._adapt(nbytes, took_ns)
        return True

    def _copy_out(self, flight: _Flight, hva: int, piece: memoryview) -> None:
        if self._port.readinto(flight.dst_hva + (hva - flight.src_hva), piece) < len(piece):
            raise errors.TargetGone("the scratch area in the VMM has vanished", pid=self._port.pid)

    def _adapt(self, nbytes: int, took_ns: int) -> None:
        """Let the next chunk take about as long as the lock may be held."""
        if took_ns > LOCK_TARGET_NS:
            wanted = nbytes * LOCK_TARGET_NS // took_ns
        elif nbytes >= self._chunk_nbytes // 2 and took_ns < LOCK_TARGET_NS // 2:
            wanted = self._chunk_nbytes * 2
        else:
            return
        self._chunk_nbytes = max(PAGE_NBYTES, min(wanted & ~PAGE_MASK, self._half_nbytes))
