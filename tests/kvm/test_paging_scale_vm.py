"""The program lists a large address space out of a real VM: each table page is copied once."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.giant import GIB, PAGE_NBYTES, Giant, giant_vm
from tests.support.qemu import require_kvm

pytestmark = pytest.mark.kvm

LINE = {"tlb": 45, "mem": 55}


@pytest.mark.parametrize("step", [1, 8])
def test_each_table_page_is_copied_once(step: int) -> None:
    require_kvm()
    giant = Giant(GIB, step)
    nlines = {"tlb": giant.npages, "mem": giant.nruns}
    with giant_vm(giant) as arguments:
        for name in ("tlb", "mem"):
            argv = [sys.executable, "-m", "sevkvm", name, "--stats", *arguments]
            done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
            assert len(done.stdout) == nlines[name] * LINE[name]
            assert f"bytes_copied={giant.ntables * PAGE_NBYTES} " in done.stderr
