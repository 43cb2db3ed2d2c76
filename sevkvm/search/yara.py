"""YARA rules as a pattern; needs the extra ``sevkvm[yara]``.

A rule's condition is judged by what lies in the window that YARA is shown: a step of new memory, and the bytes before
it that a match may have begun in. Each string of a rule that holds there is a match.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from sevkvm import errors

LONGEST: Final = 64 << 10
STEP_NBYTES: Final = 4 << 20
_SECONDS: Final = 60  # for one window


@dataclass(frozen=True)
class YaraRules:
    """Compiled rules; see ``Pattern`` for what a search asks of it."""

    rules: Any
    longest: int = LONGEST
    step: int = STEP_NBYTES
    overlapping: bool = True

    def matches(self, window: bytes, start: int, limit: int) -> Iterator[tuple[int, int, str]]:
        """``(start, end, "RULE $string")``, ascending; of a longer match its first LONGEST bytes."""
        if start >= limit:
            return
        yara = _module()
        try:
            held = self.rules.match(data=window[start:], timeout=_SECONDS)
        except yara.TimeoutError:
            raise errors.SevKvmError(f"the YARA rules took longer than {_SECONDS} s for one window") from None
        except yara.Error as error:
            raise errors.SevKvmError(f"YARA: {error}") from None
        found = [
            (start + each.offset, min(each.matched_length, self.longest), f"{match.rule} {string.identifier}")
            for match in held
            for string in match.strings
            for each in string.instances
        ]
        for at, nbytes, label in sorted(found):
            if at < limit and nbytes:
                yield at, at + nbytes, label


def compile_rules(path: str) -> YaraRules:
    """The rules in a file; UsageError where YARA does not take them or is not installed."""
    yara = _module()
    try:
        with open(path, "rb"):  # whose errors say more than YARA's
            pass
        return YaraRules(yara.compile(filepath=path))
    except OSError as error:
        raise errors.UsageError(f"{path}: {error.strerror}") from None
    except yara.Error as error:
        raise errors.UsageError(f"{path} is no file of YARA rules: {error}") from None


def _module() -> Any:
    try:
        return importlib.import_module("yara")
    except ImportError as error:
        raise errors.UsageError(
            "--yara needs the Python module yara", help="pip install 'sevkvm[yara]'"
        ) from error
