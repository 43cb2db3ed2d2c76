"""Can a pretend SEV host be had on this machine? For test suites that would rather skip than fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from sevkvm.shim import real_system

_ACTIONS: Final = Path("/proc/sys/kernel/seccomp/actions_avail")
_FILTERED: Final = "Seccomp:\t2"
_ROOT: Final = str(Path(__file__).parents[2])
_TRY: Final = """
import sys
sys.path.insert(0, sys.argv[1])
from sevkvm.shim import notify
try:
    notify.install([])
except notify.AlreadySupervised:
    sys.exit(3)
"""
_NESTED: Final = 3
_TRY_SECONDS: Final = 30.0


def why_unavailable(kvm: str = "auto") -> str | None:
    """A sentence that says why ``SevHost(kvm=...)`` cannot run programs here; None if it can."""
    if sys.platform != "linux":
        return "a pretend SEV host needs Linux"
    try:
        actions = _ACTIONS.read_text().split()
    except OSError:
        actions = []
    if "user_notif" not in actions:
        return "this kernel has no seccomp user notification"
    if is_supervised():
        return "a seccomp supervisor is installed already, and they do not nest"
    if kvm == "real" and not real_system.usable():
        return f"{real_system.KVM_PATH} cannot be used"
    return None


def is_supervised() -> bool:
    """Does a supervisor serve this process already? Only trying tells: a filter without one is no obstacle."""
    if _FILTERED not in Path("/proc/self/status").read_text().splitlines():
        return False
    tried = subprocess.run([sys.executable, "-I", "-c", _TRY, _ROOT], check=False, timeout=_TRY_SECONDS)
    return tried.returncode == _NESTED
