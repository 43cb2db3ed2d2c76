"""The debug commands of both kernels: "new" is a memcpy through the cipher, "old" errs where it is known to."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sevkvm import errors
from sevkvm.abi import sev
from sevkvm.abi.kvm import KVM_MEMORY_ENCRYPT_REG_REGION
from sevkvm.abi.policybits import POLICY_NODBG
from sevkvm.shim.dbg_crypt_old import STALE
from sevkvm.shim.generation import Generation
from sevkvm.shim.kernel import Kernel
from sevkvm.shim.port import FakeGuest, FakePort, launch_guest
from sevkvm.shim.sev_op import KernelCorrupted

PAGE = 4096
NPAGES = 4
NBYTES = NPAGES * PAGE
RAM = bytes((7 * n + n // 251) & 0xFF for n in range(NBYTES))
OLD, NEW = "old", "new"


def launch(generation: Generation) -> FakeGuest:
    guest = launch_guest({0: RAM}, port=FakePort(kernel=Kernel(generation=generation)))
    assert guest.port.scratch_nbytes >= 2 * NBYTES
    return guest


def crypt(guest: FakeGuest, command: int, src: int, dst: int, nbytes: int) -> int:
    """The errno of a debug command, 0 for success."""
    try:
        guest.port.sev_op(guest.vm_fd, command, sev.pack_dbg(src, dst, nbytes))
    except errors.IoctlError as error:
        return error.errno
    return 0


def notes(guest: FakeGuest) -> list[str]:
    return guest.port.kernel.log.records[-1].notes


def plaintext(guest: FakeGuest) -> bytes:
    """All of the guest's RAM, decrypted page by page: the way that is right on every kernel."""
    out = guest.port.scratch_hva + NBYTES
    assert crypt(guest, sev.SevCmd.DBG_DECRYPT, guest.hva(0), out, NBYTES) == 0
    return guest.port.read(out, NBYTES)


def pieces(src: int, nbytes: int) -> list[tuple[int, int]]:
    """(start, length) of what lies in each source page."""
    found, done = [], 0
    while done < nbytes:
        length = min(nbytes - done, PAGE - (src + done) % PAGE)
        found.append((done, length))
        done += length
    return found


def decrypt_errs(src: int, dst: int, nbytes: int) -> set[str]:
    """What kernel.md says goes wrong with a DECRYPT on an old kernel."""
    wrong = set()
    for start, length in pieces(src, nbytes):
        s, d = src + start, dst + start
        if s % 16 or d % 16 or length % 16:
            if s % 16 + length > -(-length // 16) * 16:
                wrong.add("wrong offset")
        elif d % PAGE + length > PAGE:
            wrong.add("page overflow")
    return wrong


def encrypt_errs(src: int, dst: int, nbytes: int) -> set[str]:
    """The same for an ENCRYPT."""
    wrong = set()
    for start, length in pieces(src, nbytes):
        d = dst + start
        rounded = -(-length // 16) * 16
        if d % 16 + length > PAGE:
            wrong.add("heap overflow")
        if d % 16 + length > rounded:
            wrong.add("dropped tail")
        if d % PAGE // 16 * 16 + rounded > PAGE:
            wrong.add("page overflow")
    return wrong


OFFSETS = st.one_of(
    st.integers(0, 2 * PAGE - 1),
    st.sampled_from([0, 16, 4080, 4096]),
    st.integers(0, 511).map(lambda n: n * 16),
)
LENGTHS = st.one_of(st.integers(1, 2 * PAGE), st.integers(1, 80), st.integers(1, 512).map(lambda n: n * 16))


@settings(max_examples=150, deadline=None)
@given(src=OFFSETS, dst=OFFSETS, nbytes=LENGTHS)
def test_decrypt_is_a_memcpy_through_the_cipher_and_errs_only_on_old_kernels(
    src: int, dst: int, nbytes: int
) -> None:
    expected = RAM[src : src + nbytes]
    for generation in (NEW, OLD):
        guest = launch(generation)
        port = guest.port
        before = bytes(range(256)) * (NBYTES // 256)
        port.write(port.scratch_hva, before)
        assert crypt(guest, sev.SevCmd.DBG_DECRYPT, guest.hva(src), port.scratch_hva + dst, nbytes) == 0
        told = {note.partition(":")[0] for note in notes(guest)}
        after = port.read(port.scratch_hva, NBYTES)
        right = after == before[:dst] + expected + before[dst + nbytes :]
        if generation == NEW:
            assert right
            assert not told
        else:
            assert told == decrypt_errs(src, dst, nbytes)
            assert right == (not told)


@settings(max_examples=150, deadline=None)
@given(src=OFFSETS, dst=OFFSETS, nbytes=LENGTHS)
def test_encrypt_is_a_memcpy_through_the_cipher_and_errs_only_on_old_kernels(
    src: int, dst: int, nbytes: int
) -> None:
    # differs from what is there in every byte: a dropped one must show
    text = bytes(byte ^ 0xFF for byte in RAM[dst : dst + nbytes])
    for generation in (NEW, OLD):
        guest = launch(generation)
        port = guest.port
        port.write(port.scratch_hva + src, text)
        wrong = encrypt_errs(src, dst, nbytes) if generation == OLD else set()
        try:
            assert crypt(guest, sev.SevCmd.DBG_ENCRYPT, port.scratch_hva + src, guest.hva(dst), nbytes) == 0
        except KernelCorrupted:
            assert "heap overflow" in wrong
            continue
        assert "heap overflow" not in wrong
        assert {note.partition(":")[0] for note in notes(guest)} == wrong
        right = plaintext(guest) == RAM[:dst] + text + RAM[dst + nbytes :]
        assert right == (not wrong)


def test_an_old_page_overflow_hits_the_frame_in_front() -> None:
    guest = launch(OLD)
    port = guest.port
    port.write(port.scratch_hva, bytes(3 * PAGE))
    dst = port.scratch_hva + 2 * PAGE - 32
    assert crypt(guest, sev.SevCmd.DBG_DECRYPT, guest.hva(0), dst, 64) == 0
    assert port.read(dst, 32) == RAM[:32]
    assert port.read(dst + 32, 32) == bytes(32)  # where it belonged
    assert port.read(port.scratch_hva, 32) == RAM[32:64]  # where it went: the next physical page


def test_an_old_encrypt_overflows_into_guest_memory_too() -> None:
    guest = launch(OLD)
    port = guest.port
    port.write(port.scratch_hva, b"B" * 64)
    assert crypt(guest, sev.SevCmd.DBG_ENCRYPT, port.scratch_hva, guest.hva(2 * PAGE - 32), 64) == 0
    after = plaintext(guest)
    assert after[2 * PAGE - 32 : 2 * PAGE + 32] == b"B" * 32 + RAM[2 * PAGE : 2 * PAGE + 32]
    assert after[:32] == b"B" * 32
    assert after[32 : 2 * PAGE - 32] == RAM[32 : 2 * PAGE - 32]


def test_the_dropped_tail_of_the_kernels_own_commit_message() -> None:
    for generation, written in ((OLD, 8), (NEW, 9)):
        guest = launch(generation)
        guest.port.write(guest.port.scratch_hva, b"C" * 9)
        assert crypt(guest, sev.SevCmd.DBG_ENCRYPT, guest.port.scratch_hva, guest.hva(8), 9) == 0
        assert plaintext(guest)[:32] == RAM[:8] + b"C" * written + RAM[8 + written : 32]


def test_the_wrong_offset_leaves_stale_bytes() -> None:
    guest = launch(OLD)
    port = guest.port
    assert crypt(guest, sev.SevCmd.DBG_DECRYPT, guest.hva(15), port.scratch_hva, 16) == 0
    assert port.read(port.scratch_hva, 16) == RAM[15:16] + bytes([STALE]) * 15


def test_a_full_page_at_an_odd_place_overflows_the_old_kernels_heap() -> None:
    guest = launch(OLD)
    with pytest.raises(KernelCorrupted, match="4104 bytes"):
        crypt(guest, sev.SevCmd.DBG_ENCRYPT, guest.port.scratch_hva, guest.hva(8), PAGE)
    guest = launch_guest({0: RAM}, policy=POLICY_NODBG, port=FakePort(kernel=Kernel(generation=OLD)))
    # the firmware's refusal comes first
    assert crypt(guest, sev.SevCmd.DBG_ENCRYPT, guest.port.scratch_hva, guest.hva(8), PAGE) == errno.EIO


TOP = (1 << 64) - PAGE


@pytest.mark.parametrize(
    ("src", "dst", "nbytes", "old", "new"),
    [
        (None, None, 0, errno.EINVAL, errno.EINVAL),
        (TOP, None, PAGE, errno.EINVAL, errno.EINVAL),
        (TOP, None, 2 * PAGE, errno.EINVAL, errno.EINVAL),
        (None, 0, 16, errno.EINVAL, errno.EINVAL),
        (0, None, 16, errno.ENOMEM, errno.EINVAL),
        (None, TOP, 2 * PAGE, errno.ENOMEM, errno.EINVAL),
        (None, TOP, 16, errno.ENOMEM, errno.ENOMEM),
        (TOP, None, 16, errno.ENOMEM, errno.ENOMEM),
    ],
)
def test_what_is_refused_before_the_firmware(
    src: int | None, dst: int | None, nbytes: int, old: int, new: int
) -> None:
    for generation, expected in ((OLD, old), (NEW, new)):
        guest = launch(generation)
        port = guest.port
        from_hva = guest.hva(0) if src is None else src
        to_hva = port.scratch_hva if dst is None else dst
        assert crypt(guest, sev.SevCmd.DBG_DECRYPT, from_hva, to_hva, nbytes) == expected
        assert port.sev_error() == sev.SEV_RET_NO_FW_CALL


@pytest.mark.parametrize("generation", [OLD, NEW])
def test_a_hole_ends_it_and_what_was_done_stays_done(generation: Generation) -> None:
    guest = launch(generation)
    port = guest.port
    end = guest.hva(0) + NBYTES
    assert crypt(guest, sev.SevCmd.DBG_DECRYPT, end - PAGE, port.scratch_hva, 2 * PAGE) == errno.ENOMEM
    assert port.read(port.scratch_hva, PAGE) == RAM[-PAGE:]
    assert port.sev_error() == 0
    frozen = port.map(PAGE, writable=False)
    assert crypt(guest, sev.SevCmd.DBG_DECRYPT, guest.hva(0), frozen.hva, 16) == errno.ENOMEM


@pytest.mark.parametrize("generation", [OLD, NEW])
def test_rlimit_memlock_counts_registered_regions_and_one_page_of_either_side(generation: Generation) -> None:
    guest = launch(generation)
    port = guest.port
    port.memlock_nbytes = (NPAGES + 2) * PAGE

    def decrypt() -> int:
        return crypt(guest, sev.SevCmd.DBG_DECRYPT, guest.hva(0), port.scratch_hva, NBYTES)

    assert decrypt() == 0
    region = guest.hva(0).to_bytes(8, "little") + NBYTES.to_bytes(8, "little")
    port.write(port.args_hva, region)
    port.ioctl(guest.vm_fd, KVM_MEMORY_ENCRYPT_REG_REGION, port.args_hva)
    assert decrypt() == 0  # to the last page
    port.memlock_nbytes -= 1
    assert decrypt() == errno.ENOMEM
    port.write(port.args_hva, region)
    with pytest.raises(errors.IoctlError) as refused:
        port.ioctl(guest.vm_fd, KVM_MEMORY_ENCRYPT_REG_REGION, port.args_hva)
    assert refused.value.errno == errno.ENOMEM
    port.memlock_nbytes = None
    assert decrypt() == 0
