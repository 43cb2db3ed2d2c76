"""The QMP commands that are answered, each a function of the conversation and its arguments."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from sevkvm import __version__
from sevkvm.monitor import qmpfiles
from sevkvm.monitor.memory import physical_reader, virtual_reader
from sevkvm.monitor.qmparguments import about, checked
from sevkvm.monitor.qmpproblem import QmpProblem

if TYPE_CHECKING:
    from sevkvm.monitor.monitor import Monitor
    from sevkvm.monitor.qmp import QmpConversation

_VERSION: Final = re.compile(r"(\d{1,4})\.(\d{1,4})\.(\d{1,4})")


def version(monitor: Monitor) -> dict[str, Any]:
    """The VMM's, for clients that look at it; ours in ``package``. 7.2.0 where the VMM does not tell."""
    told = _VERSION.match(monitor.outside.ask("info version") or "")
    major, minor, micro = map(int, told.groups()) if told else (7, 2, 0)
    return {
        "qemu": {"micro": micro, "minor": minor, "major": major},
        "package": f"sevkvm {__version__}",
    }


def _human(talk: QmpConversation, given: dict[str, Any]) -> str:
    """Any command of the human monitor; ``cpu-index`` is for this one only."""
    asked = checked(given, {"command-line": str}, {"cpu-index": int})
    monitor = talk.monitor
    with about(monitor, asked):
        said = monitor.execute(asked["command-line"]).replace("\n", "\r\n")
    talk.over, monitor.over = talk.over or monitor.over, False
    return said


def _query_status(talk: QmpConversation, given: dict[str, Any]) -> dict[str, Any]:
    checked(given, {}, {})
    line = talk.monitor.execute("info status")
    match = re.match(r"VM status: (\w+)(?: \(([\w-]+)\))?", line)
    status = (match[2] or match[1]) if match else "running"
    return {"status": status, "singlestep": False, "running": status == "running"}


def _query_cpus(talk: QmpConversation, given: dict[str, Any]) -> list[dict[str, Any]]:
    checked(given, {}, {})
    tids = talk.monitor.outside.thread_ids()
    return [
        {
            "thread-id": tids.get(index, 0),
            "props": {},
            "qom-path": f"/machine/unattached/device[{index}]",
            "cpu-index": index,
            "target": "x86_64",
        }
        for index in tuple(tids) or tuple(talk.monitor.guest.vcpu_indexes)
    ]


def _query_commands(talk: QmpConversation, given: dict[str, Any]) -> list[dict[str, str]]:
    checked(given, {}, {})
    return [{"name": name} for name in ("qmp_capabilities", *COMMANDS)]


def _quit(talk: QmpConversation, given: dict[str, Any]) -> dict[str, Any]:
    """The conversation's end, not the guest's."""
    checked(given, {}, {})
    talk.over = True
    return {}


def _line(line: str) -> Callable[[QmpConversation, dict[str, Any]], dict[str, Any]]:
    """A command without arguments that the human monitor has, too."""

    def run(talk: QmpConversation, given: dict[str, Any]) -> dict[str, Any]:
        checked(given, {}, {})
        said = talk.monitor.execute(line)
        if talk.monitor.status:
            raise QmpProblem(said.strip())
        return {}

    return run


def _fact(tell: Callable[[Monitor], dict[str, Any]]) -> Callable[[QmpConversation, dict[str, Any]], Any]:
    """A question without arguments."""

    def run(talk: QmpConversation, given: dict[str, Any]) -> dict[str, Any]:
        checked(given, {}, {})
        return tell(talk.monitor)

    return run


COMMANDS: Final[dict[str, Callable[[QmpConversation, dict[str, Any]], Any]]] = {
    "human-monitor-command": _human,
    "query-target": _fact(lambda monitor: {"arch": "x86_64"}),
    "query-version": _fact(version),
    "query-name": _fact(lambda monitor: {"name": monitor.guest.name}),
    "query-kvm": _fact(lambda monitor: {"enabled": True, "present": True}),
    "query-status": _query_status,
    "query-cpus-fast": _query_cpus,
    "query-commands": _query_commands,
    "getfd": qmpfiles.getfd,
    "dump-guest-memory": qmpfiles.dump,
    "memsave": qmpfiles.save_from(virtual_reader),
    "pmemsave": qmpfiles.save_from(physical_reader),
    "stop": _line("stop"),
    "cont": _line("cont"),
    "quit": _quit,
}
