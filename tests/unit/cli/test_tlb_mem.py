"""``sevkvm tlb`` and ``sevkvm mem`` on a guest in this process."""

import csv
import io
import json

import pytest

from sevkvm import errors
from tests.unit.cli.conftest import BASE, HIGH_GPA, HIGH_NBYTES, LOW_NBYTES, PAGE, SHARED_GPA, make_guest


def test_tmp(attached, run):
    for c in ("tlb","mem"):
        for args in ((), ("--columns",), ("--csv",), ("--json",), ("--summary",), ("--summary","--json")):
            r = run(c, *args, *(() if c == "mem" or "--summary" in args else ("--limit","5")))
            print(c, args, r.exit_code); print(r.stdout); print(r.stderr); print(r.exception)
    assert 0
