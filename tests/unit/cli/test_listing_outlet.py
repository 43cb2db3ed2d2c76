"""The queue between a listing and stdout."""

import errno
import threading

import pytest

from sevkvm.cli.listing_outlet import Outlet

PATIENCE = 20


class Reader:
    """A stdout that takes what it is given when ``open`` is set."""

    def __init__(self, *, opened: bool = True) -> None:
        self.data = b""
        self.open = threading.Event()
        self.entered = threading.Event()
        if opened:
            self.open.set()

    def write(self, data: bytes) -> None:
        self.entered.set()
        assert self.open.wait(PATIENCE)
        self.data += data


def test_everything_is_written_in_order_before_it_is_left():
    reader = Reader()
    chunks = [b"%d," % n * 1000 for n in range(500)]
    with Outlet(reader.write, capacity=10_000) as outlet:
        for chunk in chunks:
            outlet.put(chunk)
    assert reader.data == b"".join(chunks)


def test_there_is_no_room_while_nobody_reads():
    reader = Reader(opened=False)
    with Outlet(reader.write, capacity=10) as outlet:
        assert outlet.has_room(1000)  # one chunk may be larger than the queue
        outlet.put(b"12345678")
        assert reader.entered.wait(PATIENCE)
        assert outlet.has_room(2)
        assert not outlet.has_room(3)
        reader.open.set()
        outlet.put(b"abc")  # returns when the first chunk is gone
        assert reader.data.startswith(b"12345678")
    assert reader.data == b"12345678abc"


def broken(data: bytes) -> None:
    raise BrokenPipeError(errno.EPIPE, "nobody reads")


def put_all(write, chunks, error=None, **settings):
    """Put the chunks, then raise the error."""
    with Outlet(write, **settings) as outlet:
        for chunk in chunks:
            outlet.put(chunk)
        if error:
            raise error


def test_a_broken_pipe_is_raised_where_chunks_come_from():
    went_on = AssertionError("three chunks cannot fit")
    with pytest.raises(BrokenPipeError):
        put_all(broken, [b"chunk"] * 3, went_on, capacity=1)


def test_a_broken_pipe_is_raised_at_the_end_too():
    with pytest.raises(BrokenPipeError):
        put_all(broken, [b"chunk"])


def test_an_error_comes_out_after_what_was_listed():
    reader = Reader()
    with pytest.raises(LookupError):
        put_all(reader.write, [b"listed"], LookupError())
    assert reader.data == b"listed"


def test_an_interruption_waits_for_nobody():
    reader = Reader(opened=False)
    with pytest.raises(KeyboardInterrupt):
        put_all(reader.write, [b"first", b"second"], KeyboardInterrupt())
    assert reader.data == b""
    reader.open.set()
