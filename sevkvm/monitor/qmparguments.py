"""The arguments of a QMP command: there, of the right type, nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from sevkvm.monitor.qmpproblem import QmpProblem

if TYPE_CHECKING:
    from sevkvm.monitor.monitor import Monitor

_TYPE_NAMES: Final = {str: "string", int: "integer", bool: "boolean"}


def checked(given: dict[str, Any], required: dict[str, type], optional: dict[str, type]) -> dict[str, Any]:
    """Checked for presence and type; QmpProblem in QEMU's words."""
    wanted = required | optional
    for name, value in given.items():
        if name not in wanted:
            raise QmpProblem(f"Parameter '{name[:100]}' is unexpected")
        # a bool is no integer here
        if type(value) is not wanted[name]:
            raise QmpProblem(f"Invalid parameter type for '{name}', expected: {_TYPE_NAMES[wanted[name]]}")
        if type(value) is int and not 0 <= value < 1 << 63:
            raise QmpProblem(f"Invalid parameter '{name}'")
    for name in required:
        if name not in given:
            raise QmpProblem(f"Parameter '{name}' is missing")
    return given


@contextmanager
def about(monitor: Monitor, asked: dict[str, Any]) -> Iterator[None]:
    """For one command the monitor is about the vCPU ``cpu-index``, if there is one."""
    before = monitor.vcpu
    if "cpu-index" in asked:
        if asked["cpu-index"] not in monitor.guest.vcpu_indexes:
            raise QmpProblem("Parameter 'cpu-index' expects a CPU number")
        monitor.vcpu = asked["cpu-index"]
    try:
        yield
    finally:
        if "cpu-index" in asked:
            monitor.vcpu = before
