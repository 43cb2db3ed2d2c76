"""Messages, conversations and clients of the monitor's server, hostile ones too; the guest is on the pretend host."""

from __future__ import annotations

import array
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sevkvm import errors
from sevkvm.guest import Guest
from sevkvm.lab.demo import DemoOptions, demo_image
from sevkvm.monitor.client import Conversation
from sevkvm.monitor.framing import Framer, TooLong
from sevkvm.monitor.hmp import HmpConversation
from sevkvm.monitor.listening import listening
from sevkvm.monitor.monitor import Monitor
from sevkvm.monitor.outside import NoOutside
from sevkvm.monitor.qmp import QmpConversation
from sevkvm.monitor.runcontrol import RunControl
from sevkvm.monitor.server import MOST_CLIENTS, Server
from tests.support.qmp import QmpClient, QmpError
from tests.unit.test_guest import CBIT, MIB, launch, open_fake

PATIENCE = 20.0


@pytest.fixture(scope="module")
def guest() -> Guest:
    return open_fake(launch(demo_image(DemoOptions(memory_nbytes=8 * MIB, cbit_pos=CBIT, vcpus=2))))[0]


@pytest.fixture
def begin(guest: Guest) -> Callable[[], QmpConversation]:
    control = RunControl(guest, NoOutside())
    return lambda: QmpConversation(Monitor(guest, NoOutside(), control, output_nbytes=8 << 20))


@contextmanager
def served(path: Path, begin: Callable[[], Conversation]) -> Iterator[str]:
    """A server in a thread; it is ended by a conversation that tells it the VMM is gone."""
    over = threading.Event()

    def begin_or_end() -> Conversation:
        if over.is_set():
            raise errors.TargetGone("the test is over")
        return begin()

    with listening(f"unix:{path}") as (listener, _):
        server = Server(listener, begin_or_end)
        ended: list[BaseException] = []

        def serve() -> None:
            try:
                server.serve()
            except errors.TargetGone as error:
                ended.append(error)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield str(path)
        finally:
            over.set()
            with socket.socket(socket.AF_UNIX) as last:
                last.connect(str(path))
                thread.join(PATIENCE)
            assert not thread.is_alive()
            assert ended


def connect(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE)
    client.connect(path)
    return client


def read_to_end(client: socket.socket) -> bytes:
    data = b""
    while piece := client.recv(1 << 16):
        data += piece
    return data


# ---- messages

objects = st.recursive(
    st.none() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
).filter(lambda value: isinstance(value, (list, dict)))


@given(st.lists(objects, max_size=5), st.sampled_from([b"", b"\n", b" \r\n"]), st.integers(1, 7))
def test_messages_are_the_same_whole_and_in_pieces(values: list[Any], between: bytes, step: int) -> None:
    stream = between.join(json.dumps(value).encode() for value in values)
    framer = Framer()
    found = [each for at in range(0, len(stream), step) for each in framer.feed(stream[at : at + step])]
    assert found == Framer().feed(stream)
    assert [json.loads(each) for each in found] == values


@given(st.binary(max_size=200))
def test_any_bytes_are_messages_of_what_was_sent(data: bytes) -> None:
    whole, framer = Framer().feed(data), Framer()
    assert [each for byte in data for each in framer.feed(bytes([byte]))] == whole
    assert b"".join(whole) in data or len(whole) > 1 or not whole


def test_a_message_that_does_not_end() -> None:
    with pytest.raises(TooLong):
        Framer(most_nbytes=1000).feed(b'{"a": "' + b"x" * 1000)


@given(data=st.binary(max_size=120) | objects.map(lambda value: json.dumps(value).encode()))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
def test_every_message_gets_an_answer(begin: Callable[[], QmpConversation], data: bytes) -> None:
    talk = begin()
    talk.answer(b'{"execute": "qmp_capabilities"}')
    for message in talk.feed(data):
        (said,) = talk.answer(message).splitlines()
        assert set(json.loads(said)) - {"id"} in ({"error"}, {"return"})


@pytest.mark.parametrize("message", [b"[" * 100_000 + b"]" * 100_000, b'{"id":' + b"9" * 5000 + b"}"])
def test_messages_that_a_parser_chokes_on(begin: Callable[[], QmpConversation], message: bytes) -> None:
    talk = begin()
    (whole,) = talk.feed(message)
    assert b'"error"' in talk.answer(whole)


# ---- a conversation through a socket


def test_a_client_reads_memory(begin: Callable[[], QmpConversation], guest: Guest, tmp_path: Path) -> None:
    with served(tmp_path / "sock", begin) as path:
        client = QmpClient(path)
        assert client.execute("query-target") == {"arch": "x86_64"}
        assert client.execute("query-status") == {"status": "running", "singlestep": False, "running": True}
        assert [cpu["cpu-index"] for cpu in client.execute("query-cpus-fast")] == [0, 1]
        names = {each["name"] for each in client.execute("query-commands")}
        assert {"human-monitor-command", "getfd", "dump-guest-memory", "qmp_capabilities"} <= names
        expected = guest.read_physical(0x100000, 8)
        words = " ".join(f"0x{byte:02x}" for byte in expected)
        assert client.hmp("xp /8xb 0x100000") == f"0000000000100000: {words}\n"
        assert client.hmp("no") == "unknown command: 'no'\n"
        saved = tmp_path / "saved"
        client.execute("pmemsave", val=0x100000, size=8, filename=str(saved))
        assert saved.read_bytes() == expected
        with pytest.raises(QmpError, match="Invalid addr"):
            client.execute("pmemsave", val=1 << 40, size=8, filename=str(saved))
        assert client.execute("quit") == {}
        assert client._lines.read() == b""


def pass_fd(client: QmpClient, fd: int, name: str) -> None:
    request = json.dumps({"execute": "getfd", "arguments": {"fdname": name}}).encode()
    fds = array.array("i", [fd])
    client._socket.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    assert client._message() == {"return": {}}


def test_a_dump_into_a_file_of_the_clients(
    begin: Callable[[], QmpConversation], guest: Guest, tmp_path: Path
) -> None:
    out = tmp_path / "core"
    with served(tmp_path / "sock", begin) as path, out.open("w+b") as file:
        client = QmpClient(path)
        pass_fd(client, file.fileno(), "mine")
        arguments = {"paging": False, "protocol": "fd:mine", "begin": 0x100000, "length": 0x2000}
        client.execute("dump-guest-memory", **arguments)
        data = file.read()
        assert data[:4] == b"\x7fELF"
        assert data.endswith(guest.read_physical(0x100000, 0x2000))
        with pytest.raises(QmpError, match="'mine' has not been found"):
            client.execute("dump-guest-memory", **arguments)


def test_a_dump_into_a_pipe(begin: Callable[[], QmpConversation], guest: Guest, tmp_path: Path) -> None:
    """More than a pipe holds: the guest is not held while its reader reads."""
    reading, writing = os.pipe()
    got: list[bytes] = []

    def read() -> None:
        with os.fdopen(reading, "rb") as pipe:
            got.append(pipe.read())

    reader = threading.Thread(target=read)
    with served(tmp_path / "sock", begin) as path:
        client = QmpClient(path)
        pass_fd(client, writing, "pipe")
        os.close(writing)
        reader.start()
        client.execute("dump-guest-memory", paging=False, protocol="fd:pipe", begin=0x200000, length=0x80000)
        reader.join(PATIENCE)
    assert got[0].endswith(guest.read_physical(0x200000, 0x80000))


def test_the_human_language(guest: Guest, tmp_path: Path) -> None:
    monitor = lambda: HmpConversation(  # noqa: E731
        Monitor(guest, NoOutside(), RunControl(guest, NoOutside()))
    )
    with served(tmp_path / "sock", monitor) as path, connect(path) as client:
        client.sendall(b"print 1+1\r\nno such\nprint \xff\nquit\nprint 3\n")
        said = read_to_end(client)
    banner, *answers = said.split(b"(qemu) ")
    assert banner.startswith(b"sevkvm ")
    assert answers[:2] == [b"0x2\r\n", b"unknown command: 'no'\r\n"]
    assert answers[2].startswith(b"invalid char")
    assert answers[3:] == [b""]


# ---- clients that mean no good


def test_clients_that_send_nonsense_hang_up_or_never_end(
    begin: Callable[[], QmpConversation], tmp_path: Path
) -> None:
    with served(tmp_path / "sock", begin) as path:
        good = QmpClient(path)
        for nonsense in (b"", b"\0" * 1000, b"GET / HTTP/1.1\r\n\r\n", b'{"execute": "', b"}" * 100):
            with connect(path) as client:
                client.sendall(nonsense)
            assert good.execute("query-target") == {"arch": "x86_64"}
        with connect(path) as endless:
            with pytest.raises(ConnectionError):
                send_often(endless, b'{"a": "' + b"x" * (1 << 16), 100)
            assert good.execute("query-target") == {"arch": "x86_64"}


def test_a_client_that_does_not_read_holds_nobody_up(
    begin: Callable[[], QmpConversation], tmp_path: Path
) -> None:
    with served(tmp_path / "sock", begin) as path:
        with connect(path) as slow:
            slow.sendall(b'{"execute": "qmp_capabilities"}')
            listing = {"execute": "human-monitor-command", "arguments": {"command-line": "xp /100000xb 0"}}
            slow.settimeout(0.2)
            with pytest.raises(TimeoutError):  # it is no longer read from
                send_often(slow, json.dumps(listing).encode(), 100_000)
            good = QmpClient(path)
            for _ in range(20):
                assert good.execute("query-target") == {"arch": "x86_64"}
        assert good.execute("query-target") == {"arch": "x86_64"}


def test_descriptors_are_not_collected(begin: Callable[[], QmpConversation], tmp_path: Path) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    with served(tmp_path / "sock", begin) as path:
        before = count()
        with connect(path) as client, (tmp_path / "file").open("wb") as file:
            fds = array.array("i", [file.fileno()] * 6)
            for number in range(40):
                message = json.dumps({"execute": "getfd", "arguments": {"fdname": f"n{number}"}}).encode()
                client.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
            client.sendall(b'{"execute": "qmp_capabilities"}')
        good = QmpClient(path)
        good.execute("query-target")
        good.close()
        assert_soon(lambda: count() <= before)


def test_there_are_only_so_many_clients(begin: Callable[[], QmpConversation], tmp_path: Path) -> None:
    with served(tmp_path / "sock", begin) as path:
        clients = [QmpClient(path) for _ in range(MOST_CLIENTS)]
        with connect(path) as one_too_many:
            assert one_too_many.recv(100) == b""
        clients.pop().close()
        assert_soon(lambda: bool(first_bytes(path)))
        assert clients[0].execute("query-target") == {"arch": "x86_64"}
        for client in clients:
            client.close()


def send_often(client: socket.socket, data: bytes, count: int) -> None:
    for _ in range(count):
        client.sendall(data)


def first_bytes(path: str) -> bytes:
    with connect(path) as client:
        return client.recv(100)


def assert_soon(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---- where to listen


def test_a_socket_is_ours_alone_and_goes_with_us(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with listening(f"unix:{path}") as (_, shown):
        assert shown == f"unix:{path}"
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(errors.UsageError, match="exists"), listening(f"unix:{path}"):
            pass
    assert not path.exists()


def test_a_dead_socket_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with listening(f"unix:{path}"):
        assert path.is_socket()
    path.write_text("a file")
    with pytest.raises(errors.UsageError, match="exists"), listening(f"unix:{path}"):
        pass
    assert path.read_text() == "a file"


def test_only_loopback_unless_told() -> None:
    with listening("tcp:127.0.0.1:0") as (listener, shown):
        assert shown == f"tcp:127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(errors.UsageError, match="others"), listening("tcp:0.0.0.0:0"):
        pass
    with listening("tcp:0.0.0.0:0", anywhere=True) as (_, shown):
        assert shown.startswith("tcp:0.0.0.0:")


@pytest.mark.parametrize(
    "text", ["", "sock", "tcp:", "tcp:1.2.3:5", "tcp:127.0.0.1:99999", "unix:", "unix:" + "x" * 200]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(errors.UsageError), listening(text):
        pass
