"""What a mirror refuses: every reason, in words."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from sevkvm import errors, native
from sevkvm.abi import kvm as abi
from sevkvm.abi.sev import GuestStatus
from sevkvm.attach.entry import enter
from sevkvm.attach.mirrored import mirror_or_plain
from sevkvm.attach.options import AttachOptions, Needs
from sevkvm.attach.told import MonitorFacts
from sevkvm.host import mirror as module
from sevkvm.host import procfs, sevdev
from sevkvm.host.discovery import VmInfo
from sevkvm.host.mirror import Mirror

OWN = os.getpid()


def vm_info(pid: int = OWN, *, has_sev_device: bool = True) -> VmInfo:
    return VmInfo(pid, 9, (9,), {0: 10}, False, has_sev_device, "guest", "vmm", 0)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A kernel that answers so: KVM_CHECK_EXTENSION, KVM_CREATE_VM, KVM_ENABLE_CAP."""

    def answer(check: int = 1, create: int = 0, enable: int = 0, sev_fds: tuple[int, ...] = (5,)) -> None:
        def ioctl(fd: int, request: int, argument: int = 0) -> int:
            if request == abi.KVM_CREATE_VM and create == 0:
                return os.open("/dev/null", os.O_RDONLY)
            return {abi.KVM_CHECK_EXTENSION: check, abi.KVM_CREATE_VM: create}.get(request, enable)

        monkeypatch.setattr(native, "ioctl", ioctl)
        monkeypatch.setattr(native, "copy_fd", lambda pid, fd: os.open("/dev/null", os.O_RDONLY))
        monkeypatch.setattr(procfs, "fd_links", lambda pid, proc=None: dict.fromkeys(sev_fds, "/dev/sev"))
        real_open = os.open
        monkeypatch.setattr(
            os, "open", lambda path, *more: real_open("/dev/null" if path == "/dev/kvm" else path, *more)
        )

    return answer


@pytest.mark.parametrize(
    ("answers", "why", "copy_refused"),
    [
        ({"check": 0}, "this kernel cannot copy an encryption context", False),
        ({"create": -errno.ENOMEM}, "KVM_CREATE_VM of the mirror failed: Cannot allocate memory", False),
        ({"enable": -errno.EINVAL}, "it is a mirror itself, or not an encrypted VM", True),
        ({"enable": -errno.EBUSY}, "it is being moved", False),
        ({"sev_fds": ()}, "the VMM has closed the /dev/sev that it launched the guest with", False),
    ],
)
def test_the_kernel_refuses(
    kernel: Callable[..., None], answers: dict[str, Any], why: str, copy_refused: bool
) -> None:
    kernel(**answers)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(errors.MirrorUnavailable) as refusal:
        Mirror(OWN, 9)
    assert why in str(refusal.value)
    assert refusal.value.copy_refused is copy_refused
    assert "--via deputy" in (refusal.value.help or "")
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_number_that_we_may_not_have(kernel: Callable[..., None]) -> None:
    kernel(sev_fds=(1 << 30,))
    with pytest.raises(
        errors.MirrorUnavailable, match="must be descriptor 1073741824 as in the VMM"
    ) as refusal:
        Mirror(OWN, 9)
    assert "ulimit -n" in (refusal.value.help or "")


def test_without_dev_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, *more: int) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(errors.MirrorUnavailable, match="no VM of our own can be made: Permission denied"):
        Mirror(OWN, 9)


def test_without_rights(kernel: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    kernel()

    def refuse(pid: int, fd: int) -> int:
        raise errors.AttachError("pidfd_getfd: Operation not permitted", help=native.PTRACE_HELP)

    monkeypatch.setattr(native, "copy_fd", refuse)
    with pytest.raises(errors.MirrorUnavailable, match="the VMM's descriptors cannot be copied") as refusal:
        Mirror(OWN, 9)
    assert refusal.value.help == native.PTRACE_HELP


class Vm:
    """A VmFd of which GUEST_STATUS answers ``answer``."""

    answer: GuestStatus | Exception = GuestStatus(1, 0, 3)

    def __init__(self, port: object, fd: int) -> None:
        pass

    def sev_guest_status(self) -> GuestStatus:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (errors.IoctlError("KVM_SEV_GUEST_STATUS", errno.EINVAL), "they came with Linux 5.15"),
        (errors.IoctlError("KVM_SEV_GUEST_STATUS", errno.EPERM), "SEV-SNP guests cannot be mirrored"),
        (errors.IoctlError("KVM_SEV_GUEST_STATUS", errno.EBADF), "has closed the /dev/sev"),
        (errors.IoctlError("KVM_SEV_GUEST_STATUS", errno.EBUSY), "the mirror does not work"),
        (errors.FirmwareError("KVM_SEV_GUEST_STATUS", 1, "INVALID"), "the mirror does not work"),
        (GuestStatus(0, 0, 0), "it is an SEV-SNP guest, or not launched yet"),
    ],
)
def test_a_mirror_that_leads_nowhere(
    monkeypatch: pytest.MonkeyPatch, answer: GuestStatus | Exception, why: str
) -> None:
    def begin(self: Mirror, stack: ExitStack, source_fd: int) -> None:
        self.vm_fd = 3

    monkeypatch.setattr(Mirror, "_begin", begin)
    monkeypatch.setattr(module, "VmFd", type("_Vm", (Vm,), {"answer": answer}))
    with pytest.raises(errors.MirrorUnavailable, match=why):
        Mirror(OWN, 9)


@pytest.mark.parametrize(
    ("copy_refused", "has_sev_device", "host_has_sev", "plain"),
    [
        (True, False, True, True),
        (False, False, False, True),
        (False, False, True, False),  # a kernel that cannot tell
        (True, True, True, False),  # a mirror's owner has /dev/sev open
        (False, True, False, False),  # on a pretend host, seen from outside
    ],
)
def test_which_guest_is_taken_for_plain(
    monkeypatch: pytest.MonkeyPatch, copy_refused: bool, has_sev_device: bool, host_has_sev: bool, plain: bool
) -> None:
    def refuse(self: Mirror, *more: object, **settings: object) -> None:
        raise errors.MirrorUnavailable("no", copy_refused=copy_refused)

    monkeypatch.setattr(Mirror, "__init__", refuse)
    monkeypatch.setattr(sevdev, "host_has_sev", lambda: host_has_sev)
    vm = vm_info(has_sev_device=has_sev_device)
    if plain:
        way = mirror_or_plain(vm, AttachOptions(), Needs.STATUS)
        assert (way.name, way.vm, way.info.encrypted) == ("mirror", None, False)
        way.close()
    else:
        with pytest.raises(errors.MirrorUnavailable, match="no"):
            mirror_or_plain(vm, AttachOptions(), Needs.STATUS)


def test_ways_that_make_no_sense() -> None:
    with pytest.raises(errors.UsageError, match="needs no mirror of its own VM"):
        enter(vm_info(), MonitorFacts(), AttachOptions(via="mirror"), Needs.ALL)
    with pytest.raises(errors.UsageError, match="programs that are the VMM") as refusal:
        enter(vm_info(1), MonitorFacts(), AttachOptions(via="local"), Needs.ALL)
    assert "process 1 is another one" in (refusal.value.help or "")
