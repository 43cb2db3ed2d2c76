"""The QMP commands that write memory to a file, or to a descriptor that the client has passed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from sevkvm.monitor import dumping
from sevkvm.monitor.fdtarget import FdTarget
from sevkvm.monitor.qmparguments import about, checked
from sevkvm.monitor.qmpproblem import QmpProblem
from sevkvm.monitor.saving import save, target

if TYPE_CHECKING:
    from sevkvm.monitor.examine import Reader
    from sevkvm.monitor.monitor import Monitor
    from sevkvm.monitor.qmp import QmpConversation

_FORMATS: Final = {"elf": "elf", "kdump-zlib": "zlib", "kdump-lzo": "lzo", "kdump-snappy": "snappy"}


def getfd(talk: QmpConversation, given: dict[str, Any]) -> dict[str, Any]:
    """Name the descriptor that came along."""
    talk.descriptors.name(checked(given, {"fdname": str}, {})["fdname"])
    return {}


def dump(talk: QmpConversation, given: dict[str, Any]) -> dict[str, Any]:
    """To ``file:PATH`` or to the descriptor ``fd:NAME``; done when the answer comes, also with ``detach``."""
    asked = checked(
        given,
        {"paging": bool, "protocol": str},
        {"detach": bool, "begin": int, "length": int, "format": str},
    )
    if asked["paging"]:
        raise QmpProblem("'paging' is not available")
    for name, other in (("begin", "length"), ("length", "begin")):
        if name in asked and other not in asked:
            raise QmpProblem(f"Parameter '{other}' is missing")
    kind = _FORMATS.get(asked.get("format", "elf"))
    if kind is None:
        raise QmpProblem(f"Parameter 'format' does not accept value '{asked['format'][:40]}'")
    options = dumping.dump_options(kind, asked.get("begin"), asked.get("length"))
    protocol, _, where = asked["protocol"].partition(":")
    guest = talk.monitor.guest
    if protocol == "fd":
        file = FdTarget(talk.descriptors.take(where))
        try:
            result = dumping.write(guest, options, file)
            file.deliver()
        finally:
            file.close()
    elif protocol == "file":
        result = dumping.write(guest, options, target(where))
    else:
        raise QmpProblem("Invalid parameter 'protocol'")
    if not result.complete:
        raise QmpProblem(f"the dump has {len(result.holes)} holes: memory that cannot be read")
    nbytes = result.copied_nbytes
    talk.event("DUMP_COMPLETED", {"result": {"total": nbytes, "status": "completed", "completed": nbytes}})
    return {}


def save_from(
    space: Callable[[Monitor], Reader],
) -> Callable[[QmpConversation, dict[str, Any]], dict[str, Any]]:
    """``memsave`` and ``pmemsave``."""

    def run(talk: QmpConversation, given: dict[str, Any]) -> dict[str, Any]:
        asked = checked(given, {"val": int, "size": int, "filename": str}, {"cpu-index": int})
        with about(talk.monitor, asked), talk.monitor.guest.held():
            save(space(talk.monitor), asked["val"], asked["size"], asked["filename"])
        return {}

    return run
