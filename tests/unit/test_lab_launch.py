"""The order of a SEV launch and what it makes of refusals, against a kernel that only keeps a record."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from sevkvm import errors
from sevkvm.abi import kvm, sev
from sevkvm.lab import cpuid, lifetime
from sevkvm.lab import sev as lab_sev
from sevkvm.lab.demo import DemoOptions, demo_image
from sevkvm.lab.vmm import LaunchOptions, launched

VM_FD, SEV_FD = 70, 71


class RecordingKernel:
    """Answers ``sevkvm.lab.ioctl.ioctl``: notes each command and its data, then does as ``answer`` says."""

    def __init__(self, answer: Callable[[sev.SevCmd, int], tuple[int, int]]) -> None:
        self.answer = answer
        self.calls: list[tuple[str, bytes]] = []

    def __call__(self, fd: int, request: int, argument: bytearray) -> int:
        assert fd == VM_FD
        if request == kvm.KVM_MEMORY_ENCRYPT_REG_REGION:
            self.calls.append(("REG_REGION", bytes(argument)))
            return 0
        assert request == kvm.KVM_MEMORY_ENCRYPT_OP
        cmd = sev.KvmSevCmd.unpack(argument)
        assert cmd.sev_fd == SEV_FD
        command = sev.SevCmd(cmd.id)
        nbytes = {"LAUNCH_START": 40, "LAUNCH_UPDATE_DATA": 16, "LAUNCH_MEASURE": 16}.get(command.name, 0)
        self.calls.append((command.name, ctypes.string_at(cmd.data, nbytes) if nbytes else b""))
        os_errno, status = self.answer(command, cmd.data)
        if status >= 0:
            argument[sev.CMD_ERROR_OFFSET : sev.CMD_ERROR_OFFSET + 4] = status.to_bytes(4, "little")
        if os_errno:
            raise errors.IoctlError("KVM_MEMORY_ENCRYPT_OP", os_errno)
        return 0


def obliging(command: sev.SevCmd, data: int) -> tuple[int, int]:
    if command is not sev.SevCmd.LAUNCH_MEASURE:
        return 0, 0
    hva, nbytes = sev.unpack_uaddr_len(ctypes.string_at(data, 16))
    if nbytes < 48:
        ctypes.memmove(data + 8, (48).to_bytes(4, "little"), 4)
        return errno.EIO, sev.FwStatus.INVALID_LEN
    ctypes.memmove(hva, bytes(range(48)), 48)
    return 0, 0


def launch_on(monkeypatch: pytest.MonkeyPatch, kernel: RecordingKernel) -> lab_sev.SevLaunch:
    monkeypatch.setattr(lab_sev, "ioctl", kernel)
    return lab_sev.SevLaunch(VM_FD, SEV_FD)


@pytest.mark.parametrize(("policy", "init"), [(0, "INIT"), (1, "INIT"), (4, "ES_INIT"), (5, "ES_INIT")])
def test_the_policy_chooses_how_to_initialise(
    monkeypatch: pytest.MonkeyPatch, policy: int, init: str
) -> None:
    kernel = RecordingKernel(obliging)
    launch_on(monkeypatch, kernel).start(policy)
    assert [name for name, _ in kernel.calls] == [init, "LAUNCH_START"]
    assert sev.LaunchStart.unpack(kernel.calls[1][1]) == sev.LaunchStart(policy=policy)


def test_encryption_comes_in_bounded_pieces_without_gap_or_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = RecordingKernel(obliging)
    base, nbytes = 0x7F00_0000_1000, 2 * lab_sev.UPDATE_MAX + 0x3000
    launch_on(monkeypatch, kernel).encrypt(base, nbytes)
    pieces = [sev.unpack_uaddr_len(data) for name, data in kernel.calls if name == "LAUNCH_UPDATE_DATA"]
    assert pieces == [
        (base, lab_sev.UPDATE_MAX),
        (base + lab_sev.UPDATE_MAX, lab_sev.UPDATE_MAX),
        (base + 2 * lab_sev.UPDATE_MAX, 0x3000),
    ]


def test_the_measurement_is_asked_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = RecordingKernel(obliging)
    assert launch_on(monkeypatch, kernel).measure() == bytes(range(48))
    assert [name for name, _ in kernel.calls] == ["LAUNCH_MEASURE"] * 2
    assert sev.unpack_uaddr_len(kernel.calls[0][1]) == (0, 0)


def test_a_firmware_refusal_is_a_firmware_error(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = RecordingKernel(lambda command, data: (errno.EIO, sev.FwStatus.INVALID_GUEST_STATE))
    with pytest.raises(errors.FirmwareError) as caught:
        launch_on(monkeypatch, kernel).finish()
    assert (caught.value.command, caught.value.status) == ("KVM_SEV_LAUNCH_FINISH", 2)


@pytest.mark.parametrize(
    ("os_errno", "status", "hint"),
    [(errno.ENOTTY, -1, "kvm_amd"), (errno.ENOMEM, -1, "ulimit -l"), (errno.EIO, -1, None)],
)
def test_a_kernel_refusal_is_an_ioctl_error(
    monkeypatch: pytest.MonkeyPatch, os_errno: int, status: int, hint: str | None
) -> None:
    kernel = RecordingKernel(lambda command, data: (os_errno, status))
    with pytest.raises(errors.IoctlError) as caught:
        launch_on(monkeypatch, kernel).start(0)
    assert (caught.value.request, caught.value.errno) == ("KVM_SEV_INIT", os_errno)
    assert (hint or "") in (caught.value.help or "")


def entry(function: int, eax: int = 0, ebx: int = 0, index: int = 0) -> kvm.CpuidEntry:
    return kvm.CpuidEntry(function, index, 0, eax, ebx, 0, 0)


@pytest.mark.parametrize(("cbit_pos", "width"), [(47, 48), (51, 52)])
def test_the_guest_sees_the_cbit_and_addresses_wide_enough_for_it(cbit_pos: int, width: int) -> None:
    offered = [entry(0x8000_0000, eax=0x8000_0008), entry(0x8000_0008, eax=0x3030)]
    seen = {e.function: e for e in cpuid.GuestCpu(cbit_pos, es=True).entries(offered, 0)}
    assert seen[0x8000_0000].eax == 0x8000_001F
    assert seen[0x8000_0008].eax == 0x3000 | width
    assert seen[0x8000_001F].eax == 0b1010
    assert seen[0x8000_001F].ebx == cbit_pos | 1 << 6


def test_a_plain_guest_sees_what_kvm_offers_but_its_own_apic_id() -> None:
    offered = [
        entry(1, ebx=0xAB00_0800),
        entry(0xB, index=0),
        entry(0xB, index=1),
        entry(0x8000_0008, eax=0x3030),
    ]
    seen = cpuid.GuestCpu(None).entries(offered, 3)
    assert seen[0].ebx == 0x0300_0800
    assert [e.edx for e in seen if e.function == 0xB] == [3, 3]
    assert seen[3] == offered[3]
    assert len(seen) == len(offered)


def test_kvm_tells_the_cbit_before_the_processor_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpuid.native, "cpuid", lambda leaf, subleaf=0: (2, 47, 0, 0))
    assert cpuid.cbit_position([entry(0x8000_001F, eax=2, ebx=51 | 5 << 6)]) == 51
    assert cpuid.cbit_position([entry(0x8000_001F)]) == 47


def test_an_unknown_cbit_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpuid.native, "cpuid", lambda leaf, subleaf=0: (0, 0, 0, 0))
    with pytest.raises(errors.PlatformUnsupported) as caught:
        cpuid.cbit_position([entry(0x8000_001F)])
    assert "--cbit-pos" in (caught.value.help or "")


@pytest.mark.parametrize(
    ("cbit_pos", "options"),
    [(51, LaunchOptions()), (None, LaunchOptions(policy=0)), (51, LaunchOptions(policy=4, run=True))],
)
def test_contradictions_are_refused_before_anything_is_opened(
    cbit_pos: int | None, options: LaunchOptions
) -> None:
    with (
        pytest.raises(errors.UsageError),
        launched(demo_image(DemoOptions(8 << 20, cbit_pos=cbit_pos)), options),
    ):
        pass


_WAIT = """
import sys
from sevkvm.lab.lifetime import ending_signals, say, wait_for_end
with ending_signals() as fd:
    say("ready")
    say(wait_for_end(fd, float(sys.argv[1])))
"""


def waiting(seconds: str, stdin: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _WAIT, seconds], stdin=stdin, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", lifetime.ENDING_SIGNALS)
def test_a_signal_ends_the_wait(number: signal.Signals) -> None:
    with waiting("60", subprocess.PIPE) as process:
        process.send_signal(number)
        # The input stays open until it has ended: closing it would be a second reason.
        process.wait(10)
        assert process.communicate()[0] == "signal\n"


def test_the_end_of_a_pipe_ends_the_wait_but_its_contents_do_not() -> None:
    with waiting("60", subprocess.PIPE) as process:
        assert process.communicate("a line\n", timeout=10)[0] == "stdin\n"


def test_dev_null_never_ends_the_wait() -> None:
    with waiting("0.2", subprocess.DEVNULL) as process:
        assert process.communicate(timeout=10)[0] == "timeout\n"


def test_the_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in lifetime.ENDING_SIGNALS]
    with lifetime.ending_signals() as fd:
        assert signal.getsignal(signal.SIGTERM) != before[0]
        os.kill(os.getpid(), signal.SIGTERM)
        assert lifetime.wait_for_end(fd, 10) == "signal"
    assert [signal.getsignal(number) for number in lifetime.ENDING_SIGNALS] == before
