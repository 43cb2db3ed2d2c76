"""`sevkvm monitor --listen` as a process of its own, ended by SIGINT."""

from __future__ import annotations

import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.lab import SUBPROCESS_ENVIRONMENT
from tests.support.qemu import QemuVmm

SIGINT_STATUS = 130


@contextmanager
def listening_monitor(vmm: QemuVmm, path: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Yielded when it listens at ``path``."""
    argv = [sys.executable, "-m", "sevkvm", "monitor", "--pid", str(vmm.pid), "--vm-fd", str(vmm.vm_fd)]
    argv += ["--qmp", vmm.qmp_path, "--listen", f"unix:{path}", *options]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, env=SUBPROCESS_ENVIRONMENT)
    try:
        assert process.stderr
        said, deadline = b"", time.monotonic() + 30
        while b"listening on" not in said:
            ready, _, _ = select.select([process.stderr], [], [], max(0.0, deadline - time.monotonic()))
            piece = process.stderr.readline() if ready else b""
            if not piece:
                raise AssertionError(f"it does not listen: {said.decode()}")
            said += piece
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)
            raise
        finally:
            assert process.stderr
            process.stderr.close()
