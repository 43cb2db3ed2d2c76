"""The lab's plain guest, alive on the real KVM."""

from __future__ import annotations

from pathlib import Path

import pytest

from sevkvm import errors
from sevkvm.cli.lab import command
from tests.support import alive
from tests.support.alive import BURST, FLIPPED, HALTED, STILL, counters, flags, tool, wait_for
from tests.support.lab import lab_guest
from tests.support.qemu import require_kvm

pytestmark = pytest.mark.kvm


@pytest.fixture(autouse=True)
def _kvm() -> None:
    require_kvm()


def test_it_moves_and_is_brought_back_when_the_input_ends() -> None:
    with lab_guest(vcpus=2, extra=["--alive"]) as guest:
        assert guest.facts["running"] is True
        alive.assert_it_moves(guest)
        assert guest.stop() == 0
        assert "stopped" not in guest.stderr()


def test_after_so_many_bursts_it_stays_halted() -> None:
    with lab_guest(vcpus=2, extra=["--alive", "--bursts", "3"]) as guest:
        wait_for(lambda: counters(guest) == [3 * BURST] * 2)
        assert flags(guest) == [FLIPPED] * 2  # an odd number of flips
        assert [int(vcpu["rip"], 16) for vcpu in tool(guest, "regs")] == [HALTED] * 2
        # nobody is in the guest any more: its threads sleep, and were not woken since
        wait_for(lambda: set(states(guest.pid)) == {"S"})
        switches = voluntary_switches(guest.pid)
        for slot in guest.slots:
            seen = bytearray(guest.host_bytes(slot.gpa, slot.nbytes))
            for name in ("counters", "flags"):
                mark = guest.image.landmark(name)
                if slot.gpa <= mark.gpa < slot.gpa + slot.nbytes:
                    at = mark.gpa - slot.gpa
                    seen[at : at + mark.nbytes] = guest.image.plaintext(mark.gpa, mark.nbytes)
            assert seen == guest.image.plaintext(slot.gpa, slot.nbytes), slot.name
        assert voluntary_switches(guest.pid) == switches
        assert guest.stop() == 0


def states(pid: int) -> list[str]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [(task / "stat").read_text().rpartition(") ")[2].split()[0] for task in tasks]


def voluntary_switches(pid: int) -> dict[str, str]:
    return {
        task.name: (task / "status").read_text().partition("voluntary_ctxt_switches:\t")[2].split()[0]
        for task in Path(f"/proc/{pid}/task").iterdir()
    }


def test_without_being_asked_it_stands_still() -> None:
    with lab_guest() as guest:
        assert (counters(guest), flags(guest)) == ([0], [STILL])
        assert guest.facts["running"] is False


@pytest.mark.parametrize(
    "arguments", [["--alive", "--run"], ["--bursts", "1"], ["--alive", "--linux"], ["--run", "--bursts", "1"]]
)
def test_options_that_contradict_each_other(arguments: list[str]) -> None:
    with pytest.raises(errors.UsageError):
        command.main(["--plain", *arguments], standalone_mode=False)
