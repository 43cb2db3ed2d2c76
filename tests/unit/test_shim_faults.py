"""Failures on demand: their grammar, and what the kernel model makes of them."""

from __future__ import annotations

import errno

import pytest

from sevkvm import errors
from sevkvm.abi import sev
from sevkvm.abi.policybits import POLICY_ES
from sevkvm.shim.faults import COMMANDS, Fault, Faults, parse_fault
from sevkvm.shim.kernel import Kernel
from sevkvm.shim.pace import Pace
from sevkvm.shim.port import FakeGuest, FakePort, launch_guest

PAGE = 4096
RAM = bytes(range(256)) * (4 * PAGE // 256)
UNTOUCHED = sev.SEV_RET_NO_FW_CALL


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "dbg_decrypt:after=100:status=HWSEV_RET_PLATFORM",
            Fault("DBG_DECRYPT", 100, status=sev.FwStatus.HWSEV_RET_PLATFORM),
        ),
        ("guest-status:status=0x99", Fault("GUEST_STATUS", status=0x99)),
        ("any:count=3:errno=enodev", Fault("ANY", count=3, os_errno=errno.ENODEV)),
        ("DBG_ENCRYPT:delay=0.25:after=0", Fault("DBG_ENCRYPT", delay=0.25)),
        ("psp-dead:after=7", Fault("PSP_DEAD", 7)),
        ("psp-timeout", Fault("PSP_TIMEOUT")),
        ("vm_dead:after=0", Fault("VM_DEAD")),
    ],
)
def test_what_may_be_asked_for(text: str, fault: Fault) -> None:
    assert parse_fault(text) == fault


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no firmware command"),
        ("dbg_decript:status=1", "dbg_decript"),
        ("dbg_decrypt", "one of status="),
        ("dbg_decrypt:after=5", "one of status="),
        ("dbg_decrypt:status=1:errno=EIO", "one of status="),
        ("dbg_decrypt:status=NONSENSE", "NONSENSE"),
        ("dbg_decrypt:status=SUCCESS", "no failure"),
        ("dbg_decrypt:status=0x1ffff", "no failure"),
        ("dbg_decrypt:errno=EWHAT", "EWHAT"),
        ("dbg_decrypt:delay=-1", "delay"),
        ("dbg_decrypt:delay=inf", "delay"),
        ("dbg_decrypt:delay=nan", "delay"),
        ("dbg_decrypt:delay=soon", "soon"),
        ("dbg_decrypt:after=-1:status=1", "-1"),
        ("dbg_decrypt:after=:status=1", "''"),
        ("dbg_decrypt:count=0:status=1", "from 1"),
        ("dbg_decrypt:when=1:status=1", "when=1"),
        ("dbg_decrypt::status=1", "''"),
        ("psp-dead:status=1", "after= only"),
        ("vm-dead:count=1", "after= only"),
    ],
)
def test_what_may_not(text: str, why: str) -> None:
    with pytest.raises(errors.UsageError) as refused:
        parse_fault(text)
    assert why in str(refused.value)
    assert refused.value.exit_code == errors.EXIT_USAGE
    assert refused.value.help


def test_every_command_that_the_firmware_counts_can_fail() -> None:
    guest = launch_guest({0: RAM}, policy=POLICY_ES, es=True)
    decrypt(guest)
    guest.port.sev_op(guest.vm_fd, sev.SevCmd.GUEST_STATUS, bytes(12))
    assert set(guest.port.kernel.firmware.counts) <= COMMANDS


def failing(*texts: str, latency: float = 0.0) -> FakeGuest:
    """A guest on a host where this happens from now on."""
    guest = launch_guest({0: RAM})
    guest.port.kernel.firmware.faults = Faults([parse_fault(text) for text in texts], latency)
    return guest


def op(guest: FakeGuest, command: int, data: bytes) -> tuple[int, int]:
    """(errno or 0, the error field)."""
    try:
        guest.port.sev_op(guest.vm_fd, command, data)
    except errors.IoctlError as error:
        return error.errno, guest.port.sev_error()
    return 0, guest.port.sev_error()


def status(guest: FakeGuest) -> tuple[int, int]:
    return op(guest, sev.SevCmd.GUEST_STATUS, bytes(12))


def decrypt(guest: FakeGuest, nbytes: int = len(RAM)) -> tuple[int, int]:
    return op(guest, sev.SevCmd.DBG_DECRYPT, sev.pack_dbg(guest.hva(0), guest.port.scratch_hva, nbytes))


def test_a_status_at_the_third_page_leaves_two_done_and_ends_after_its_count() -> None:
    guest = failing("dbg_decrypt:after=2:count=1:status=HWSEV_RET_PLATFORM")
    assert decrypt(guest) == (errno.EIO, 0x13)
    done = guest.port.read(guest.port.scratch_hva, len(RAM))
    assert done == RAM[: 2 * PAGE] + bytes(2 * PAGE)
    assert decrypt(guest) == (0, 0)
    # the firmware has seen the one that failed
    assert guest.port.kernel.firmware.counts["DBG_DECRYPT"] == 3 + 4


def test_an_errno_of_the_driver_leaves_the_error_field_alone() -> None:
    guest = failing("guest_status:errno=ENODEV")
    assert status(guest) == (errno.ENODEV, UNTOUCHED)
    assert "GUEST_STATUS" not in guest.port.kernel.firmware.counts
    assert decrypt(guest) == (0, 0)


def test_a_dead_processor() -> None:
    guest = failing("psp-dead:after=2")
    assert [status(guest) for _ in range(3)] == [(0, 0), (0, 0), (errno.EBUSY, UNTOUCHED)]
    assert decrypt(guest) == (errno.EBUSY, UNTOUCHED)
    guest.port.files.clear()
    guest.port.kernel.destroy_vm(guest.port.kernel.vms[0])  # nobody hears of its troubles


def test_a_timeout_is_told_once_with_a_status_of_0() -> None:
    guest = failing("psp-timeout:after=1")
    assert [status(guest) for _ in range(4)] == [
        (0, 0),
        (errno.ETIMEDOUT, 0),
        (errno.EBUSY, UNTOUCHED),
        (errno.EBUSY, UNTOUCHED),
    ]


def test_dead_vms() -> None:
    guest = failing("vm-dead:after=1")
    assert status(guest) == (0, 0)
    assert status(guest) == (errno.EIO, UNTOUCHED)
    assert guest.port.kernel.firmware.counts["GUEST_STATUS"] == 1
    with pytest.raises(errors.IoctlError) as refused:
        guest.port.create_vcpu(guest.vm_fd, 7)
    assert refused.value.errno == errno.EIO


def test_a_launch_that_fails_at_activate_leaves_no_guest() -> None:
    kernel = Kernel(faults=Faults([parse_fault("activate:status=INVALID_ASID")]))
    with pytest.raises(errors.IoctlError) as refused:
        launch_guest({0: RAM}, port=FakePort(kernel))
    assert refused.value.errno == errno.EIO
    assert not kernel.firmware.guests


def test_the_device_fails_too() -> None:
    port = FakePort(Kernel(faults=Faults([parse_fault("platform_status:errno=EBUSY")])))
    fd = port.open_sev()
    port.write(port.args_hva, sev.SevIssueCmd(sev.PlatformCmd.PLATFORM_STATUS, port.args_hva + 64).pack())
    with pytest.raises(errors.IoctlError) as refused:
        port.ioctl(fd, sev.SEV_ISSUE_CMD, port.args_hva)
    assert refused.value.errno == errno.EBUSY


def test_latency_and_delays_add_up_page_by_page() -> None:
    faults = Faults([parse_fault("dbg_decrypt:after=1:count=2:delay=0.5")], latency=0.25)
    for _ in range(4):
        faults.command("DBG_DECRYPT")
    faults.command("GUEST_STATUS")
    assert faults.take_seconds() == 5 * 0.25 + 2 * 0.5
    assert faults.take_seconds() == 0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0
        self.delivered: list[tuple[str, float]] = []
        self.pace = Pace(lambda: self.now, self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def submit(self, queue: str, seconds: float, name: str) -> None:
        self.pace.submit(queue, seconds, lambda: self.delivered.append((name, round(self.now - 1000, 6))))

    def run(self) -> list[tuple[str, float]]:
        while (due := self.pace.next_seconds) is not None:
            self.now += due
            self.pace.advance()
        return self.delivered


def test_one_command_takes_its_time() -> None:
    clock = Clock()
    clock.submit("vm", 2.0, "a")
    assert clock.delivered == []
    assert clock.run() == [("a", 2.0)]


def test_commands_of_one_vm_queue_and_those_of_two_share() -> None:
    clock = Clock()
    clock.submit("one", 2.0, "long")
    clock.submit("one", 1.0, "behind")
    clock.submit("two", 0.5, "short")
    # the mailbox alternates: the short one needs twice its time, not two seconds and more
    assert clock.run() == [("short", 1.0), ("long", 2.5), ("behind", 3.5)]


def test_short_commands_are_waited_for_on_the_spot_unless_others_wait() -> None:
    clock = Clock()
    clock.submit("one", 0.0005, "at once")
    assert clock.delivered == [("at once", 0.0005)]
    clock.submit("one", 1.0, "long")
    clock.now += 0.25
    clock.submit("two", 0.0005, "short")
    assert [name for name, _ in clock.run()] == ["at once", "short", "long"]
