"""The pretend memory cipher: its formula, and the properties that make mistakes visible."""

import os

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from sevkvm.shim.cipher import GuestCipher, HostTweak

KEY = bytes(range(16))
CONSTANTS = bytes((7 * i + i // 16) & 0xFF for i in range(1024))
CIPHER = GuestCipher(HostTweak(CONSTANTS), KEY)

addresses = st.integers(0, 2**60 - 1).map(lambda block: block * 16)
blocks = st.integers(0, 40)


def by_the_formula(spa: int, plaintext: bytes) -> bytes:
    tweak = 0
    for bit in range(4, 64):
        if spa >> bit & 1:
            tweak ^= int.from_bytes(CONSTANTS[16 * bit : 16 * bit + 16], "little")
    whitener = tweak.to_bytes(16, "little")
    aes = Cipher(algorithms.AES(KEY), modes.ECB()).encryptor()
    inner = aes.update(bytes(p ^ t for p, t in zip(plaintext, whitener, strict=True)))
    return bytes(c ^ t for c, t in zip(inner, whitener, strict=True))


@given(addresses, st.binary(min_size=16, max_size=16))
def test_one_block_is_the_documented_formula(spa: int, plaintext: bytes) -> None:
    assert CIPHER.encrypt(spa, plaintext) == by_the_formula(spa, plaintext)


@settings(max_examples=50)
@given(st.integers(0, 2**50).map(lambda block: block * 16), st.integers(1, 600))
def test_every_block_of_a_run_is_enciphered_on_its_own(spa: int, nblocks: int) -> None:
    plaintext = os.urandom(16 * nblocks)
    alone = b"".join(CIPHER.encrypt(spa + 16 * i, plaintext[16 * i : 16 * i + 16]) for i in range(nblocks))
    assert CIPHER.encrypt(spa, plaintext) == alone


@given(addresses, blocks.flatmap(lambda n: st.binary(min_size=16 * n, max_size=16 * n)))
def test_decrypt_undoes_encrypt(spa: int, plaintext: bytes) -> None:
    assert CIPHER.decrypt(spa, CIPHER.encrypt(spa, plaintext)) == plaintext


@given(st.integers(0, 2**40), st.integers(0, 2**40))
def test_moved_ciphertext_is_noise(here: int, there: int) -> None:
    plaintext = bytes(16)
    moved = CIPHER.decrypt(there * 16, CIPHER.encrypt(here * 16, plaintext))
    assert (moved == plaintext) == (here == there)


def test_more_than_one_internal_chunk_in_place() -> None:
    data = bytearray(os.urandom(300 * 1024))
    original = bytes(data)
    CIPHER.encrypt_into(0x1FF0, data, data)
    assert data[200 * 1024 : 200 * 1024 + 16] == by_the_formula(
        0x1FF0 + 200 * 1024, original[200 * 1024 : 200 * 1024 + 16]
    )
    CIPHER.decrypt_into(0x1FF0, data, data)
    assert data == original


def test_hosts_and_guests_differ() -> None:
    tweak = HostTweak()
    one, other = GuestCipher(tweak), GuestCipher(tweak)
    assert one.encrypt(0x1000, bytes(64)) != other.encrypt(0x1000, bytes(64))
    assert GuestCipher(HostTweak(), KEY).encrypt(0x1000, bytes(64)) != CIPHER.encrypt(0x1000, bytes(64))


@pytest.mark.parametrize(("spa", "nbytes"), [(8, 16), (0, 15), (1, 1)])
def test_part_of_a_block_is_refused(spa: int, nbytes: int) -> None:
    with pytest.raises(ValueError, match="whole 16-byte blocks"):
        CIPHER.encrypt(spa, bytes(nbytes))
