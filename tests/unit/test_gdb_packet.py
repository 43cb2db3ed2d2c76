"""gdb's packets: the same events however the bytes are cut, and a packet or a protocol error for any bytes at all."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
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


def reference(data: bytes) -> list[Event]:
    """The same protocol, read one byte after the other by somebody else."""
    found: list[Event] = []
    at = 0
    while at < len(data):
        byte = data[at : at + 1]
        at += 1
        if byte in (b"+", b"-"):
            found.append(Acknowledgement(byte == b"+"))
        elif byte == b"\x03":
            found.append(Interrupt())
        elif byte != b"$":
            return [*found, ProtocolFault(f"byte 0x{byte[0]:02x} outside of a packet", fatal=True)]
        else:
            start = at
            while at < len(data) and data[at : at + 1] != b"#":
                at += 1
            if at + 3 > len(data):
                return found
            raw, told = data[start:at], data[at + 1 : at + 3]
            at += 3
            found.append(reference_packet(raw, told))
    return found


def reference_packet(raw: bytes, told: bytes) -> Event:
    total = 0
    for byte in raw:
        total = (total + byte) % 256
    if any(digit not in b"0123456789abcdefABCDEF" for digit in told):
        return ProtocolFault("a checksum that is no number", fatal=False)
    if told.lower() != b"%02x" % total:
        return ProtocolFault("a wrong checksum", fatal=False)
    meant = bytearray()
    escaped = False
    for byte in raw:
        if byte == 0x7D and not escaped:
            escaped = True
        else:
            meant.append(byte ^ 0x20 if escaped else byte)
            escaped = False
    return ProtocolFault("an escape without its byte", fatal=False) if escaped else Packet(bytes(meant))


def summed(raw: bytes) -> bytes:
    return b"$" + raw + b"#%02x" % (sum(raw) % 256)


# well framed, but with any bytes, and escapes anywhere
FRAMED = st.lists(st.sampled_from(list(b"}}}ab$*\x00\xff")), max_size=12).map(bytes).map(summed)


@settings(max_examples=300)
@given(st.lists(STREAM | FRAMED, max_size=6).map(b"".join))
def test_a_packet_or_a_protocol_error_and_nothing_else(data: bytes) -> None:
    found = events([data])
    assert found == reference(data)
    assert all(type(event) in (Packet, Acknowledgement, Interrupt, ProtocolFault) for event in found)


@given(st.lists(st.sampled_from([b"$", b"m", b"}", b"#", b"a" * 5000, b"#00", b"+"]), max_size=60))
def test_no_more_is_kept_than_a_packet(pieces: list[bytes]) -> None:
    decoder = Decoder()
    for piece in pieces:
        decoder.receive_data(piece)
        while decoder.next_event() is not None:
            pass
        assert len(decoder._buffer) - decoder._at <= PACKET_NBYTES + 3


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
