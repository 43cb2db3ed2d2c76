"""One leaf or run as a line of a table, a JSON array, a CSV file; text that depends on flags alone is made once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from sevkvm.abi.x86 import FLAG_BITS, entry_flags
from sevkvm.cli.render import size
from sevkvm.native import EntryFlag
from sevkvm.paging.entries import entry_nbytes

if TYPE_CHECKING:
    from sevkvm.paging.form import PagingForm
    from sevkvm.paging.listing import Leaf, Run

_WRITABLE, _USER, _NX = int(EntryFlag.WRITABLE), int(EntryFlag.USER), int(EntryFlag.NX)
_PRIVATE = int(EntryFlag.PRIVATE)
_LEVELS = ((int(EntryFlag.LEVEL1), 1), (int(EntryFlag.LEVEL2), 2), (int(EntryFlag.LEVEL3), 3))
_TOLD = _WRITABLE | _USER | _NX | _PRIVATE
TELL_APART = EntryFlag(_TOLD | sum(mask for mask, _ in _LEVELS))  # all that a line can tell

_LEAF_KEYS = ("gva", "gpa", "page_size", "level", "private", "writable", "user", "nx", "entry", "flags")
_RUN_KEYS = ("gva", "end", "size", "page_size", "private", "writable", "user", "nx")


class Layout(NamedTuple):
    """``line`` makes a record's text; ``head`` comes before the first, ``glue`` between two, ``tail`` after the last.

    ``empty`` is all there is of a list without records.
    """

    line: Callable[..., str]
    head: str
    glue: str
    tail: str
    empty: str


class Rows:
    """The lines of one guest: ``encrypted`` says whether private and shared mean something."""

    def __init__(self, form: PagingForm, *, encrypted: bool) -> None:
        self._encrypted = encrypted
        self._sizes = {mask: entry_nbytes(form, level) for mask, level in _LEVELS if level <= form.levels}
        self._leaf_words = functools.cache(self._cbit_and_rights)
        self._run_words = functools.cache(lambda flags: (self._cbit_and_rights(flags), self._page(flags)))

    def page_nbytes(self, flags: int) -> int:
        """The page size that a leaf's or run's flags tell."""
        for mask, nbytes in self._sizes.items():
            if flags & mask:
                return nbytes
        raise ValueError(f"flags {flags:#x} tell no page size")

    # ---- columns

    def leaf_columns(self) -> Layout:
        """One page a line."""
        head = f"{'GVA':18}  {'GPA':15}  {'SIZE':>5}  {'C-BIT':7}  RIGHTS  FLAGS\n"
        own = functools.cache(lambda bits, level: " ".join(entry_flags(bits, level)))
        sizes = functools.cache(size)

        def line(leaf: Leaf) -> str:
            flags = own(leaf.entry & FLAG_BITS, leaf.level)
            words = self._leaf_words(leaf.flags & _TOLD)
            return f"0x{leaf.gva:016x}  {leaf.gpa:<#15x}  {sizes(leaf.nbytes):>5}  {words}  {flags}\n"

        return Layout(line, head, "", "", head)

    def run_columns(self) -> Layout:
        """One run a line; END is not part of it."""
        head = f"{'GVA':18}  {'END':19}  {'SIZE':>10}  {'C-BIT':7}  RIGHTS  PAGE\n"

        def line(run: Run) -> str:
            words, page = self._run_words(run.flags)
            end = f"0x{run.gva + run.nbytes:016x}"
            return f"0x{run.gva:016x}  {end:19}  {size(run.nbytes):>10}  {words}  {page}\n"

        return Layout(line, head, "", "", head)

    def _cbit_and_rights(self, flags: int) -> str:
        cbit = ("private" if flags & _PRIVATE else "shared") if self._encrypted else "-"
        return f"{cbit:7}  {rights(flags):6}"

    def _page(self, flags: int) -> str:
        return size(self.page_nbytes(flags))

    # ---- JSON

    def leaf_json(self) -> Layout:
        """An array with one object a line."""
        import json

        own = functools.cache(lambda bits, level: json.dumps(entry_flags(bits, level)))
        told = functools.cache(lambda flags: json.dumps(self._told(flags))[1:-1])

        def line(leaf: Leaf) -> str:
            return (
                f' {{"gva": "0x{leaf.gva:x}", "gpa": "0x{leaf.gpa:x}", "page_size": {leaf.nbytes}, '
                f'"level": {leaf.level}, {told(leaf.flags & _TOLD)}, "entry": "0x{leaf.entry:x}", '
                f'"flags": {own(leaf.entry & FLAG_BITS, leaf.level)}}}'
            )

        return Layout(line, "[\n", ",\n", "\n]\n", "[]\n")

    def run_json(self) -> Layout:
        """An array with one object a line."""
        import json

        told = functools.cache(
            lambda flags: json.dumps({"page_size": self.page_nbytes(flags), **self._told(flags)})[1:-1]
        )

        def line(run: Run) -> str:
            return (
                f' {{"gva": "0x{run.gva:x}", "end": "0x{run.gva + run.nbytes:x}", "size": {run.nbytes}, '
                f"{told(run.flags)}}}"
            )

        return Layout(line, "[\n", ",\n", "\n]\n", "[]\n")

    def _told(self, flags: int) -> dict[str, bool | None]:
        return {
            "private": bool(flags & _PRIVATE) if self._encrypted else None,
            "writable": bool(flags & _WRITABLE),
            "user": bool(flags & _USER),
            "nx": bool(flags & _NX),
        }

    # ---- CSV: the values of JSON; 1 and 0 for true and false

    def leaf_csv(self) -> Layout:
        """A row a page, flags with blanks between them."""
        own = functools.cache(lambda bits, level: " ".join(entry_flags(bits, level)))
        numbers = functools.cache(self._numbers)
        row, head = _csv_rows(_LEAF_KEYS)

        def line(leaf: Leaf) -> str:
            gva, gpa, entry = hex(leaf.gva), hex(leaf.gpa), hex(leaf.entry)
            told = numbers(leaf.flags & _TOLD)
            return row(
                (gva, gpa, leaf.nbytes, leaf.level, *told, entry, own(leaf.entry & FLAG_BITS, leaf.level))
            )

        return Layout(line, head, "", "", head)

    def run_csv(self) -> Layout:
        """A row a run."""
        numbers = functools.cache(lambda flags: (self.page_nbytes(flags), *self._numbers(flags)))
        row, head = _csv_rows(_RUN_KEYS)

        def line(run: Run) -> str:
            return row((hex(run.gva), hex(run.gva + run.nbytes), run.nbytes, *numbers(run.flags)))

        return Layout(line, head, "", "", head)

    def _numbers(self, flags: int) -> tuple[int | None, ...]:
        return tuple(None if value is None else int(value) for value in self._told(flags).values())


def rights(flags: int) -> str:
    """``urwx``: user, read, write, execute; ``-`` for what is not allowed. Whatever is mapped can be read."""
    user, write = "u" if flags & _USER else "-", "w" if flags & _WRITABLE else "-"
    return f"{user}r{write}{'-' if flags & _NX else 'x'}"


def _csv_rows(keys: tuple[str, ...]) -> tuple[Callable[[tuple[object, ...]], str], str]:
    """What makes a row, and the header."""
    import csv

    class Text:
        """The writer returns what ``write`` does."""

        def write(self, text: str) -> str:
            return text

    row: Callable[..., str] = csv.writer(Text(), lineterminator="\n").writerow
    return row, row(keys)
