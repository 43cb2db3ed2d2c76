"""A guest owner, sharing no code with the model, believes the pretend platform; and it believes nothing else."""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass, replace

import pytest

from sevkvm.abi import sev
from sevkvm.abi.sev import SEV_RET_NO_FW_CALL, FwStatus, GuestState, SevCmd
from sevkvm.host.kvm import VmFd
from sevkvm.shim.firmware import API_VERSION, BUILD
from sevkvm.shim.port import FakePort
from tests.support import sev_owner
from tests.support.sev_ops import export_chain, launch_secret, launch_start, vm_op
from tests.support.sev_owner import CERT, Owner, Refused

PAGE = 4096
RAM = os.urandom(2 * PAGE)
VERSION = (*API_VERSION, BUILD)
SECRET = b"the key of the disk is 0xC0FFEE."
EIO, EINVAL = errno.EIO, errno.EINVAL


@dataclass(frozen=True)
class Platform:
    pdh: bytes
    chain: bytes
    cek: bytes
    amd: bytes

    def verify(self) -> None:
        sev_owner.verify_platform(self.pdh, self.chain, self.cek, self.amd)


@pytest.fixture(scope="module")
def port() -> FakePort:
    return FakePort()


@pytest.fixture(scope="module")
def platform(port: FakePort) -> Platform:
    keys = port.kernel.firmware.keys
    return Platform(*export_chain(port, port.open_sev()), keys.signed_cek_cert.pack(), keys.amd.chain)


def test_the_chain_leads_from_amd_s_root_to_the_pdh(platform: Platform) -> None:
    platform.verify()
    assert len(platform.amd) == 2 * (64 + 3 * 256)
    for cert in range(3):
        assert platform.chain[cert * CERT : cert * CERT + 6] == b"\1\0\0\0\1\x37"


def test_the_exported_cek_is_not_signed_yet(platform: Platform) -> None:
    assert sev_owner.signature(platform.chain[2 * CERT :], 0)[:2] == (sev_owner.NOBODY, 0)
    with pytest.raises(Refused, match="CEK: another signer"):
        replace(platform, cek=platform.chain[2 * CERT :]).verify()


@pytest.mark.parametrize("where", range(4))
@pytest.mark.parametrize("what", ["key", "signature"])
def test_a_changed_certificate_is_not_believed(platform: Platform, where: int, what: str) -> None:
    offset = 0x20 if what == "key" else sev_owner.SIGNED + 0x10

    def flip(data: bytes, at: int) -> bytes:
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    pieces = (
        replace(platform, pdh=flip(platform.pdh, offset)),
        replace(platform, chain=flip(platform.chain, offset)),
        replace(platform, chain=flip(platform.chain, CERT + offset)),
        replace(platform, cek=flip(platform.cek, offset)),
    )
    with pytest.raises((Refused, ValueError)):  # ValueError: no longer a point on the curve
        pieces[where].verify()


def test_another_platform_s_chain_is_not_believed(platform: Platform) -> None:
    other = FakePort()
    pdh, chain = export_chain(other, other.open_sev())
    with pytest.raises(Refused, match="PDH"):
        replace(platform, pdh=pdh).verify()
    amd = other.kernel.firmware.keys.amd.chain
    with pytest.raises(Refused, match="CEK"):
        replace(platform, amd=amd).verify()
    assert chain[2 * CERT :] == platform.chain[2 * CERT :]  # the same pretend chip
    with pytest.raises(Refused):
        sev_owner.verify_amd_chain(amd[832:] + amd[:832])


class Launch:
    """A launch that an owner prepared: RAM launched, measured."""

    def __init__(self, port: FakePort, platform: Platform, policy: int = 0) -> None:
        self.port, self.policy = port, policy
        self.owner = Owner(platform.pdh, policy)
        self.sev_fd, self.vm_fd = port.open_sev(), port.create_vm()
        port.sev_op(self.vm_fd, SevCmd.INIT)
        self.ram = port.map(RAM)

    def start(self, policy: int | None = None) -> tuple[int, int]:
        wanted = self.policy if policy is None else policy
        owner = self.owner
        return launch_start(self.port, self.vm_fd, self.sev_fd, wanted, owner.cert, owner.session)[:2]

    def measure(self) -> bytes:
        data = sev.pack_uaddr_len(self.ram.hva, len(RAM))
        self.port.sev_op(self.vm_fd, SevCmd.LAUNCH_UPDATE_DATA, data)
        room = self.port.scratch_hva
        self.port.sev_op(self.vm_fd, SevCmd.LAUNCH_MEASURE, sev.pack_uaddr_len(room, 48))
        return self.port.read(room, 48)

    def inject(self, header: bytes, packet: bytes, nbytes: int | None = None) -> tuple[int, int]:
        nbytes = len(packet) if nbytes is None else nbytes
        return launch_secret(self.port, self.vm_fd, header, self.ram.hva + 64, nbytes, packet)


def test_an_owner_launches_measures_and_injects_a_secret(port: FakePort, platform: Platform) -> None:
    launch = Launch(port, platform, policy=0x3701_0000)
    assert launch.start() == (0, 0)
    blob = launch.measure()
    launch.owner.verify_measurement(blob, VERSION, RAM)
    with pytest.raises(Refused):
        launch.owner.verify_measurement(blob, VERSION, RAM[:-16] + bytes(16))
    with pytest.raises(Refused):
        Owner(platform.pdh, launch.policy).verify_measurement(blob, VERSION, RAM)
    assert launch.inject(*launch.owner.secret(SECRET, blob)) == (0, 0)
    port.sev_op(launch.vm_fd, SevCmd.LAUNCH_FINISH)
    vm = VmFd(port, launch.vm_fd)
    vm.sev_dbg_decrypt(launch.ram.hva, port.scratch_hva, PAGE)
    assert port.read(port.scratch_hva, PAGE) == RAM[:64] + SECRET + RAM[64 + len(SECRET) : PAGE]
    assert SECRET not in port.read(launch.ram.hva, PAGE)


def test_without_a_session_the_keys_are_zeros(port: FakePort, platform: Platform) -> None:
    launch = Launch(port, platform)
    assert launch_start(port, launch.vm_fd, launch.sev_fd, 0, session=b"x" * 5)[:2] == (0, 0)
    blob = launch.measure()
    nobody = Owner(platform.pdh, 0)
    nobody.tik = bytes(16)
    nobody.verify_measurement(blob, VERSION, RAM)


def test_sessions_that_are_not_the_owner_s(port: FakePort, platform: Platform) -> None:
    launch = Launch(port, platform)
    good, cert = launch.owner.session, launch.owner.cert
    assert launch.start(policy=8) == (EIO, FwStatus.BAD_MEASUREMENT)
    for at in (0, 16, 64, 96):  # nonce, wrapped keys, their MAC, the policy's MAC
        launch.owner.session = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
        assert launch.start() == (EIO, FwStatus.BAD_MEASUREMENT), at
    for length in (1, 127, 129):
        launch.owner.session = good.ljust(129, b"\0")[:length]
        assert launch.start() == (EIO, FwStatus.INVALID_LEN)
    launch.owner.session = good
    launch.owner.cert = cert[:-1]
    assert launch.start() == (EIO, FwStatus.INVALID_LEN)
    wrong = {0: 2, 8: 2, 12: 2, 16: 1, 20: cert[20] ^ 1}  # version, usage, algorithm, curve, a point off it
    for at, value in wrong.items():
        launch.owner.cert = cert[:at] + bytes([value]) + cert[at + 1 :]
        assert launch.start() == (EIO, FwStatus.INVALID_CERTIFICATE), at
    launch.owner.cert = cert
    assert launch.start() == (0, 0)


@pytest.mark.parametrize("policy", [0x3801_0000, 0x0002_0000, 0x0040, 0x8000])
def test_a_signed_policy_that_this_firmware_cannot_keep(
    port: FakePort, platform: Platform, policy: int
) -> None:
    launch = Launch(port, platform, policy)
    assert launch.start() == (EIO, FwStatus.POLICY_FAILURE)
    assert launch_start(port, launch.vm_fd, launch.sev_fd, policy)[:2] == (0, 0)  # nobody asked to check it


def test_blobs_that_the_kernel_does_not_take(port: FakePort, platform: Platform) -> None:
    launch = Launch(port, platform)
    cases = {
        (port.scratch_hva, 0, 0, 0): EINVAL,
        (port.scratch_hva, 16 * 1024 + 1, 0, 0): EINVAL,
        (0x1000, 2084, 0, 0): errno.EFAULT,
        (port.scratch_hva, 2084, 0x1000, 128): errno.EFAULT,
        (0, 0, 0x1000, 128): errno.EFAULT,
    }
    for blobs, wanted in cases.items():
        data = sev.LaunchStart(0, 0, *blobs).pack()
        outcome = vm_op(port, launch.vm_fd, SevCmd.LAUNCH_START, data, launch.sev_fd)
        assert outcome == (wanted, SEV_RET_NO_FW_CALL, data)


def test_a_secret_goes_in_between_measurement_and_finish(port: FakePort, platform: Platform) -> None:
    launch = Launch(port, platform)
    secret = launch.owner.secret
    assert launch.inject(*secret(SECRET, b"")) == (errno.EBADF, SEV_RET_NO_FW_CALL)
    launch.start()
    assert launch.inject(*secret(SECRET, b"")) == (EIO, FwStatus.INVALID_GUEST_STATE)
    blob = launch.measure()
    assert launch.inject(*secret(SECRET, bytes(48))) == (EIO, FwStatus.BAD_MEASUREMENT)
    header, packet = secret(SECRET, blob)
    assert launch.inject(header, packet[:-1] + bytes([packet[-1] ^ 1])) == (EIO, FwStatus.BAD_MEASUREMENT)
    assert launch.inject(*secret(SECRET, blob, flags=1)) == (EIO, FwStatus.UNSUPPORTED)
    assert launch.inject(header[:-1], packet) == (EIO, FwStatus.INVALID_LEN)
    assert launch.inject(header, packet, nbytes=16) == (EIO, FwStatus.INVALID_LEN)
    assert launch.inject(*secret(b"seventeen bytes !", blob)) == (EIO, FwStatus.INVALID_LEN)
    assert launch.inject(header, packet, nbytes=0) == (EINVAL, SEV_RET_NO_FW_CALL)
    assert launch.inject(header, b"", nbytes=32) == (EINVAL, SEV_RET_NO_FW_CALL)
    assert launch.inject(b"", packet) == (EINVAL, SEV_RET_NO_FW_CALL)
    odd = launch_secret(port, launch.vm_fd, header, launch.ram.hva + 8, len(packet), packet)
    assert odd == (EIO, FwStatus.INVALID_ADDRESS)
    assert launch_secret(port, launch.vm_fd, header, 0x1000, 32, packet) == (errno.ENOMEM, SEV_RET_NO_FW_CALL)
    assert launch.inject(header, packet) == (0, 0)
    assert launch.inject(*secret(b"b" * 64, blob)) == (0, 0)  # as often as the owner likes
    port.sev_op(launch.vm_fd, SevCmd.LAUNCH_FINISH)
    assert launch.inject(header, packet) == (EIO, FwStatus.INVALID_GUEST_STATE)


def test_a_secret_needs_physically_contiguous_memory(port: FakePort, platform: Platform) -> None:
    launch = Launch(port, platform)
    launch.start()
    blob = launch.measure()
    first = port.memory.map(bytearray(PAGE), hva=0x10_0000_0000)
    port.memory.map(bytearray(PAGE), hva=first.end)
    header, packet = launch.owner.secret(SECRET, blob)
    outcome = launch_secret(port, launch.vm_fd, header, first.end - 16, len(packet), packet)
    assert outcome == (EINVAL, SEV_RET_NO_FW_CALL)


def test_the_longest_secret_is_what_the_processor_holds(port: FakePort, platform: Platform) -> None:
    launch = Launch(port, platform)
    launch.start()
    blob = launch.measure()
    big = port.map(6 * PAGE).hva
    for nbytes, wanted in (
        (0x4000, (0, 0)),
        (0x4010, (EINVAL, SEV_RET_NO_FW_CALL)),
    ):  # the kernel's blob limit
        header, packet = launch.owner.secret(bytes(nbytes), blob)
        assert launch_secret(port, launch.vm_fd, header, big, nbytes, packet) == wanted


def report(port: FakePort, vm_fd: int, nonce: bytes, hva: int, nbytes: int) -> tuple[int, int, int]:
    """(errno, error, length as it came back)."""
    data = struct.pack("<16sQI4x", nonce, hva, nbytes)
    code, error, back = vm_op(port, vm_fd, SevCmd.GET_ATTESTATION_REPORT, data)
    return code, error, struct.unpack("<16sQI4x", back)[2]


def test_an_attestation_report_is_signed_by_the_pek(port: FakePort, platform: Platform) -> None:
    launch = Launch(port, platform)
    launch.start()
    nonce, room = os.urandom(16), port.scratch_hva
    assert report(port, launch.vm_fd, nonce, room, 208) == (EIO, FwStatus.INVALID_GUEST_STATE, 208)
    launch.measure()
    assert report(port, launch.vm_fd, nonce, 0, 0) == (EIO, FwStatus.INVALID_LEN, 208)
    assert report(port, launch.vm_fd, nonce, room, 207) == (EIO, FwStatus.INVALID_LEN, 207)
    assert report(port, launch.vm_fd, nonce, room, 16385) == (EINVAL, SEV_RET_NO_FW_CALL, 16385)
    assert report(port, launch.vm_fd, nonce, 0x1000, 208) == (errno.EFAULT, 0, 208)
    pek = platform.chain[:CERT]
    for state in (GuestState.LAUNCH_SECRET, GuestState.RUNNING):
        assert VmFd(port, launch.vm_fd).sev_guest_status().state == state
        assert report(port, launch.vm_fd, nonce, room, 300) == (0, 0, 208)
        told = port.read(room, 208)
        sev_owner.verify_report(told, pek, nonce, RAM, 0)
        with pytest.raises(Refused):
            sev_owner.verify_report(told[:48] + b"\1" + told[49:], pek, nonce, RAM, 1)
        if state == GuestState.LAUNCH_SECRET:
            port.sev_op(launch.vm_fd, SevCmd.LAUNCH_FINISH)
