"""Questions to a VMM's monitor, their answers checked: C-bit position, vCPU threads, SEV, run state.

Source: QEMU qapi/misc-target.json, qapi/misc-i386.json, qapi/machine.json, qapi/run-state.json (7.2 and 9.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sevkvm import errors
from sevkvm.host.qmp import Monitor

_MAX_VCPUS: Final = 8192
_MAX_OBJECTS: Final = 4096
_CBIT_POSITIONS: Final = range(32, 52)  # where an entry's address bits leave room for it
_SEV_TYPES: Final = ("child<sev-guest>", "child<sev-snp-guest>")


@dataclass(frozen=True)
class MonitorSev:
    """``query-sev``. ``policy`` is None for SNP, whose policy has another layout."""

    enabled: bool
    snp: bool
    state: str
    policy: int | None
    api_version: tuple[int, int]
    build: int


def cbit_position(monitor: Monitor) -> int | None:
    """The C-bit's index as the guest was told it, else as the host has it; None if the monitor does not know.

    QEMU says 0 on a processor without SEV (a pretend host): that is no position.
    """
    for path in _sev_objects(monitor):
        position = _plausible(_answer(monitor, "qom-get", {"path": path, "property": "cbitpos"}))
        if position is not None:
            return position
    capabilities = _answer(monitor, "query-sev-capabilities")
    return _plausible(capabilities.get("cbitpos")) if isinstance(capabilities, dict) else None


def vcpu_thread_ids(monitor: Monitor) -> dict[int, int]:
    """The thread of each vCPU, by index, in the pid namespace of the VMM."""
    answer = monitor.execute("query-cpus-fast")
    if not isinstance(answer, list) or len(answer) > _MAX_VCPUS:
        raise errors.ProtocolError("query-cpus-fast: not a list of vCPUs")
    tids: dict[int, int] = {}
    for each in answer:
        index = _integer("query-cpus-fast", each, "cpu-index")
        tid = _integer("query-cpus-fast", each, "thread-id")
        if index in tids or tid <= 0:
            raise errors.ProtocolError(f"query-cpus-fast: vCPU {index} makes no sense")
        tids[index] = tid
    return dict(sorted(tids.items()))


def sev_info(monitor: Monitor) -> MonitorSev | None:
    """What the VMM says of its guest's protection; None if it knows nothing of SEV."""
    answer = _answer(monitor, "query-sev")
    if answer is None:
        return None
    if not isinstance(answer, dict) or not isinstance(answer.get("enabled"), bool):
        raise errors.ProtocolError("query-sev: `enabled` is missing")
    snp = answer.get("sev-type") == "sev-snp"
    return MonitorSev(
        enabled=answer["enabled"],
        snp=snp,
        state=_text("query-sev", answer, "state"),
        policy=None if snp else _integer("query-sev", answer, "policy"),
        api_version=(
            _integer("query-sev", answer, "api-major"),
            _integer("query-sev", answer, "api-minor"),
        ),
        build=_integer("query-sev", answer, "build-id"),
    )


def run_state(monitor: Monitor) -> str:
    """``running``, ``paused``, ``prelaunch`` and so on."""
    return _text("query-status", monitor.execute("query-status"), "status")


def _sev_objects(monitor: Monitor) -> list[str]:
    """Paths of the guest's SEV objects, as -object made them."""
    answer = _answer(monitor, "qom-list", {"path": "/objects"})
    if not isinstance(answer, list) or len(answer) > _MAX_OBJECTS:
        return []
    names = [each.get("name") for each in answer if isinstance(each, dict) and each.get("type") in _SEV_TYPES]
    return [f"/objects/{name}" for name in names if isinstance(name, str) and "/" not in name]


def _answer(monitor: Monitor, command: str, arguments: Mapping[str, object] | None = None) -> object:
    """The answer, or None if the monitor does not know the command or cannot tell."""
    try:
        return monitor.execute(command, arguments)
    except errors.MonitorRefused:
        return None


def _plausible(position: object) -> int | None:
    return position if type(position) is int and position in _CBIT_POSITIONS else None


def _integer(command: str, answer: object, key: str) -> int:
    value = answer.get(key) if isinstance(answer, dict) else None
    if type(value) is not int or not 0 <= value < 1 << 64:  # a bool is no number here
        raise errors.ProtocolError(f"{command}: `{key}` is missing or no number")
    return value


def _text(command: str, answer: object, key: str) -> str:
    value = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(value, str) or len(value) > 100 or not value.isprintable():
        raise errors.ProtocolError(f"{command}: `{key}` is missing or no text")
    return value
