"""gdb's ``monitor`` command: the monitor of sevkvm, about the vCPU that gdb looks at."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from sevkvm.cli.run import say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sevkvm.cli.options import GuestSession
    from sevkvm.guest import Guest
    from sevkvm.monitor.outside import Outside


class _Looking:
    """Whom else to ask, but for what would deadlock: a VMM that is to stop waits for vCPU threads that we hold."""

    def __init__(self, outside: Outside) -> None:
        self._outside = outside
        self.thread_ids, self.hpa = outside.thread_ids, outside.hpa

    def ask(self, command: str) -> str | None:
        """The VMM's answer; for running and stopping, where to turn instead."""
        if command in ("stop", "cont"):
            return "this guest runs and stops with gdb: continue, Ctrl-C\n"
        return self._outside.ask(command)


@contextmanager
def monitor_for(
    session: GuestSession, guest: Guest, told: Callable[[str], None] = say
) -> Iterator[Callable[[str, int], Iterator[str]]]:
    """Yield what answers (line, gdb's thread); what ``stop`` holds is let go in the end.

    told: gets what reading the kernel's symbols cost.
    """
    from sevkvm.cli.monitor import outside_of
    from sevkvm.monitor.monitor import Monitor
    from sevkvm.monitor.runcontrol import RunControl

    outside = _Looking(outside_of(session, guest))
    with RunControl(guest, outside) as control:
        monitor = Monitor(guest, outside, control, told=told)

        def answer(line: str, thread: int) -> Iterator[str]:
            monitor.vcpu = thread - 1 if guest.vcpu_indexes else None
            yield monitor.execute(line)

        yield answer
