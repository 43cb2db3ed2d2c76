"""Pretend SEV hosts for tests, on the real KVM where there is one, and always on the stand-in."""

from __future__ import annotations

from pathlib import Path

import pytest

from sevkvm.shim import real_system


def require_notification() -> None:
    """Skip the test, saying why, where seccomp user notification is not to be had."""
    actions = Path("/proc/sys/kernel/seccomp/actions_avail")
    if not actions.exists() or "user_notif" not in actions.read_text().split():
        pytest.skip("this kernel has no seccomp user notification")
    for line in Path("/proc/self/status").read_text().splitlines():
        if line == "Seccomp:\t2" and _notifier_is_installed():
            pytest.skip("a seccomp supervisor is installed already, and they do not nest")


def _notifier_is_installed() -> bool:
    """Only trying tells: a filter without a listener (a container's) is no obstacle."""
    import os

    from sevkvm import errors
    from sevkvm.shim import notify

    child = os.fork()
    if child == 0:
        try:
            notify.install([], trap_readlink=False)
        except notify.AlreadySupervised:
            os._exit(1)
        except errors.SevKvmError:
            os._exit(2)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 1


def require_kvm_mode(kvm: str) -> None:
    """Skip the test where the shim cannot run in this mode."""
    require_notification()
    if kvm == "real" and not real_system.usable():
        pytest.skip("/dev/kvm cannot be used")
