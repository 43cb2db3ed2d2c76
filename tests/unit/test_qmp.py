"""The QMP client against servers that answer well, badly, or not at all."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from sevkvm import errors
from sevkvm.host.qmp import QmpMonitor
from tests.support.monitorserver import GREETING, Answer, monitor_server, reply


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def settled_descriptors(wanted: int) -> int:
    """How many are open, once the server's thread has closed its end too."""
    deadline = time.monotonic() + 5
    while open_descriptors() != wanted and time.monotonic() < deadline:
        time.sleep(0.005)
    return open_descriptors()


@contextmanager
def talking(tmp_path: Path, answer: Answer, timeout: float = 20.0) -> Iterator[QmpMonitor]:
    path = tmp_path / "q"
    with monitor_server(path, answer), closing(QmpMonitor(str(path), timeout=timeout)) as monitor:
        yield monitor


def test_hmp_and_execute(tmp_path: Path) -> None:
    requests: list[dict[str, object]] = []

    def answer(request: dict[str, object]) -> bytes:
        requests.append(request)
        if request["execute"] == "human-monitor-command":
            return reply(request, "a\r\nb\r\n")
        return b'{"event": "STOP", "timestamp": {}, "data": {}}\r\n' + reply(request, [1, {"x": None}])

    with talking(tmp_path, answer) as monitor:
        assert monitor.hmp("info x") == "a\nb\n"
        assert monitor.execute("query-x", {"y": 1}) == [1, {"x": None}]
        assert monitor.execute("query-z") == [1, {"x": None}]
    assert requests[0]["arguments"] == {"command-line": "info x"}
    assert requests[1]["arguments"] == {"y": 1}
    assert "arguments" not in requests[2]


def test_events_are_not_collected(tmp_path: Path) -> None:
    def answer(request: dict[str, object]) -> bytes:
        return b'{"event": "RTC_CHANGE", "data": {}}\r\n' * 100 + reply(request, {})

    with talking(tmp_path, answer) as monitor:
        assert monitor.execute("query-x") == {}
        assert monitor._client.events.empty()


def test_a_refusal_is_told_apart(tmp_path: Path) -> None:
    def answer(request: dict[str, object]) -> bytes:
        error = {"class": "GenericError", "desc": "SEV is not enabled in KVM"}
        return json.dumps({"error": error, "id": request["id"]}).encode() + b"\r\n"

    with talking(tmp_path, answer) as monitor:
        with pytest.raises(errors.MonitorRefused, match="query-sev: SEV is not enabled") as caught:
            monitor.execute("query-sev")
        assert (caught.value.command, caught.value.reason) == ("query-sev", "SEV is not enabled in KVM")
        with pytest.raises(errors.MonitorRefused):  # the connection lives on
            monitor.execute("query-sev")


@pytest.mark.parametrize(
    "answer",
    [
        b"not JSON\r\n",
        b"[]\r\n",
        b'"text"\r\n',
        b"\xff\xfe\r\n",
        b"[" * 200_000 + b"\r\n",
        b'{"id": [], "return": 1}\r\n',
        b'{"error": "no id"}\r\n',
        b"x" * (11 << 20) + b"\r\n",  # longer than any answer may be
        None,
    ],
    ids=["text", "list", "string", "bytes", "deep", "id", "error", "long", "end"],
)
def test_nonsense_is_a_protocol_error(tmp_path: Path, answer: bytes | None) -> None:
    with talking(tmp_path, lambda request: answer) as monitor:
        with pytest.raises(errors.ProtocolError, match="query-x") as caught:
            monitor.execute("query-x")
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("body", [{}, {"return": 5}, {"error": {"oops": 1}}, {"error": 7}])
def test_answers_of_the_wrong_shape(tmp_path: Path, body: dict[str, object]) -> None:
    def answer(request: dict[str, object]) -> bytes:
        return json.dumps({**body, "id": request["id"]}).encode() + b"\r\n"

    with talking(tmp_path, answer) as monitor, pytest.raises(errors.ProtocolError):
        monitor.hmp("info x")


def test_no_answer_is_a_timeout_of_the_command(tmp_path: Path) -> None:
    hold = threading.Event()

    def silent(request: dict[str, object]) -> None:
        hold.wait(20)

    with talking(tmp_path, silent, timeout=0.2) as monitor:
        with pytest.raises(errors.TargetTimeout, match=r"has not answered query-x in 0\.2 s"):
            monitor.execute("query-x")
        hold.set()


def test_no_greeting_says_that_the_socket_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "q"
    with monitor_server(path, lambda request: None, greeting=None):
        with pytest.raises(errors.TargetTimeout, match=r"has not greeted in 0\.2 s") as caught:
            QmpMonitor(str(path), timeout=0.2)
        assert caught.value.help is not None
        assert "another one may be connected" in caught.value.help
        assert "--libvirt" in caught.value.help


@pytest.mark.parametrize(
    "greeting", [b"QEMU 7.2.22 monitor\r\n(qemu) ", b"{}\r\n", b'{"QMP": 1}\r\n', b"\r\n", b""]
)
def test_what_is_no_qmp(tmp_path: Path, greeting: bytes) -> None:
    path = tmp_path / "q"

    with monitor_server(path, lambda request: None, greeting=greeting):
        expected = errors.TargetTimeout if greeting == b"" else errors.ProtocolError
        with pytest.raises(expected):
            QmpMonitor(str(path), timeout=0.5)


def test_nobody_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for address in (f"{tmp_path}/gone", f"unix:{tmp_path}/file", "localhost:1", "tcp:[::1]:1"):
        with pytest.raises(errors.AttachError, match="cannot connect to the monitor") as caught:
            QmpMonitor(address)
        assert caught.value.help is not None


def test_a_path_longer_than_a_socket_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.chdir(deep)  # the server needs a short name
    with monitor_server(Path("q"), lambda request: reply(request, {})):
        assert len(str(deep / "q")) > 107
        before = open_descriptors()
        with closing(QmpMonitor(str(deep / "q"))) as monitor:
            assert monitor.execute("query-x") == {}
        assert settled_descriptors(before) == before


def test_closing_twice_and_leaving_no_descriptor(tmp_path: Path) -> None:
    before = open_descriptors()
    with talking(tmp_path, lambda request: reply(request, {})) as monitor:
        monitor.close()
    assert settled_descriptors(before) == before


def test_the_greeting_is_qemus() -> None:
    assert "QMP" in json.loads(GREETING)
