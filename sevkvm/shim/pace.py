"""Time, as the secure processor would take it: answers that wait until hardware would have been ready.

Commands are carried out at once, and only their answers wait. Nobody else waits for them but who would in a kernel:
the commands of one VM queue behind each other (``kvm->lock``), and those of several VMs share the one mailbox, page
by page, so that n of them take n times as long.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final

# below this, sleeping on the spot disturbs others less than being woken again
_ON_THE_SPOT_SECONDS: Final = 0.001


@dataclass
class _Waiting:
    queue: Hashable
    left: float
    deliver: Callable[[], None]


class Pace:
    """The waiting answers of one host. ``clock`` and ``sleep`` are time's own, but in tests."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._waiting: list[_Waiting] = []
        self._advanced = 0.0

    def submit(self, queue: Hashable, seconds: float, deliver: Callable[[], None]) -> None:
        """Deliver once that much time of the mailbox has been spent on it, behind the others of its queue."""
        self.advance()
        if not self._waiting and seconds <= _ON_THE_SPOT_SECONDS:
            if seconds > 0:
                self._sleep(seconds)
            deliver()
            return
        if not self._waiting:
            self._advanced = self._clock()
        self._waiting.append(_Waiting(queue, seconds, deliver))

    @property
    def next_seconds(self) -> float | None:
        """When to call advance again; None if nothing waits."""
        if not self._waiting:
            return None
        heads = self._heads()
        return max(0.0, min(each.left for each in heads) * len(heads) - (self._clock() - self._advanced))

    def advance(self) -> None:
        """Deliver what is due."""
        now = self._clock()
        while self._waiting:
            heads = self._heads()
            first = min(heads, key=lambda each: each.left)
            step = min(first.left * len(heads), now - self._advanced)
            self._advanced += step
            for each in heads:
                each.left -= step / len(heads)
            if first.left > 1e-9:
                return
            self._waiting.remove(first)
            first.deliver()

    def _heads(self) -> list[_Waiting]:
        """What the mailbox works on: the first of every queue."""
        heads: dict[Hashable, _Waiting] = {}
        for each in self._waiting:
            heads.setdefault(each.queue, each)
        return list(heads.values())
