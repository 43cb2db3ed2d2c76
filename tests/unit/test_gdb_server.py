"""Clients of the gdb server as they should not be: slow, silent, hostile; and where it listens."""

from __future__ import annotations

import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from sevkvm import errors
from sevkvm.gdbserver.alone import AloneTarget
from sevkvm.gdbserver.listen import TcpAddress, UnixAddress, listening, parse_address
from sevkvm.gdbserver.packet import Decoder, Interrupt, Packet, frame
from sevkvm.gdbserver.server import Limits, Server
from sevkvm.gdbserver.session import Session
from sevkvm.gdbserver.stub import Stub
from sevkvm.gdbserver.upstream import UpstreamSession
from tests.support.gdbguest import Holder, landmark, make_guest, plain

PATIENCE = 20.0
Start = Callable[[Limits], str]


@pytest.fixture
def holder() -> Holder:
    return Holder()


@pytest.fixture
def start(holder: Holder, tmp_path: Path) -> Iterator[Start]:
    """Serves in a thread until the test ends: what the client sees is all that counts."""
    ended = threading.Event()
    threads = []
    guest = make_guest(holder)

    def run(limits: Limits) -> str:
        address = UnixAddress(str(tmp_path / "sock"))
        bound = threading.Event()

        def serve() -> None:
            with listening(address) as (listener, _), suppress(errors.TargetGone):
                bound.set()
                Server(
                    listener,
                    lambda: Session(AloneTarget(guest)),
                    limits=limits,
                    say=holder.told.append,
                    alive=lambda: not ended.is_set(),
                ).serve()

        threads.append(threading.Thread(target=serve, daemon=True))
        threads[-1].start()
        assert bound.wait(PATIENCE)
        return address.path

    yield run
    ended.set()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert not holder.held


def connect(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(PATIENCE)
    client.connect(path)
    return client


def rest(client: socket.socket) -> bytes:
    """Everything until the server hangs up."""
    said = b""
    with suppress(ConnectionResetError):
        while data := client.recv(1 << 16):
            said += data
    return said


def test_a_client_that_takes_no_answer(start: Start, holder: Holder) -> None:
    path = start(Limits(send=0.1))
    with connect(path) as client:
        client.sendall(frame(b"QStartNoAckMode"))
        client.settimeout(PATIENCE)
        with suppress(ConnectionError):
            client.sendall(frame(b"m0,7ff0") * 20_000)  # ends, since the server does not wait for ever
    with connect(path) as client:  # the next one is served
        client.sendall(frame(b"?"))
        assert client.recv(1) == b"+"
    assert holder.told == ["client dropped: it took no answer for 0.1 s"]


def test_a_client_that_says_nothing(start: Start, holder: Holder) -> None:
    path = start(Limits(first_packet=0.05))
    for silence in (b"", b"+", b"$qSupp"):
        with connect(path) as client:
            client.sendall(silence)
            assert rest(client) == b""
    assert holder.holds == 0
    assert holder.told == ["client dropped: it said nothing for 0.05 s"] * 3


@pytest.mark.parametrize("hostile", [b"GET / HTTP/1.1\r\n\r\n$?#3f", b"$" + b"a" * (1 << 17), b"\xff"])
def test_what_is_not_gdb_stops_nothing(start: Start, holder: Holder, hostile: bytes) -> None:
    with connect(start(Limits())) as client:
        with suppress(ConnectionError):
            client.sendall(hostile)
        assert rest(client) == b""
    assert holder.holds == 0


def test_bad_checksums_are_refused_and_counted(start: Start, holder: Holder) -> None:
    with connect(start(Limits())) as client:
        client.sendall(b"$?#00" * 100)
        assert rest(client) == b"-" * 16
    assert holder.holds == 0


def test_a_client_that_understands_nothing(start: Start, holder: Holder) -> None:
    with connect(start(Limits())) as client:
        client.sendall(frame(b"?") + b"-" * 100)
        answer = frame(b"T05thread:1;")
        assert rest(client) == b"+" + answer * 6


@contextmanager
def endless(client: socket.socket, stream: bytes) -> Iterator[None]:
    """Sends it over and over again, until the server hangs up."""

    def chatter() -> None:
        with suppress(OSError):
            while True:
                client.sendall(stream * 100)

    thread = threading.Thread(target=chatter, daemon=True)
    thread.start()
    yield
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_a_stop_has_an_end_for_a_busy_client_too(start: Start, holder: Holder) -> None:
    path = start(Limits(stop=0.1))
    for stream in (frame(b"qC"), b"+", b"\x03"):
        with connect(path) as client:
            client.sendall(frame(b"QStartNoAckMode") + frame(b"qC"))
            with endless(client, stream):
                assert rest(client).endswith(frame(b"QC1"))
    assert holder.told == ["client dropped: the guest stood still for 0.1 s (--max-stop)"] * 3


def test_an_endless_stream_that_says_nothing(start: Start, holder: Holder) -> None:
    path = start(Limits(first_packet=0.1))
    for stream in (b"+", b"\x03", b"+\x03"):
        with connect(path) as client, endless(client, stream):
            assert rest(client) == b""
    assert holder.holds == 0
    assert holder.told == ["client dropped: it said nothing for 0.1 s"] * 3


def test_an_endless_stream_of_halves(start: Start, holder: Holder) -> None:
    """Dropped after a packet's length, or a few errors; whatever it said before."""
    path = start(Limits())
    streams = [b"$m0,", b"$", b"a", b"$}", b"$?#00", b"$g#zz"]
    for stream in streams:
        with connect(path) as client, endless(client, stream):
            assert len(rest(client)) < 1000
    assert holder.holds == 0
    for stream in (*streams, b"-"):
        with connect(path) as client:
            client.sendall(frame(b"?"))
            with endless(client, stream):
                assert len(rest(client)) < 1000
    assert holder.holds == 7
    assert len(holder.told) == 13


def test_running_does_not_count_as_a_stop(start: Start, holder: Holder) -> None:
    with connect(start(Limits(stop=0.2))) as client:
        client.sendall(frame(b"QStartNoAckMode") + frame(b"c"))
        client.settimeout(0.6)
        with pytest.raises(TimeoutError):
            rest(client)
        client.settimeout(PATIENCE)
        client.sendall(b"\x03")
        assert client.recv(100) == frame(b"T02thread:1;")


def test_a_socket_is_its_owners_alone_and_goes(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    for _ in range(2):
        with listening(UnixAddress(str(path))):
            mode = path.stat().st_mode
            assert stat.S_ISSOCK(mode)
            assert stat.S_IMODE(mode) == 0o600
            with pytest.raises(errors.UsageError, match="in use"), listening(UnixAddress(str(path))):
                pass
        assert not path.exists()
        left = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        left.bind(str(path))  # as one that was killed leaves it
        left.close()


def test_no_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(errors.UsageError, match="cannot listen"), listening(UnixAddress(str(path))):
        pass
    assert path.read_text() == "precious"
    with pytest.raises(errors.UsageError, match="too long"), listening(UnixAddress("/" + "a" * 200)):
        pass


@pytest.mark.parametrize(
    ("text", "address", "for_gdb"),
    [
        ("unix:/run/x", UnixAddress("/run/x"), "/run/x"),
        ("unix:x", UnixAddress("x"), "./x"),
        ("tcp:127.0.0.1:1234", TcpAddress("127.0.0.1", 1234), "127.0.0.1:1234"),
        ("tcp:localhost:0", TcpAddress("127.0.0.1", 0), "127.0.0.1:0"),
        ("tcp:[::1]:1", TcpAddress("::1", 1), "[::1]:1"),
    ],
)
def test_addresses(text: str, address: object, for_gdb: str) -> None:
    found = parse_address(text)
    assert found == address
    assert found.for_gdb == for_gdb


@pytest.mark.parametrize(
    "text", ["", "unix:", "tcp:1234", "tcp::1234", "tcp:host:1", "tcp:127.0.0.1:65536", "x:1:2"]
)
def test_no_addresses(text: str) -> None:
    with pytest.raises(errors.UsageError):
        parse_address(text, anywhere=True)


def test_others_are_not_let_in_unless_told() -> None:
    for text in ("tcp:0.0.0.0:1", "tcp:192.0.2.1:1", "tcp:[::]:1"):
        with pytest.raises(errors.UsageError, match="whoever can reach"):
            parse_address(text)
        assert str(parse_address(text, anywhere=True)) == text


def test_tcp_tells_the_port_it_got() -> None:
    with listening(TcpAddress("127.0.0.1", 0)) as (listener, address):
        assert isinstance(address, TcpAddress)
        assert address.port == listener.getsockname()[1] != 0


class FakeStub:
    """The VMM's stub, in a thread: answers by a table, remembers what it was asked."""

    def __init__(self, path: Path, answers: dict[bytes, list[bytes]]) -> None:
        self.asked: list[bytes] = []
        self._answers = answers
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        client.settimeout(PATIENCE)
        decoder = Decoder()
        with client, self._listener, suppress(OSError):
            while data := client.recv(4096):
                decoder.receive_data(data)
                while (event := decoder.next_event()) is not None:
                    if isinstance(event, Packet):
                        self.asked.append(event.data)
                        client.sendall(b"+" + b"".join(map(frame, self._answers.get(event.data, [b"OK"]))))
                    elif isinstance(event, Interrupt):
                        self.asked.append(b"interrupt")
                        client.sendall(frame(b"T02thread:01;"))


HELLO = {b"qSupported:xmlRegisters=i386": [b"T02thread:01;", b"PacketSize=1000"], b"?": [b"T05thread:01;"]}


def upstream(
    path: Path, answers: dict[bytes, list[bytes]], holder: Holder
) -> tuple[UpstreamSession, FakeStub]:
    stub = FakeStub(path / "stub", HELLO | answers)
    target = AloneTarget(make_guest(holder), hold=False)
    connect = partial(Stub, UnixAddress(str(path / "stub")), PATIENCE)
    return UpstreamSession(target, None, connect, holder.told.append), stub


def test_memory_never_reaches_the_stub(holder: Holder, tmp_path: Path) -> None:
    session, stub = upstream(tmp_path, {b"g": [b"aa"], b"Hg2": [b"OK"]}, holder)
    secret = landmark("secret")
    for packet, answer in (
        (b"qSupported:swbreak+", None),
        (b"g", b"aa"),
        (b"Hg2", b"OK"),
        (b"m%x,8" % secret.gva, plain(secret.gpa, 8).hex().encode()),
        (b"X%x,0:" % secret.gva, b"OK"),
        (b"Qqemu.PhyMemMode:1", b"OK"),
        (b"Z0,1000,1", b"OK"),
        (b"Z0,1000,1", b"OK"),
        (b"z0,1000,1", b"OK"),
        (b"z0,1000,1", b"OK"),
        (b"z0,1000,1", b"OK"),
        (b"Z2,2000,4", b"OK"),
    ):
        (said,) = session.answer(packet)
        assert said == answer or answer is None, packet
    assert session.thread == 2
    session.close()
    stub.thread.join(PATIENCE)
    hello = [b"qSupported:xmlRegisters=i386", b"?"]
    assert stub.asked == [*hello, b"g", b"Hg2", b"Z1,1000,1", b"z1,1000,1", b"Z2,2000,4", b"z2,2000,4", b"D"]
    assert not holder.held


def test_a_guest_that_runs_is_stopped_to_take_breakpoints_away(holder: Holder, tmp_path: Path) -> None:
    session, stub = upstream(tmp_path, {b"c": []}, holder)
    assert list(session.answer(b"Z1,1000,1")) == [b"OK"]
    assert list(session.answer(b"c")) == []
    assert session.background is not None
    session.close()
    stub.thread.join(PATIENCE)
    assert stub.asked[-4:] == [b"c", b"interrupt", b"z1,1000,1", b"D"]
    assert holder.told == []


def test_leaving_is_not_interrupted(holder: Holder, tmp_path: Path) -> None:
    """A signal that cut it short would leave the guest as QEMU's stub leaves it: stopped."""
    session, stub = upstream(tmp_path, {}, holder)
    protected: list[list[bytes]] = []

    @contextmanager
    def uninterrupted() -> Iterator[None]:
        before = len(stub.asked)
        yield
        protected.append(stub.asked[before:])

    session._uninterrupted = uninterrupted
    list(session.answer(b"Z0,1000,1"))
    session.close()
    stub.thread.join(PATIENCE)
    assert protected == [list(HELLO), [b"z1,1000,1", b"D"]]


def test_a_stub_that_talks_for_ever_is_left(holder: Holder, tmp_path: Path) -> None:
    session, stub = upstream(tmp_path, {b"c": [b"O41"] * 150}, holder)
    assert list(session.answer(b"Z1,1000,1")) == [b"OK"]
    assert list(session.answer(b"c")) == []
    session.close()
    stub.thread.join(PATIENCE)
    assert stub.asked[-1] == b"interrupt"
    assert "may stand still" in holder.told[-1]


def test_a_stop_at_a_breakpoint_says_that_the_program_counter_is_right(
    holder: Holder, tmp_path: Path
) -> None:
    stop = [b"O41", b"T05thread:02;"]
    session, stub = upstream(tmp_path, {b"c": stop, b"p10": [b"0010000000000000"]}, holder)
    list(session.answer(b"qSupported:swbreak+;hwbreak+"))
    list(session.answer(b"Z0,1000,1"))
    list(session.answer(b"c"))
    said: list[bytes] = []
    while session.running:
        said += session.arrived()
    assert said == [b"O41", b"T05thread:02;swbreak:;"]
    assert session.thread == 2
    session.close()
    stub.thread.join(PATIENCE)


def test_what_the_stub_does_not_have_is_refused_in_words(holder: Holder, tmp_path: Path) -> None:
    session, stub = upstream(tmp_path, {b"Z1,1000,1": [b""], b"Z1,2000,1": [b"E22"]}, holder)
    assert next(iter(session.answer(b"Z0,1000,1"))).startswith(b"E.the VMM's gdb stub has no hardware")
    assert next(iter(session.answer(b"Z0,2000,1"))).startswith(b"E.no more hardware breakpoints")
    assert next(iter(session.answer(b"G" + b"0" * 5000))).startswith(b"E.malformed packet: longer")
    assert next(iter(session.answer(b"vKill;1"))).startswith(b"E.a guest is not killed")
    session.close()
    stub.thread.join(PATIENCE)
    assert stub.asked[-1] == b"D"


@pytest.mark.parametrize("hello", [[b"E01"], [b"T02thread:01;", b""]])
def test_what_is_no_stub(holder: Holder, tmp_path: Path, hello: list[bytes]) -> None:
    session, stub = upstream(tmp_path, {b"qSupported:xmlRegisters=i386": hello}, holder)
    assert next(iter(session.answer(b"g"))).startswith(b"E.what --upstream names")
    session.close()
    stub.thread.join(PATIENCE)
    assert stub.asked[-1] == b"D"  # in case that it has stopped a guest


def test_a_stub_that_hangs_up(holder: Holder, tmp_path: Path) -> None:
    session, stub = upstream(tmp_path, {b"c": []}, holder)
    list(session.answer(b"?"))
    assert session._stub is not None
    session._stub.socket.shutdown(socket.SHUT_RDWR)
    with pytest.raises(errors.TargetGone):
        list(session.answer(b"g"))
    session.close()
    stub.thread.join(PATIENCE)
    assert "may stand still" in holder.told[-1]
