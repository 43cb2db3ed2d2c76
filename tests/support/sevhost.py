"""Pretend SEV hosts for tests, on the real KVM where there is one, and always on the stand-in."""

from __future__ import annotations

import pytest

from sevkvm.shim.availability import why_unavailable


def require_notification() -> None:
    """Skip the test, saying why, where seccomp user notification is not to be had."""
    require_kvm_mode("auto")


def require_kvm_mode(kvm: str) -> None:
    """Skip the test where the shim cannot run in this mode."""
    if reason := why_unavailable(kvm):
        pytest.skip(reason)
