"""A kernel's symbols: by address, by name, and where in its image they lie."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Final, NamedTuple

from sevkvm.linux.vmcoreinfo import START_KERNEL_MAP

IMAGE_NBYTES_MAX: Final = 1 << 30  # what a kernel image has for itself; modules follow
_STARTS: Final = ("_text", "_stext")
_END: Final = "_end"
_CODE: Final = ((_STARTS, "_etext"), (("_sinittext",), "_einittext"))


class Symbol(NamedTuple):
    """``letter``: the kind as ``nm`` tells it, a capital for a global one. Of a per-CPU one ``gva`` is an offset."""

    gva: int
    letter: str
    name: str


class Range(NamedTuple):
    """A half-open part of the image."""

    start: int
    end: int
    executable: bool


class Symbols:
    """All of them, ascending by address; those of one address as the kernel's own table has them.

    ``release``: of the kernel. ``cost``: what reading them took, in words. ``start``, ``end``: the image, half-open,
    as its own symbols tell; addresses outside it have no name.
    """

    def __init__(self, symbols: Iterable[Symbol], release: str = "", cost: str = "") -> None:
        self.release = release
        self.cost = cost
        self._all = sorted(symbols, key=lambda symbol: symbol.gva)
        self._gvas = array("Q", [symbol.gva for symbol in self._all])
        limit = START_KERNEL_MAP + IMAGE_NBYTES_MAX
        first = bisect_left(self._gvas, START_KERNEL_MAP)
        last = bisect_left(self._gvas, limit)
        image = self._gvas[first:last]
        self.start = self._one_of(_STARTS) or (image[0] if image else limit)
        self.end = min(self._one_of((_END,)) or (image[-1] + 1 if image else 0), limit)

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Symbol]:
        return iter(self._all)

    @property
    def told(self) -> str:
        """How many, of which kernel, at what cost: for the user."""
        return f"{len(self)} symbols of Linux {self.release}, read with {self.cost}"

    def at(self, gva: int) -> tuple[Symbol, int] | None:
        """The symbol at or next below ``gva``, the first of several, and how far ``gva`` is into it.

        None outside the kernel's image: modules, user memory, the rest of the kernel's memory.
        """
        if not self.start <= gva < self.end:
            return None
        before = bisect_right(self._gvas, gva)
        if not before or self._gvas[before - 1] < self.start:
            return None
        symbol = self._all[bisect_left(self._gvas, self._gvas[before - 1])]
        return symbol, gva - symbol.gva

    def label(self, gva: int) -> str | None:
        """``do_idle+0x17``, or the name alone at its start; None as of ``at``."""
        found = self.at(gva)
        if found is None:
            return None
        symbol, offset = found
        return f"{symbol.name}+0x{offset:x}" if offset else symbol.name

    def named(self, name: str) -> list[Symbol]:
        """Every symbol of that name, ascending: static functions of several files may share one."""
        at = bisect_left(self._names, name)
        end = bisect_right(self._names, name)
        return [self._all[index] for index in sorted(self._by_name[at:end])]

    def beginning(self, prefix: str) -> list[str]:
        """Every name that begins so, in alphabetical order, each once."""
        at = bisect_left(self._names, prefix)
        end = bisect_left(self._names, prefix + "\x7f")
        return list(dict.fromkeys(self._names[at:end]))

    def nbytes(self) -> list[int]:
        """Of each symbol how far it is to the next higher address, or to the end of the image; 0 outside the image."""
        sizes = []
        above = following = self.end
        for gva in reversed(self._gvas):
            if gva != following:
                above, following = following, gva
            sizes.append(max(above - gva, 0) if self.start <= gva < self.end else 0)
        return sizes[::-1]

    def ranges(self) -> list[Range]:
        """The image cut into code and everything else, ascending; all of it code where it does not tell."""
        code: list[Range] = []
        for starts, end_name in _CODE:
            start, end = self._one_of(starts), self._one_of((end_name,))
            if (
                start
                and end
                and start < end <= self.end
                and start >= max([self.start, *(r.end for r in code)])
            ):
                code.append(Range(start, end, True))
        if not code:
            return [Range(self.start, self.end, True)] if self.start < self.end else []
        edges = [self.start, *(edge for each in code for edge in each[:2]), self.end]
        gaps = [Range(start, end, False) for start, end in zip(edges[::2], edges[1::2], strict=True)]
        return sorted([*code, *(gap for gap in gaps if gap.start < gap.end)])

    def _one_of(self, names: Sequence[str]) -> int:
        """The address of the first of these that is in the image, there once; 0 if none is."""
        for name in names:
            found = self.named(name)
            if len(found) == 1 and 0 <= found[0].gva - START_KERNEL_MAP <= IMAGE_NBYTES_MAX:
                return found[0].gva
        return 0

    @cached_property
    def _by_name(self) -> list[int]:
        return sorted(range(len(self._all)), key=lambda index: self._all[index].name)

    @cached_property
    def _names(self) -> list[str]:
        return [self._all[index].name for index in self._by_name]
