"""The process that lets a stopped VM run again: what it asks the monitor for, and in which state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from sevkvm import errors
from sevkvm.host import keeper as module
from sevkvm.host.keeper import Keeper


class FakeMonitor:
    """A VM that runs, or does not. ``deaf``: how many questions get no answer."""

    def __init__(self, status: str = "running") -> None:
        self.status = status
        self.asked: list[str] = []
        self.connections = 0
        self.deaf = 0
        self.obeys = True

    def connect(self) -> FakeMonitor:
        self.connections += 1
        return self

    def hmp(self, command: str) -> str:
        return command.upper()

    def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        if self.deaf:
            self.deaf -= 1
            raise errors.ProtocolError("hung up")
        if command == "query-status":
            return {"running": self.status == "running", "status": self.status}
        self.asked.append(command)
        if self.obeys:
            self.status = {"stop": "paused", "cont": "running"}[command]
        return {}

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0)


def stopped(monitor: FakeMonitor) -> Keeper:
    keeper = Keeper(monitor.connect)
    assert keeper.answer({"do": "stop"}) is (monitor.asked == ["stop"])
    return keeper


@pytest.mark.parametrize("end", ["cont", "close"])
def test_what_was_stopped_runs_again(end: str) -> None:
    monitor = FakeMonitor()
    keeper = stopped(monitor)
    assert monitor.status == "paused"
    assert keeper.answer({"do": "hmp", "command": "info x"}) == "INFO X"
    if end == "cont":
        keeper.answer({"do": "cont"})
        keeper.answer({"do": "cont"})
    keeper.close()
    assert monitor.asked == ["stop", "cont"]
    assert monitor.connections == 1


@pytest.mark.parametrize("status", ["paused", "prelaunch", "shutdown", "inmigrate"])
def test_what_stood_still_is_left_alone(status: str) -> None:
    monitor = FakeMonitor(status)
    stopped(monitor).close()
    assert (monitor.asked, monitor.status) == ([], status)


@pytest.mark.parametrize("status", ["shutdown", "internal-error", "running"])
def test_what_happened_meanwhile_is_left_alone(status: str) -> None:
    monitor = FakeMonitor()
    keeper = stopped(monitor)
    monitor.status = status
    keeper.close()
    assert (monitor.asked, monitor.status) == (["stop"], status)


def test_a_connection_that_breaks_is_made_again() -> None:
    monitor = FakeMonitor()
    keeper = stopped(monitor)
    monitor.deaf = 3
    keeper.close()
    assert (monitor.asked, monitor.connections) == (["stop", "cont"], 4)


def test_a_monitor_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE_SECONDS", 0)
    monitor = FakeMonitor()
    keeper = stopped(monitor)
    monitor.deaf = 1 << 30
    with pytest.raises(errors.ProtocolError):
        keeper.answer({"do": "cont"})
    keeper.close()


def test_a_vm_that_does_not_stop() -> None:
    monitor = FakeMonitor()
    monitor.obeys = False
    keeper = Keeper(monitor.connect)
    with pytest.raises(errors.ProtocolError, match="and it runs"):
        keeper.answer({"do": "stop"})
    keeper.close()
    assert monitor.asked == ["stop"]


@pytest.mark.parametrize("answer", [None, [], "running", 7])
def test_a_status_that_is_none(answer: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = FakeMonitor()
    monkeypatch.setattr(FakeMonitor, "execute", lambda self, command, arguments=None: answer)
    with pytest.raises(errors.ProtocolError, match="not an object"):
        Keeper(monitor.connect).answer({"do": "stop"})
