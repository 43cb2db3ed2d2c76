"""Any write, on kernels of both generations and on a guest without encryption: these bytes change and no other."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sevkvm.shim.generation import Generation
from tests.support.written import BASE, BLOCK, PAGE, PLACES, SHARED, WINDOW, Plaintext, SmallGuest, gpa_of

OFFSETS = st.one_of(
    st.integers(0, WINDOW - 1),
    st.integers(0, WINDOW // BLOCK - 1).map(lambda number: number * BLOCK),
    st.builds(lambda page, off: page * PAGE + off, st.integers(1, len(PLACES) - 1), st.integers(-20, 20)),
)
NBYTES = st.one_of(
    st.integers(1, 40), st.integers(1, 3 * PAGE), st.sampled_from([BLOCK, PAGE, 2 * PAGE, WINDOW])
)
DATA = st.binary(min_size=1, max_size=40)


def data_of(nbytes: int, seed: bytes) -> bytes:
    """Bytes that follow from a few random ones, and do not repeat with the blocks."""
    return bytes((seed[at % len(seed)] + at * 11 + at // 251) & 0xFF for at in range(nbytes))


def touched(places: list[int]) -> set[int]:
    """The gpas of the 16-byte blocks these bytes lie in; of the shared page, of each byte alone."""
    return {gpa if gpa & ~(PAGE - 1) == SHARED else gpa & ~(BLOCK - 1) for gpa in places}


def encrypted(small: SmallGuest) -> set[int]:
    """The hvas of all blocks that the kernel was asked to encrypt."""
    asked = [record.args for record in small.kernel.log.records if record.command == "DBG_ENCRYPT"]
    return {hva for args in asked for hva in range(args["dst"], args["dst"] + args["nbytes"], BLOCK)}


def assert_stored_alike_outside(
    before: Plaintext, after: Plaintext, places: list[int], *, private: bool
) -> None:
    """Outside the blocks that were written the host's bytes, ciphertext or not, are as they were."""
    blocks = touched(places) if private else set(places)
    for start, data in before.items():
        for at in range(0, len(data), BLOCK):
            own = blocks.intersection(range(start + at, start + at + BLOCK))
            if not own:
                assert after[start][at : at + BLOCK] == data[at : at + BLOCK], hex(start + at)


@pytest.mark.parametrize("generation", ["old", "new"])
@settings(max_examples=60, deadline=None)
@given(offset=OFFSETS, nbytes=NBYTES, seed=DATA)
# the last page is the first one again: the write ends in a block that it has already changed
@example(offset=100, nbytes=8 * PAGE + 50, seed=b"ab")
@example(offset=8, nbytes=8 * PAGE + 5, seed=b"ab")
def test_a_virtual_write_changes_its_bytes_and_no_other(
    generation: Generation, offset: int, nbytes: int, seed: bytes
) -> None:
    small = SmallGuest(generation)
    data = data_of(min(nbytes, WINDOW - offset), seed)
    before = small.stored()
    plan = small.guest.write_virtual(BASE + offset, data, small.form)
    after = small.stored()
    assert small.plaintext() == small.expect(BASE + offset, data)
    assert small.notes() == []
    places = [gpa_of(BASE + offset + at) for at in range(len(data))]
    assert_stored_alike_outside(before, after, places, private=True)
    private = {gpa & ~(BLOCK - 1) for gpa in places if gpa & ~(PAGE - 1) != SHARED}
    assert encrypted(small) == {small.made.hva(gpa) for gpa in private}
    old = bytes(small.start[0 if gpa < 1 << 32 else 1 << 32][gpa & 0xFFFF_FFFF] for gpa in places)
    assert (plan.nbytes, plan.old) == (len(data), old)


@settings(max_examples=40, deadline=None)
@given(offset=OFFSETS, nbytes=NBYTES, seed=DATA)
def test_the_same_without_encryption(offset: int, nbytes: int, seed: bytes) -> None:
    small = SmallGuest(policy=None)
    data = data_of(min(nbytes, WINDOW - offset), seed)
    small.guest.write_virtual(BASE + offset, data, small.form)
    assert small.plaintext() == small.expect(BASE + offset, data)
    assert small.commands() == {"DBG_DECRYPT": 0, "DBG_ENCRYPT": 0}


@pytest.mark.parametrize("generation", ["old", "new"])
@settings(max_examples=40, deadline=None)
@given(gpa=st.integers(0, 0x3FFF), nbytes=st.integers(1, 0x4000), seed=DATA)
def test_a_physical_write(generation: Generation, gpa: int, nbytes: int, seed: bytes) -> None:
    small = SmallGuest(generation)
    data = data_of(min(nbytes, SHARED - gpa), seed)
    small.guest.write_physical(gpa, data)
    assert small.plaintext() == small.expect_bytes((gpa + at, byte) for at, byte in enumerate(data))
    assert small.notes() == []


@settings(max_examples=40, deadline=None)
@given(offset=OFFSETS, nbytes=NBYTES, seed=DATA)
def test_what_a_write_costs(offset: int, nbytes: int, seed: bytes) -> None:
    """A page: one command to read, one to write, one to read back; the translation is paid for before."""
    small = SmallGuest()
    nbytes = min(nbytes, WINDOW - offset)
    data = data_of(nbytes, seed)
    with small.guest.held():
        list(small.guest.read_virtual(BASE, WINDOW, small.form))
        before = small.commands()
        counted = small.memory.counts()
        small.guest.write_virtual(BASE + offset, data, small.form)
        after = small.commands()
    first, last = offset // PAGE, (offset + nbytes - 1) // PAGE
    pages = sum(PLACES[number] != SHARED for number in range(first, last + 1))
    assert after["DBG_DECRYPT"] - before["DBG_DECRYPT"] == 2 * pages
    assert after["DBG_ENCRYPT"] - before["DBG_ENCRYPT"] == pages
    told = small.memory.counts()
    assert told["write_commands"] - counted["write_commands"] == pages
    assert told["firmware_commands"] - counted["firmware_commands"] == 3 * pages


@settings(max_examples=30, deadline=None)
@given(offset=OFFSETS, nbytes=NBYTES, seed=DATA)
def test_writing_the_old_bytes_back_undoes_it(offset: int, nbytes: int, seed: bytes) -> None:
    small = SmallGuest("old")
    nbytes = min(nbytes, WINDOW - offset)
    before = small.stored()
    plan = small.guest.write_virtual(BASE + offset, data_of(nbytes, seed), small.form)
    small.guest.write_virtual(BASE + offset, plan.old, small.form)
    assert small.stored() == before
