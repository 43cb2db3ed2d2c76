"""The memory cipher of the pretend host: XEX with AES-128, tweaked by system-physical address (SPA).

C = AES(P ^ T(p)) ^ T(p) for every 16-byte block at address p, where T(p) is the XOR of one random constant for
every set bit i >= 4 of p; a key a guest, one set of constants a host. Model: SEV as the literature describes it
for Zen 2 and later (no integrity, no freshness; ciphertext moved to another address decrypts to noise).
"""

from __future__ import annotations

import os
import threading
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from sevkvm.native import ffi, lib

BLOCK_NBYTES: Final = 16
KEY_NBYTES: Final = 16
_CONSTANTS_NBYTES: Final = 64 * BLOCK_NBYTES
_CHUNK_NBYTES: Final = 128 * 1024  # stays in the L2 cache between the three passes

Bytes = bytes | bytearray | memoryview


class HostTweak:
    """The tweak constants of one host: random, or ``constants`` (1,024 bytes) for a repeatable one."""

    def __init__(self, constants: bytes | None = None) -> None:
        constants = os.urandom(_CONSTANTS_NBYTES) if constants is None else constants
        if len(constants) != _CONSTANTS_NBYTES:
            raise ValueError(f"{_CONSTANTS_NBYTES} bytes of tweak constants, not {len(constants)}")
        self._tweak = ffi.new("struct sk_tweak *")
        lib.sk_tweak_init(self._tweak, ffi.from_buffer(constants))

    def xor_into(self, spa: int, data: Bytes, out: bytearray | memoryview) -> None:
        """``out`` = ``data`` XOR the tweak stream from ``spa``; both the same length, whole blocks."""
        nbytes = len(data)
        if (spa | nbytes) % BLOCK_NBYTES or len(out) < nbytes:
            raise ValueError("the cipher works on whole 16-byte blocks at 16-byte addresses")
        lib.sk_tweak_xor(
            self._tweak, spa, ffi.from_buffer(data), ffi.from_buffer(out, require_writable=True), nbytes
        )


class GuestCipher:
    """One guest's key on one host. Threads may share it; calls are serialised."""

    def __init__(self, tweak: HostTweak, key: bytes | None = None) -> None:
        aes = Cipher(algorithms.AES(os.urandom(KEY_NBYTES) if key is None else key), modes.ECB())
        self._tweak = tweak
        # ECB carries nothing from one call to the next, so one context serves for ever
        self._encryptor = aes.encryptor()
        self._decryptor = aes.decryptor()
        self._whitened = bytearray(_CHUNK_NBYTES)
        self._processed = bytearray(_CHUNK_NBYTES + BLOCK_NBYTES - 1)  # update_into wants the slack
        self._lock = threading.Lock()

    def encrypt(self, spa: int, plaintext: Bytes) -> bytearray:
        """What memory holds at ``spa`` after the guest stored ``plaintext`` there with the C-bit set."""
        out = bytearray(len(plaintext))
        self.encrypt_into(spa, plaintext, out)
        return out

    def decrypt(self, spa: int, ciphertext: Bytes) -> bytearray:
        """What the guest reads from ``spa`` with the C-bit set where memory holds ``ciphertext``."""
        out = bytearray(len(ciphertext))
        self.decrypt_into(spa, ciphertext, out)
        return out

    def encrypt_into(self, spa: int, plaintext: Bytes, out: bytearray | memoryview) -> None:
        """As encrypt, into a buffer at least as long, which may be ``plaintext`` itself."""
        self._crypt(self._encryptor, spa, plaintext, out)

    def decrypt_into(self, spa: int, ciphertext: Bytes, out: bytearray | memoryview) -> None:
        """As decrypt, into a buffer at least as long, which may be ``ciphertext`` itself."""
        self._crypt(self._decryptor, spa, ciphertext, out)

    def _crypt(self, aes: CipherContext, spa: int, data: Bytes, out: bytearray | memoryview) -> None:
        source, sink = memoryview(data), memoryview(out)
        with self._lock:
            whitened, processed = memoryview(self._whitened), memoryview(self._processed)
            for start in range(0, len(source), _CHUNK_NBYTES):
                chunk = source[start : start + _CHUNK_NBYTES]
                nbytes = len(chunk)
                self._tweak.xor_into(spa + start, chunk, whitened)
                aes.update_into(whitened[:nbytes], processed[: nbytes + BLOCK_NBYTES - 1])
                self._tweak.xor_into(spa + start, processed[:nbytes], sink[start : start + nbytes])
