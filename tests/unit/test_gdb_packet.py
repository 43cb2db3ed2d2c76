"""gdb's packets: the same events however the bytes are cut, and a packet or a protocol error for any bytes at all."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sevkvm.gdbserver.packet import (
    PACKET_NBYTES,
    Acknowledgement,
    Decoder,
    Event,
    Interrupt,
    Packet,
    ProtocolFault,
    escape,
    frame,
)

# bytes that mean something are as likely as all others together
STREAM = st.lists(
    st.one_of(
        st.sampled_from([b"$", b"#", b"}", b"+", b"-", b"\x03", b"00", b"$#00", b"$m0,4#fd"]), st.binary()
    ),
    max_size=20,
).map(b"".join)


def events(pieces: list[bytes]) -> list[Event]:
    decoder = Decoder()
    found = []
    for piece in pieces:
        decoder.receive_data(piece)
        while (event := decoder.next_event()) is not None:
            found.append(event)
    return found


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(ends)]


@given(STREAM, st.lists(st.integers(0, 1 << 16), max_size=10))
def test_however_it_is_cut(data: bytes, places: list[int]) -> None:
    whole = events([data])
    assert events([data[at : at + 1] for at in range(len(data))]) == whole
    assert events(cut(data, places)) == whole


@given(STREAM)
def test_nothing_follows_a_fatal_fault(data: bytes) -> None:
    found = events([data, b"+$#00"])
    fatal = [at for at, event in enumerate(found) if isinstance(event, ProtocolFault) and event.fatal]
    assert fatal in ([], [len(found) - 1])


@given(st.binary(max_size=300))
def test_there_and_back(data: bytes) -> None:
    sent = frame(b"X0,1:" + escape(data))
    assert sent.count(b"$") == sent.count(b"#") == 1
    assert events([sent]) == [Packet(b"X0,1:" + data)]


@given(st.lists(st.integers(0, 255), max_size=50))
def test_any_byte_may_be_escaped(values: list[int]) -> None:
    payload = b"".join(bytes([0x7D, value ^ 0x20]) for value in values)
    if b"#" not in payload:
        assert events([frame(payload)]) == [Packet(bytes(values))]


def test_one_of_each() -> None:
    assert events([b"+-\x03$g#67$g#68$g#zz$}#7d"]) == [
        Acknowledgement(True),
        Acknowledgement(False),
        Interrupt(),
        Packet(b"g"),
        ProtocolFault("a wrong checksum", fatal=False),
        ProtocolFault("a checksum that is no number", fatal=False),
        ProtocolFault("an escape without its byte", fatal=False),
    ]


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n$g#67", b"\0", b"#", b"\xff"])
def test_what_does_not_speak_the_protocol_is_not_listened_to(data: bytes) -> None:
    (fault,) = events([data])
    assert isinstance(fault, ProtocolFault)
    assert fault.fatal


@pytest.mark.parametrize("piece_nbytes", [1000, 1 << 20])
def test_a_packet_has_a_largest_size(piece_nbytes: int) -> None:
    longest = frame(b"m" * PACKET_NBYTES)
    assert events([longest]) == [Packet(b"m" * PACKET_NBYTES)]
    longer = b"$" + b"m" * (PACKET_NBYTES + 1)
    for tail in (b"", b"#00"):
        data = longer + tail
        found = events([data[at : at + piece_nbytes] for at in range(0, len(data), piece_nbytes)])
        assert found == [ProtocolFault(f"a packet of more than {PACKET_NBYTES} bytes", fatal=True)]


def test_an_endless_packet_is_not_kept() -> None:
    decoder = Decoder()
    decoder.receive_data(b"$")
    faults = 0
    for _ in range(100):
        decoder.receive_data(b"a" * 4096)
        faults += decoder.next_event() is not None
    assert faults == 1
    assert len(decoder._buffer) == 0
