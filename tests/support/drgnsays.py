"""`sevkvm drgn` run as a user runs it, and what drgn finds in a guest: processes, log, processes' memory, stacks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sevkvm.lab.initrd import KEEPERS
from tests.support.lab import SUBPROCESS_ENVIRONMENT
from tests.support.readers.programs import HERE, require_module, run
from tests.support.readers.symbols import require_vmlinux
from tests.support.readers.told import Told

# one start of drgn for both: it takes longer than what is asked
QUESTIONS = "; ".join(
    f"exec(open({str(HERE / name)!r}).read())" for name in ("drgn_says.py", "drgn_stacks.py")
)

_STACKS: dict[Path, dict[str, list[str]]] = {}


def drgn_argv(where: Sequence[str], *words: str) -> list[str]:
    """The command line of ``sevkvm drgn``."""
    return [sys.executable, "-m", "sevkvm", "drgn", *where, *words]


def sevkvm_drgn(where: Sequence[str], *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    settings = {"stdin": subprocess.DEVNULL, "env": SUBPROCESS_ENVIRONMENT, **more}
    argv = drgn_argv(where, *words)
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, **settings)


def symbols(told: Told) -> list[str]:
    """Options that name the kernel's debug symbols; a skip where there are none."""
    require_module("drgn")
    return ["-s", str(require_vmlinux(told.release))]


def agrees(said: str, told: Told) -> dict[str, list[str]]:
    """Asserts that drgn found what the guest said of itself; the stacks, for others to compare."""
    found, stacks = (json.loads(line) for line in said.splitlines()[:2])
    assert told.missing_processes({int(pid): comm for pid, comm in found["processes"].items()}) == {}
    assert told.missing_log(found["log"]) == []
    assert (found["release"], found["version"], found["nodename"]) == (
        told.release,
        told.version,
        told.nodename,
    )
    assert found["secrets"] == {f"keeper-{keeper.name}": keeper.secret.decode() for keeper in KEEPERS}
    assert found["commands"] == [f"/bin/keeper-{keeper.name}" for keeper in KEEPERS]
    sleeping = asleep(stacks)
    assert len(sleeping) > 20
    assert len(stacks) - len(sleeping) < 5
    assert sum("kthread" in stack for stack in sleeping.values()) > 10
    return sleeping


def stacks_of_dump(core: Path, told: Told) -> dict[str, list[str]]:
    """What drgn itself says of a dump; asked once each."""
    if core not in _STACKS:
        said = run(require_module("drgn"), "-q", "-c", core, *symbols(told), HERE / "drgn_stacks.py")
        _STACKS[core] = asleep(json.loads(said.splitlines()[0]))
    return _STACKS[core]


def asleep(stacks: dict[str, list[str]]) -> dict[str, list[str]]:
    """Of the tasks that gave up the processor. One that was just made has no more than its way out, without a name:
    there drgn goes on into user addresses, which our dumps show as physical ones, and a guest does not.
    """
    return {pid: stack for pid, stack in stacks.items() if "__schedule" in stack}
