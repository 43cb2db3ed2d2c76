"""The answer of an earlier ``sevkvm pages --json``, read back: a file that anybody may have written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from sevkvm.abi.x86 import MAX_PHYS_BIT, PAGE_MASK
from sevkvm.errors import UsageError
from sevkvm.pages.pagemap import PageKind

_MOST_NBYTES = 1 << 30


def read_earlier(name: str) -> list[tuple[int, int, PageKind]]:
    """``(gpa, nbytes, kind)``, ascending; UsageError for a file that is no such answer."""
    try:
        if Path(name).stat().st_size > _MOST_NBYTES:
            raise _no_answer(name, "too large")
        answer = json.loads(Path(name).read_bytes())
    except OSError as error:
        raise UsageError(f"{name}: {os.strerror(error.errno or 0)}") from error
    except (ValueError, RecursionError) as error:
        raise _no_answer(name, "not JSON") from error
    runs = answer.get("runs") if isinstance(answer, dict) else None
    if not isinstance(runs, list):
        raise _no_answer(name, "it has no runs")
    found: list[tuple[int, int, PageKind]] = []
    position = 0
    for run in runs:
        gpa, nbytes, kind = _run(name, run)
        if gpa < position:
            raise _no_answer(name, f"the run at gpa 0x{gpa:x} is not above the one before")
        position = gpa + nbytes
        found.append((gpa, nbytes, kind))
    return found


def _run(name: str, run: Any) -> tuple[int, int, PageKind]:
    try:
        gpa, nbytes, kind = int(run["gpa"], 16), run["size"], PageKind(run["kind"])
    except (KeyError, TypeError, ValueError) as error:
        raise _no_answer(name, "a run without gpa, size and kind") from error
    if (
        not isinstance(nbytes, int)
        or nbytes <= 0
        or (gpa | nbytes) & PAGE_MASK
        or gpa + nbytes > 1 << MAX_PHYS_BIT
    ):
        raise _no_answer(name, f"the run at gpa 0x{gpa:x} is no range of pages")
    return gpa, nbytes, kind


def _no_answer(name: str, why: str) -> UsageError:
    return UsageError(
        f"{name} is not an answer of `sevkvm pages --json`: {why}",
        help="make one with: sevkvm pages --json > FILE",
    )
