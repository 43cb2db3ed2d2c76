"""Can this host, and this guest, be looked into? Every precondition by name, and what to do about each that fails.

Nothing is changed, loaded or stopped: what attaching would refuse is found out from outside, by the same rules.
Only ``examine_guest`` with ``attach`` enters the VMM, once, and measures it.
"""

from __future__ import annotations

from sevkvm.doctor.finding import Finding, Outcome, exit_status
from sevkvm.doctor.guest import examine_guest
from sevkvm.doctor.host import examine_host
from sevkvm.doctor.machine import Machine

__all__ = ["Finding", "Machine", "Outcome", "examine_guest", "examine_host", "exit_status"]
