"""A caller that is killed in the middle of a command leaves nothing in the firmware."""

from __future__ import annotations

import pytest

from sevkvm.abi import sev
from sevkvm.shim.port import FakePort
from sevkvm.shim.target import CallerGone


def test_killed_before_launch_start_can_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    port = FakePort()
    fd = port.create_vm()
    port.sev_op(fd, sev.SevCmd.INIT)
    sev_fd = port.open_sev()
    started = port.kernel.firmware.launch_start

    def launch_start(*arguments: object) -> int:
        def write(hva: int, data: object) -> int:
            raise CallerGone

        monkeypatch.setattr(port.memory, "write", write)
        return started(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(port.kernel.firmware, "launch_start", launch_start)
    with pytest.raises(CallerGone):
        port.sev_op(fd, sev.SevCmd.LAUNCH_START, sev.LaunchStart().pack(), sev_fd=sev_fd)
    assert port.kernel.firmware.counts["LAUNCH_START"] == port.kernel.firmware.counts["DECOMMISSION"] == 1
    assert port.kernel.firmware.guests == {}
