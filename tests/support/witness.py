"""A witness of what is done to a process: is any of its threads traced, or stopped, ever?

with Witness(vmm.pid) as witness:
    ...
assert witness.tracers == set()

Somebody else on the host may look at that process, too (``sevkvm list`` of another test): see ``undisturbed``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

Shape = tuple[int, int, int]
_PAUSE_SECONDS = 0.003  # a pretend host may be served by this very process
_ATTEMPTS = 4


class Witness:
    """Looks at every thread again and again. ``looks``: how often; ``tracers``, ``states``: all that was seen.

    ``shapes``: (threads, descriptors but for sockets, mappings) as they were seen; a monitor's client is a socket.
    """

    def __init__(self, pid: int) -> None:
        self._proc = Path(f"/proc/{pid}")
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.looks = 0
        self.tracers: set[int] = set()
        self.states: set[str] = set()
        self.shapes: set[Shape] = set()

    def look(self) -> Shape:
        """Once."""
        tasks = list((self._proc / "task").iterdir())
        for task in tasks:
            try:
                fields = dict(
                    line.split(":\t", 1)
                    for line in (task / "status").read_text().splitlines()
                    if ":\t" in line
                )
            except (FileNotFoundError, ProcessLookupError):
                continue  # a thread that has just ended
            self.states.add(fields["State"][0])
            if int(fields["TracerPid"]):
                self.tracers.add(int(fields["TracerPid"]))
        mappings = len((self._proc / "maps").read_text().splitlines())
        shape = len(tasks), self._descriptors(), mappings
        self.shapes.add(shape)
        self.looks += 1
        return shape

    def _descriptors(self) -> int:
        count = 0
        for link in (self._proc / "fd").iterdir():
            try:
                count += not str(link.readlink()).startswith("socket:")
            except FileNotFoundError:
                continue
        return count

    def _watch(self) -> None:
        while not self._end.is_set():
            self.look()
            time.sleep(_PAUSE_SECONDS)

    def __enter__(self) -> Witness:
        self.look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()


def undisturbed(pid: int, act: Callable[[], int]) -> Witness:
    """``act`` is done, which returns the process that did it: it traced nothing, and nothing of the target changed.

    Done again, a few times, if somebody else disturbed the target meanwhile.
    """
    for _ in range(_ATTEMPTS):
        with Witness(pid) as witness:
            actor = act()
        assert actor not in witness.tracers
        assert witness.looks > 1
        if not witness.tracers and len(witness.shapes) == 1 and witness.states <= {"S", "R", "D"}:
            return witness
    raise AssertionError(f"{witness.tracers} {witness.shapes} {witness.states}: who does that?")


def settled(pid: int, wanted: Shape) -> Shape:
    """What is seen of a process once it is this, else in the end."""
    deadline = time.monotonic() + 10
    while (seen := Witness(pid).look()) != wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    return seen
