"""The pretend /dev/sev as the driver and the firmware answer it: states, permissions, lengths, keys, both kernels."""

from __future__ import annotations

import errno
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from sevkvm.abi.sev import SEV_RET_NO_FW_CALL, FwStatus, PlatformCmd, PlatformState, PlatformStatus, SevCmd
from sevkvm.shim.fake_port import FakePort
from sevkvm.shim.firmware import API_VERSION, Firmware
from sevkvm.shim.generation import Generation
from sevkvm.shim.kernel import Kernel
from sevkvm.shim.platform_keys import PlatformKeys
from sevkvm.shim.sevdev import SevDevice
from tests.support import sev_owner
from tests.support.sev_ops import export_chain, launch_start, platform, vm_op
from tests.support.sev_owner import CERT, OCA, PEK, SIGNED

PRESET = SEV_RET_NO_FW_CALL
CHAIN = 3 * CERT
GENERATIONS: tuple[Generation, ...] = ("old", "new")
WRITERS = (
    PlatformCmd.FACTORY_RESET,
    PlatformCmd.PEK_GEN,
    PlatformCmd.PEK_CSR,
    PlatformCmd.PDH_GEN,
    PlatformCmd.PEK_CERT_IMPORT,
)
SNP = (
    PlatformCmd.SNP_PLATFORM_STATUS,
    PlatformCmd.SNP_COMMIT,
    PlatformCmd.SNP_SET_CONFIG,
    PlatformCmd.SNP_VLEK_LOAD,
)


@pytest.fixture(params=GENERATIONS)
def port(request: pytest.FixtureRequest) -> FakePort:
    return FakePort(Kernel(generation=request.param))


@pytest.fixture
def writer(port: FakePort) -> int:
    return port.open_sev()


@pytest.fixture
def reader(port: FakePort) -> int:
    return port.open_sev(writable=False)


def status(port: FakePort, fd: int) -> PlatformStatus:
    code, error, data = platform(port, fd, PlatformCmd.PLATFORM_STATUS, bytes(12))
    assert (code, error) == (0, 0)
    return PlatformStatus.unpack(data)


def start_guest(port: FakePort) -> int:
    vm_fd = port.create_vm()
    port.sev_op(vm_fd, SevCmd.INIT)
    assert launch_start(port, vm_fd, port.open_sev(), 0)[0] == 0
    return vm_fd


def buffer_command(port: FakePort, fd: int, command: int, hva: int, nbytes: int) -> tuple[int, int, int]:
    """(errno, error, length as it came back) of GET_ID2 and PEK_CSR."""
    code, error, data = platform(port, fd, command, struct.pack("<QI", hva, nbytes))
    return code, error, struct.unpack("<QI", data)[1]


def pdh_export(port: FakePort, fd: int, *arguments: int) -> tuple[int, int, int, int]:
    """(errno, error, both lengths as they came back)."""
    code, error, data = platform(port, fd, PlatformCmd.PDH_CERT_EXPORT, struct.pack("<QIQI", *arguments))
    _, pdh_nbytes, _, chain_nbytes = struct.unpack("<QIQI", data)
    return code, error, pdh_nbytes, chain_nbytes


def test_writers_are_refused_before_anything_is_looked_at(port: FakePort, reader: int) -> None:
    for command in WRITERS:
        assert platform(port, reader, command) == (errno.EPERM, PRESET, b"")
    assert not port.kernel.firmware.counts


def test_without_a_processor_everything_is_enodev(port: FakePort) -> None:
    device = SevDevice(port.kernel, present=False)
    assert device.ioctl(port, 0x5401, 0, writable=True) == -errno.ENODEV


@pytest.mark.parametrize("command", [PlatformCmd.PLATFORM_STATUS, PlatformCmd.GET_ID])
def test_what_only_tells_faults_after_the_firmware_has_answered(
    port: FakePort, reader: int, command: PlatformCmd
) -> None:
    assert platform(port, reader, command) == (errno.EFAULT, 0, b"")


def test_what_takes_a_struct_faults_before(port: FakePort, writer: int) -> None:
    for command in (PlatformCmd.GET_ID2, PlatformCmd.PDH_CERT_EXPORT, *WRITERS[2:3], *WRITERS[4:]):
        assert platform(port, writer, command) == (errno.EFAULT, PRESET, b"")


def test_the_states_of_the_platform(port: FakePort, writer: int) -> None:
    assert status(port, writer) == PlatformStatus(*API_VERSION, PlatformState.INIT, 0x100, 21, 0)
    vm_fd = start_guest(port)
    assert status(port, writer) == PlatformStatus(*API_VERSION, PlatformState.WORKING, 0x100, 21, 1)
    start_guest(port)
    assert status(port, writer).guest_count == 2
    assert platform(port, writer, PlatformCmd.FACTORY_RESET) == (errno.EBUSY, 0, b"")
    assert platform(port, writer, PlatformCmd.PEK_GEN) == (errno.EIO, FwStatus.INVALID_PLATFORM_STATE, b"")
    assert platform(port, writer, PlatformCmd.PDH_GEN) == (0, 0, b"")
    for vm in list(port.kernel.vms):
        port.kernel.destroy_vm(vm)
    assert vm_op(port, vm_fd, SevCmd.GUEST_STATUS, bytes(12))[0] == errno.EIO
    assert status(port, writer).state == PlatformState.INIT
    assert platform(port, writer, PlatformCmd.FACTORY_RESET) == (0, 0, b"")
    assert status(port, writer) == PlatformStatus(*API_VERSION, PlatformState.UNINIT, 0, 21, 0)
    assert platform(port, writer, PlatformCmd.FACTORY_RESET) == (0, 0, b"")
    start_guest(port)  # KVM_SEV_INIT brings the platform up again
    assert status(port, writer).state == PlatformState.WORKING


def test_a_reset_platform_is_brought_up_for_a_command(port: FakePort, writer: int, reader: int) -> None:
    old = port.kernel.generation == "old"
    platform(port, writer, PlatformCmd.FACTORY_RESET)
    # old kernels want a writer before they look at the struct
    assert platform(port, reader, PlatformCmd.PDH_CERT_EXPORT)[0] == (errno.EPERM if old else errno.EFAULT)
    assert pdh_export(port, reader, 0, 0, 0, 0) == (errno.EPERM, PRESET, 0, 0)
    assert pdh_export(port, writer, 0, 0, 0, 0) == (errno.EIO, FwStatus.INVALID_LEN, CERT, CHAIN)
    after = PlatformState.INIT if old else PlatformState.UNINIT
    assert status(port, writer).state == after
    for command in (PlatformCmd.PDH_GEN, PlatformCmd.PEK_GEN):
        platform(port, writer, PlatformCmd.FACTORY_RESET)
        assert platform(port, writer, command) == (0, 0, b"")
        assert status(port, writer).state == after
    platform(port, writer, PlatformCmd.FACTORY_RESET)
    assert buffer_command(port, writer, PlatformCmd.PEK_CSR, 0, 0) == (errno.EIO, FwStatus.INVALID_LEN, CERT)
    assert status(port, writer).state == after


@pytest.mark.parametrize(
    ("command", "wanted", "limit", "beyond"),
    [
        (PlatformCmd.GET_ID2, 64, 4 << 20, errno.ENOMEM),
        (PlatformCmd.PEK_CSR, CERT, 16384, errno.EFAULT),
    ],
)
def test_one_buffer(
    port: FakePort, writer: int, command: PlatformCmd, wanted: int, limit: int, beyond: int
) -> None:
    hva = port.scratch_hva
    for query in ((0, 0), (0, 100000), (hva, 0)):
        assert buffer_command(port, writer, command, *query) == (errno.EIO, FwStatus.INVALID_LEN, wanted)
    for short in (1, wanted - 1):
        assert buffer_command(port, writer, command, hva, short) == (
            errno.EIO,
            FwStatus.INVALID_LEN,
            wanted,
        )
    assert port.read(hva, 64) == bytes(64)
    for enough in (wanted, limit):
        assert buffer_command(port, writer, command, hva, enough) == (0, 0, wanted)
    assert port.read(hva, 64) != bytes(64)
    assert port.read(hva + wanted, 64) == bytes(64)
    assert buffer_command(port, writer, command, hva, limit + 1) == (beyond, PRESET, limit + 1)
    assert buffer_command(port, writer, command, 0x1000, wanted) == (errno.EFAULT, 0, wanted)


def test_ids_are_the_chip_s_and_stay(port: FakePort, reader: int) -> None:
    code, error, ids = platform(port, reader, PlatformCmd.GET_ID, bytes(128))
    assert (code, error, ids[64:]) == (0, 0, bytes(64))
    x, y = int.from_bytes(ids[:32], "big"), int.from_bytes(ids[32:64], "big")
    ec.EllipticCurvePublicNumbers(x, y, ec.SECP256K1()).public_key()  # a point on that curve
    assert FakePort().kernel.firmware.keys.chip_ids == (ids[:64],)


def test_a_second_socket_tells_its_id_to_who_has_room_for_exactly_two() -> None:
    keys = PlatformKeys(API_VERSION, sockets=2)
    port = FakePort(Kernel(Firmware(keys=keys)))
    fd, hva = port.open_sev(), port.scratch_hva
    for room, wanted in ((64, 64), (127, 64), (128, 128), (129, 64)):
        assert buffer_command(port, fd, PlatformCmd.GET_ID2, hva, room) == (0, 0, wanted)
    first, second = keys.chip_ids
    assert platform(port, fd, PlatformCmd.GET_ID, bytes(128)) == (0, 0, first + second)
    assert first != second


def test_pdh_cert_export(port: FakePort, reader: int) -> None:
    pdh, chain = port.scratch_hva, port.scratch_hva + 0x4000
    queries = [(0, 0, 0, 0), (pdh, 0, chain, CHAIN), (0, CERT, chain, CHAIN), (pdh, CERT, 0, CHAIN)]
    shorts = [(pdh, CERT - 1, chain, CHAIN), (pdh, CERT, chain, CHAIN - 1), (pdh, CERT, chain, 0)]
    for arguments in queries + shorts:
        answer = pdh_export(port, reader, *arguments)
        assert answer == (errno.EIO, FwStatus.INVALID_LEN, CERT, CHAIN), arguments
    assert pdh_export(port, reader, pdh, 16385, chain, CHAIN) == (errno.EFAULT, PRESET, 16385, CHAIN)
    assert pdh_export(port, reader, pdh, CERT, chain, 16385) == (errno.EFAULT, PRESET, CERT, 16385)
    assert pdh_export(port, reader, 0x1000, CERT, chain, CHAIN) == (errno.EFAULT, 0, CERT, CHAIN)
    assert pdh_export(port, reader, pdh, 16384, chain, 16384) == (0, 0, CERT, CHAIN)
    assert port.read(pdh, CERT)[:16] == struct.pack("<IBB2xII", 1, *API_VERSION, 0x1003, 3)
    kinds = [sev_owner.kind(port.read(chain + i * CERT, 16)) for i in range(3)]
    assert kinds == [(1, 0x1002, 2), (1, 0x1001, 2), (1, 0x1004, 2)]


def test_what_each_command_makes_anew(port: FakePort, writer: int) -> None:
    def certs() -> tuple[bytes, bytes, bytes, bytes]:
        pdh, chain = export_chain(port, writer)
        return pdh, chain[:CERT], chain[CERT : 2 * CERT], chain[2 * CERT :]

    first = certs()
    assert certs() == first
    platform(port, writer, PlatformCmd.PDH_GEN)
    second = certs()
    assert [a == b for a, b in zip(first, second, strict=True)] == [False, True, True, True]
    platform(port, writer, PlatformCmd.PEK_GEN)
    third = certs()
    assert [a == b for a, b in zip(second, third, strict=True)] == [False, False, False, True]
    platform(port, writer, PlatformCmd.FACTORY_RESET)
    assert [a == b for a, b in zip(third, certs(), strict=True)] == [False, False, False, True]


def import_certs(port: FakePort, fd: int, pek: bytes, oca: bytes) -> tuple[int, int]:
    hvas = [port.map(cert).hva if cert else 0 for cert in (pek, oca)]
    data = struct.pack("<QIQI", hvas[0], len(pek), hvas[1], len(oca))
    return platform(port, fd, PlatformCmd.PEK_CERT_IMPORT, data)[:2]


def signed_request(port: FakePort, fd: int) -> tuple[bytes, bytes, ec.EllipticCurvePrivateKey]:
    """(PEK, OCA, its key): what an owner makes of the platform's request."""
    hva = port.scratch_hva
    assert buffer_command(port, fd, PlatformCmd.PEK_CSR, hva, CERT) == (0, 0, CERT)
    key = ec.generate_private_key(ec.SECP384R1())
    oca = sev_owner.sign_cert(sev_owner.raw_cert(key, OCA, sev_owner.ECDSA_SHA256), key, OCA)
    return sev_owner.sign_cert(port.read(hva, CERT), key, OCA), oca, key


def test_a_request_is_the_pek_without_signatures(port: FakePort, writer: int) -> None:
    _, chain = export_chain(port, writer)
    buffer_command(port, writer, PlatformCmd.PEK_CSR, port.scratch_hva, CERT)
    request = port.read(port.scratch_hva, CERT)
    assert request[:SIGNED] == chain[:SIGNED]
    assert [sev_owner.signature(request, i)[:2] for i in (0, 1)] == [(0x1000, 0)] * 2


def test_an_owner_takes_the_platform_and_factory_reset_frees_it(port: FakePort, writer: int) -> None:
    old_pdh, _ = export_chain(port, writer)
    pek, oca, _ = signed_request(port, writer)
    assert import_certs(port, writer, pek, oca) == (0, 0)
    assert status(port, writer).flags == 0x101
    keys = port.kernel.firmware.keys
    pdh, chain = export_chain(port, writer)
    sev_owner.verify_platform(pdh, chain, keys.signed_cek_cert.pack(), keys.amd.chain)
    assert chain[CERT : 2 * CERT] == oca
    assert pdh != old_pdh
    assert import_certs(port, writer, pek, oca) == (errno.EIO, FwStatus.ALREADY_OWNED)
    platform(port, writer, PlatformCmd.FACTORY_RESET)
    assert status(port, writer).flags == 0
    start_guest(port)
    assert status(port, writer).flags == 0x100


def test_pek_gen_forgets_the_owner(port: FakePort, writer: int) -> None:
    import_certs(port, writer, *signed_request(port, writer)[:2])
    platform(port, writer, PlatformCmd.PEK_GEN)
    assert status(port, writer).flags == 0x100


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_imports_that_are_refused(port: FakePort, writer: int) -> None:
    pek, oca, key = signed_request(port, writer)
    bad, wrong = FwStatus.BAD_SIGNATURE, FwStatus.INVALID_CERTIFICATE
    unsigned = oca[:SIGNED] + sev_owner.raw_cert(key, OCA, 2)[SIGNED:]
    other = ec.generate_private_key(ec.SECP384R1())
    foreign = sev_owner.sign_cert(sev_owner.raw_cert(other, PEK, 2), key, OCA)
    full = sev_owner.sign_cert(pek, key, OCA, number=1)
    malformed = pek[:SIGNED] + pek[SIGNED:].replace(
        struct.pack("<II", 0x1000, 0), struct.pack("<II", 0x1000, 2)
    )
    next_version = sev_owner.raw_cert(key, OCA, 2)
    next_version = sev_owner.sign_cert(b"\2" + next_version[1:], key, OCA)
    cases = [
        (pek[:-1], oca, FwStatus.INVALID_LEN),
        (pek, oca + b"\0", FwStatus.INVALID_LEN),
        (pek, flip(oca, SIGNED + 8), bad),  # the OCA's signature of itself
        (pek, flip(oca, 0x20), wrong),  # not a point on the curve any more
        (pek, unsigned, wrong),
        (flip(pek, SIGNED + 8), oca, bad),
        (flip(pek, 5), oca, bad),  # a signed byte
        (malformed, oca, bad),
        (sev_owner.sign_cert(pek[:SIGNED] + unsigned[SIGNED:], other, OCA), oca, bad),  # another's signature
        (foreign, oca, wrong),  # well signed, but not our PEK
        (full, oca, wrong),  # no room for the CEK's signature
        (oca, oca, wrong),
        (pek, pek, wrong),  # a PEK is no OCA
        (pek, next_version, wrong),
    ]
    for number, (pek_cert, oca_cert, status_wanted) in enumerate(cases):
        assert import_certs(port, writer, pek_cert, oca_cert) == (errno.EIO, status_wanted), number
    assert import_certs(port, writer, b"", oca) == (errno.EINVAL, PRESET)
    assert import_certs(port, writer, pek, b"") == (errno.EINVAL, PRESET)
    start_guest(port)
    assert import_certs(port, writer, pek, oca) == (errno.EIO, FwStatus.INVALID_PLATFORM_STATE)
    assert status(port, writer).flags == 0x100


def test_snp_commands_on_a_host_without_snp(port: FakePort, writer: int, reader: int) -> None:
    if port.kernel.generation == "old":
        for command in SNP:
            assert platform(port, writer, command, bytes(64)) == (errno.EINVAL, PRESET, bytes(64))
        return
    nothing = (errno.ENODEV, FwStatus.INVALID_PLATFORM_STATE)
    code, error, told = platform(port, reader, PlatformCmd.SNP_PLATFORM_STATUS, bytes(32))
    assert (code, error) == (0, 0)
    assert struct.unpack("<BBBBIIIQQ", told) == (*API_VERSION, 0, 0, 21, 8, 0, 0, 0)
    for command in (SNP[0], SNP[2], SNP[3]):
        assert platform(port, reader, command) == (errno.EINVAL, PRESET, b"")
    assert platform(port, reader, PlatformCmd.SNP_COMMIT)[:2] == nothing
    for command in SNP[2:]:
        assert platform(port, reader, command, bytes(64))[:2] == (errno.EPERM, PRESET)
    assert platform(port, writer, PlatformCmd.SNP_SET_CONFIG, bytes(64))[:2] == nothing
    for nbytes, version, hva, wanted in (
        (15, 0, port.scratch_hva, (errno.EINVAL, PRESET)),
        (16, 1, port.scratch_hva, (errno.EINVAL, PRESET)),
        (16, 0, 0, (errno.EINVAL, PRESET)),
        (16, 0, 0x1000, (errno.EFAULT, PRESET)),
        (16, 0, port.scratch_hva, nothing),
    ):
        data = struct.pack("<IB3xQ", nbytes, version, hva)
        assert platform(port, writer, PlatformCmd.SNP_VLEK_LOAD, data)[:2] == wanted
