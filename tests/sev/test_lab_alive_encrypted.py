"""The lab's encrypted guest that is alive: it moves on hardware, and waits on a pretend host."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sevkvm.shim.availability import is_supervised
from sevkvm.shim.hardware import HardwareHost
from tests.support import alive
from tests.support.lab import lab_guest
from tests.support.sevhost import Host, require_kvm_mode, require_moving, sev_host

pytestmark = pytest.mark.sev


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    require_kvm_mode("real")
    with sev_host(kvm="real") as host:
        yield host


def test_on_hardware_it_moves(host: Host) -> None:
    require_moving(host)
    with lab_guest(policy=0, vcpus=2, extra=["--alive"], popen=host.popen) as guest:
        alive.assert_it_moves(guest, host.popen)
        assert guest.stop() == 0


def test_on_a_pretend_host_it_waits_in_front_of_its_first_instruction(host: Host) -> None:
    if isinstance(host, HardwareHost) and not is_supervised():
        pytest.skip("on hardware it does not wait")
    with lab_guest(policy=0, vcpus=2, extra=["--alive"], popen=host.popen) as guest:
        assert guest.facts["running"] is True
        assert alive.counters(guest, host.popen) == [0, 0]
        assert alive.flags(guest) == [alive.STILL] * 2
        rips = [int(vcpu["rip"], 16) for vcpu in alive.tool(guest, "regs", popen=host.popen)]
        assert rips == [alive.ENTRY] * 2
        assert guest.stop() == 0
        assert "stopped" not in guest.stderr()
