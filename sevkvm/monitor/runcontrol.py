"""Stopping the guest and letting it go on: through the VMM's monitor, or with our own hold where there is none."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from sevkvm.monitor.problem import failed

if TYPE_CHECKING:
    from types import TracebackType

    from sevkvm.guest import Guest
    from sevkvm.monitor.outside import Outside

_HELD: Final = (
    "the VMM's monitor is not known: sevkvm itself holds the vCPU threads, until `cont` or until it ends\n"
)
_NOT_HELD: Final = "the VMM's monitor is not known, and sevkvm does not hold this guest"
_A_DUMP: Final = "this guest is a dump: it stands still"


class RunControl:
    """For all conversations with one guest; leaving it lets go what is held."""

    def __init__(self, guest: Guest, outside: Outside) -> None:
        self._guest = guest
        self._outside = outside
        self._hold: ExitStack | None = None

    def __enter__(self) -> RunControl:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._let_go()

    @property
    def holding(self) -> bool:
        """We hold the vCPUs ourselves."""
        return self._hold is not None

    def stop(self) -> str:
        """What there is to say; "" if the VMM did it. CommandProblem for a dump."""
        if self._guest.contents is not None:
            raise failed(_A_DUMP)
        told = None if self.holding else self._outside.ask("stop")
        if told is not None:
            return told
        if self._hold is None:
            self._hold = ExitStack()
            self._hold.enter_context(self._guest.held())
        return _HELD

    def cont(self) -> str:
        """As ``stop``; CommandProblem where nobody can."""
        if self._guest.contents is not None:
            raise failed(_A_DUMP)
        if self.holding:
            self._let_go()
            return ""
        told = self._outside.ask("cont")
        if told is None:
            raise failed(_NOT_HELD)
        return told

    def _let_go(self) -> None:
        hold, self._hold = self._hold, None
        if hold is not None:
            hold.close()
