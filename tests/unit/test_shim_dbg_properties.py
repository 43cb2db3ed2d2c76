"""Sequences of debug commands against a model of their own: every byte of both memories, in both generations.

The model knows nothing of ciphers, pins or bounce buffers: two arrays of bytes, and what section 1.2 of the facts
about kernels says about them. tests/unit/test_shim_generations.py names the mistakes; here they are predicted.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sevkvm import errors
from sevkvm.abi import sev
from sevkvm.shim.generation import Generation
from sevkvm.shim.kernel import Kernel
from sevkvm.shim.port import FakePort, launch_guest
from sevkvm.shim.sev_op import KernelCorrupted

PAGE = 4096
BLOCK = 16
NPAGES = 4
NBYTES = NPAGES * PAGE
STALE = 0x5A  # what an unfilled bounce page holds on the pretend host
RAM = bytes((13 * n + n // 241) & 0xFF for n in range(NBYTES))
ORDINARY = bytes((5 * n + n // 239 + 99) & 0xFF for n in range(NBYTES))


@dataclass(frozen=True)
class Request:
    """From ``src`` of one memory to ``dst`` of the other: ``decrypt`` is out of the guest."""

    decrypt: bool
    src: int
    dst: int
    nbytes: int


class HeapOverflow(Exception):
    """The old kernel writes past a page of its own."""


@dataclass
class Model:
    """The guest's memory in plaintext, and ordinary memory of the VMM; each is one mapping of NPAGES."""

    generation: Generation
    guest: bytearray = field(default_factory=lambda: bytearray(RAM))
    ordinary: bytearray = field(default_factory=lambda: bytearray(ORDINARY))

    def carry_out(self, request: Request) -> None:
        """A request, cut into pieces as the generation does."""
        done = 0
        while done < request.nbytes:
            src, dst = request.src + done, request.dst + done
            nbytes = min(request.nbytes - done, PAGE - src % PAGE)
            if self.generation == "new":
                nbytes = min(nbytes, PAGE - dst % PAGE)
                source, target = self._sides(request.decrypt)
                target[dst : dst + nbytes] = source[src : src + nbytes]
            elif request.decrypt:
                self._old_decrypt(src, dst, nbytes)
            else:
                self._old_encrypt(src, dst, nbytes)
            done += nbytes

    def _sides(self, decrypt: bool) -> tuple[bytearray, bytearray]:
        return (self.guest, self.ordinary) if decrypt else (self.ordinary, self.guest)

    def _old_decrypt(self, src: int, dst: int, nbytes: int) -> None:
        if src % BLOCK == dst % BLOCK == nbytes % BLOCK == 0:
            for at, start, length in physical(dst, nbytes):
                self.ordinary[at : at + length] = self.guest[src + start : src + start + length]
            return
        first = src - src % BLOCK
        bounce = self.guest[first : first + rounded(nbytes)] + bytes([STALE]) * BLOCK
        self.ordinary[dst : dst + nbytes] = bounce[src % BLOCK :][:nbytes]

    def _old_encrypt(self, src: int, dst: int, nbytes: int) -> None:
        data = self.ordinary[src : src + nbytes]
        first, before = dst - dst % BLOCK, dst % BLOCK
        if before or nbytes % BLOCK:
            if before + nbytes > PAGE:
                raise HeapOverflow
            merged = bytearray(rounded(nbytes))
            for at, start, length in physical(first, len(merged)):
                merged[start : start + length] = self.guest[at : at + length]
            merged[before : before + nbytes] = data
            data = merged[: rounded(nbytes)]
        for at, start, length in physical(first, len(data)):
            self.guest[at : at + length] = data[start : start + length]


def rounded(nbytes: int) -> int:
    """Up to whole blocks."""
    return -(-nbytes // BLOCK) * BLOCK


def physical(at: int, nbytes: int) -> list[tuple[int, int, int]]:
    """A physical range as (offset in the mapping, offset in the range, length).

    The page frames of a mapping descend: behind a page lies the one in front of it, and behind the first one nothing.
    """
    room = PAGE - at % PAGE
    pieces = [(at, 0, min(nbytes, room))]
    if nbytes > room and at >= PAGE:
        pieces.append((at // PAGE * PAGE - PAGE, room, nbytes - room))
    return pieces


ALIGNED = st.integers(0, 2 * PAGE // BLOCK - 1).map(lambda n: n * BLOCK)
NEAR_BORDERS = st.builds(lambda page, off: page * PAGE + off, st.integers(1, 2), st.integers(-40, -1))
OFFSETS = st.one_of(st.integers(0, 2 * PAGE - 1), ALIGNED, NEAR_BORDERS, st.sampled_from([0, PAGE]))
LENGTHS = st.one_of(
    st.integers(1, 48),
    st.integers(1, 2 * PAGE),
    st.integers(1, 2 * PAGE // BLOCK).map(lambda n: n * BLOCK),
    st.builds(lambda npages, more: npages * PAGE + more, st.integers(1, 2), st.integers(-33, 0)),
)
REQUESTS = st.lists(
    st.builds(Request, st.booleans(), OFFSETS, OFFSETS, LENGTHS),
    min_size=1,
    max_size=4,
)


class Pretended:
    """The same two memories on the pretend host."""

    def __init__(self, generation: Generation) -> None:
        self._made = launch_guest({0: RAM}, port=FakePort(kernel=Kernel(generation=generation)))
        self._port = self._made.port
        self._guest = self._made.hva(0)
        self._ordinary = self._port.map(ORDINARY).hva
        self._out = self._port.map(NBYTES).hva

    def carry_out(self, request: Request) -> None:
        """The request, which must succeed."""
        guest, ordinary = self._guest, self._ordinary
        if request.decrypt:
            self._issue(sev.SevCmd.DBG_DECRYPT, guest + request.src, ordinary + request.dst, request.nbytes)
        else:
            self._issue(sev.SevCmd.DBG_ENCRYPT, ordinary + request.src, guest + request.dst, request.nbytes)
        assert self._port.sev_error() == 0

    def _issue(self, command: int, src: int, dst: int, nbytes: int) -> None:
        self._port.sev_op(self._made.vm_fd, command, sev.pack_dbg(src, dst, nbytes))

    @property
    def stored(self) -> bytes:
        """The guest's memory as the host sees it."""
        return self._port.read(self._guest, NBYTES)

    @property
    def guest(self) -> bytes:
        """The guest's memory in plaintext, by whole pages, which no generation gets wrong."""
        self._issue(sev.SevCmd.DBG_DECRYPT, self._guest, self._out, NBYTES)
        return self._port.read(self._out, NBYTES)

    @property
    def ordinary(self) -> bytes:
        """The other memory."""
        return self._port.read(self._ordinary, NBYTES)


def follow(generation: Generation, requests: list[Request]) -> None:
    model, pretended = Model(generation), Pretended(generation)
    for request in requests:
        before, stored = bytes(model.guest), pretended.stored
        try:
            model.carry_out(request)
        except HeapOverflow:
            with pytest.raises(KernelCorrupted):
                pretended.carry_out(request)
            return
        pretended.carry_out(request)
        assert pretended.ordinary == model.ordinary
        assert pretended.guest == model.guest
        # the same plaintext at the same place is the same ciphertext; any other is another
        after = pretended.stored
        for at in range(0, NBYTES, BLOCK):
            block = slice(at, at + BLOCK)
            assert (stored[block] == after[block]) == (before[block] == model.guest[block])


@settings(max_examples=120, deadline=None)
@given(requests=REQUESTS)
def test_new_is_a_memcpy_through_the_cipher(requests: list[Request]) -> None:
    follow("new", requests)


@settings(max_examples=120, deadline=None)
@given(requests=REQUESTS)
def test_old_differs_exactly_where_it_is_known_to(requests: list[Request]) -> None:
    follow("old", requests)


@settings(max_examples=60, deadline=None)
@given(request=st.builds(Request, st.booleans(), OFFSETS, OFFSETS, LENGTHS), cut=st.integers(1, NPAGES - 1))
def test_a_page_that_is_missing_ends_a_request_and_what_came_before_stays_done(
    request: Request, cut: int
) -> None:
    """The source is cut short: in the new generation that is a memcpy up to the missing page."""
    port = FakePort(kernel=Kernel(generation="new"))
    guest = launch_guest({0: RAM[: cut * PAGE] if request.decrypt else RAM}, port=port)
    ordinary = port.map(ORDINARY if request.decrypt else ORDINARY[: cut * PAGE]).hva
    out = port.map(NBYTES).hva
    src, dst = (guest.hva(0), ordinary) if request.decrypt else (ordinary, guest.hva(0))
    command = sev.SevCmd.DBG_DECRYPT if request.decrypt else sev.SevCmd.DBG_ENCRYPT
    data = sev.pack_dbg(src + request.src, dst + request.dst, request.nbytes)
    missing = request.src + request.nbytes > cut * PAGE
    if missing:
        with pytest.raises(errors.IoctlError) as refused:
            port.sev_op(guest.vm_fd, command, data)
        assert refused.value.errno == errno.ENOMEM
        assert port.sev_error() == (0 if request.src < cut * PAGE else sev.SEV_RET_NO_FW_CALL)
    else:
        port.sev_op(guest.vm_fd, command, data)
    there = max(0, min(request.nbytes, cut * PAGE - request.src))
    if request.decrypt:
        source, before, after = RAM, ORDINARY, port.read(ordinary, NBYTES)
    else:
        port.sev_op(guest.vm_fd, sev.SevCmd.DBG_DECRYPT, sev.pack_dbg(guest.hva(0), out, NBYTES))
        source, before, after = ORDINARY, RAM, port.read(out, NBYTES)
    expected = bytearray(before)
    expected[request.dst : request.dst + there] = source[request.src : request.src + there]
    assert after == expected
