"""Why a QMP command fails."""

from __future__ import annotations


class QmpProblem(Exception):
    """``kind`` is QMP's error class, ``text`` its description."""

    def __init__(self, text: str, kind: str = "GenericError") -> None:
        super().__init__(text)
        self.text = text
        self.kind = kind
