"""How long a guest stands still for a listing."""

from contextlib import contextmanager

import pytest

from sevkvm.cli import listing_standing
from sevkvm.cli.listing_standing import SLOW_READER, Standing


class Guest:
    """Knows whether it is held when its tables are read."""

    def __init__(self) -> None:
        self.standing = False
        self.reads = []
        self.memory = self

    @contextmanager
    def held(self):
        assert not self.standing
        self.standing = True
        try:
            yield
        finally:
            self.standing = False

    def read_tables(self, gpas, *, keep=True):
        self.reads.append((list(gpas), keep, self.standing))
        return [b"table"] * len(gpas)


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(listing_standing.time, "monotonic", lambda: now[0])
    return now


def test_it_stands_still_until_it_is_left(clock):
    guest = Guest()
    with Standing(guest, 1.0) as standing:
        assert guest.standing
        clock[0] += 0.9
        assert standing.read_tables([0x1000, 0x2000], keep=False) == [b"table"] * 2
        standing.mark(0x5000)
    assert not guest.standing
    assert guest.reads == [([0x1000, 0x2000], False, True)]
    assert (standing.reason, standing.since) == (None, None)


def test_it_is_let_go_before_a_table_is_read_too_late(clock):
    guest = Guest()
    with Standing(guest, 1.0) as standing:
        standing.read_tables([1])
        standing.mark(0x5000)
        clock[0] += 1.0
        standing.read_tables([2])
        assert standing.since is None  # nothing has been listed since
        standing.mark(0x6000)
        standing.mark(0x7000)
    assert [held for _, _, held in guest.reads] == [True, False]
    assert standing.since == 0x6000
    assert "1 s (--hold)" in standing.reason


def test_it_is_let_go_for_a_slow_reader_once(clock):
    guest = Guest()
    with Standing(guest, 1.0) as standing:
        standing.let_go(SLOW_READER)
        assert not guest.standing
        clock[0] += 5
        standing.check()
        standing.let_go("another reason")
    assert standing.reason == SLOW_READER


def test_live_never_holds(clock):
    guest = Guest()
    with Standing(guest, None) as standing:
        assert not guest.standing
        clock[0] += 1000
        standing.read_tables([1])
        standing.let_go(SLOW_READER)
        standing.mark(0x1000)
    assert (standing.reason, standing.since) == (None, None)


def test_an_error_lets_it_go(clock):
    guest = Guest()
    with pytest.raises(LookupError), Standing(guest, 1.0):
        raise LookupError
    assert not guest.standing
