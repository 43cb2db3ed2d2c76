"""Registers of SEV-ES guests on a pretend host, over the real KVM and without one."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from sevkvm.shim.supervisor import SevHost
from tests.support.sevhost import require_kvm_mode
from tests.support.sevprog import run

pytestmark = pytest.mark.host

EINVAL = -errno.EINVAL

SEALED = """
GET_REGS, SET_REGS, GET_SREGS, SET_SREGS = 0x8090AE81, 0x4090AE82, 0x8138AE83, 0x4138AE84
GET_SREGS2, GET_FPU, GET_DEBUGREGS, GUEST_DEBUG = 0x8140AECC, 0x81A0AE8C, 0x8080AEA1, 0x4048AE9B
def get(vcpu, request):
    data = bytearray(request >> 16 & 0x3FFF)
    return ioctl(vcpu, request, hva(data)), bytes(data)
def put(vcpu, request, data):
    data = bytearray(data)
    return ioctl(vcpu, request, hva(data))
kvm = os.open("/dev/kvm", os.O_RDWR)
vm = ioctl(kvm, 0xAE01, int(sys.argv[1]))
sev = os.open("/dev/sev", os.O_RDWR)
assert (op(vm, 22, bytes(48)) if int(sys.argv[1]) else op(vm, 1))[0] == 0
assert op(vm, 2, struct.pack("<IIQI4xQI4x", 0, 4, 0, 0, 0, 0), sev_fd=sev)[0] == 0
vcpu = ioctl(vm, 0xAE41, 0)
sregs = bytearray(get(vcpu, GET_SREGS)[1])
struct.pack_into("<QQQQ", sregs, 224, 0x80050033, 0, 0x5000, 0x20)  # cr0, cr2, cr3, cr4
struct.pack_into("<Q", sregs, 264, 0x500)  # efer
set_sregs = put(vcpu, SET_SREGS, sregs)
set_regs = put(vcpu, SET_REGS, struct.pack("<18Q", *range(16), 0x1234, 2))
debug = put(vcpu, GUEST_DEBUG, struct.pack("<I68x", 1)), op(vm, 4)[:2]
put(vcpu, GUEST_DEBUG, bytes(72))
def control(sregs):
    return struct.unpack_from("<QQQQ", sregs, 224)
open_cr3 = control(get(vcpu, GET_SREGS)[1])[2]
sealed = op(vm, 4)[:2]
results = [get(vcpu, r)[0] for r in (GET_REGS, GET_SREGS, GET_SREGS2, GET_FPU, GET_DEBUGREGS)]
told = get(vcpu, GET_SREGS)[1]
say(set_sregs=set_sregs, set_regs=set_regs, debug=debug, open_cr3=open_cr3, sealed=sealed, results=results,
    sregs=control(told), efer=struct.unpack_from("<Q", told, 264)[0], segments=any(told[:224]),
    rip=struct.unpack_from("<Q", get(vcpu, GET_REGS)[1], 128)[0],
    debug_again=put(vcpu, GUEST_DEBUG, bytes(72)), set_again=put(vcpu, SET_SREGS, sregs))
"""


@pytest.fixture(params=["real", "standin"], scope="module")
def host(request: pytest.FixtureRequest) -> Iterator[SevHost]:
    require_kvm_mode(request.param)
    with SevHost(kvm=request.param) as host:
        yield host


def test_the_default_type_tells_a_little(host: SevHost) -> None:
    out = run(host, SEALED, "0")
    assert (out["set_sregs"], out["set_regs"], out["open_cr3"]) == (0, 0, 0x5000)
    assert out["debug"] == [0, [EINVAL, 0xFFFFFFFF]]
    assert out["sealed"] == [0, 0]
    assert out["results"] == [0] * 5
    assert out["sregs"] == [0x80050033, 0, 0, 0x20]
    assert out["efer"] == 0x500
    assert not out["segments"]
    assert out["rip"] == 0x1234  # stale
    assert (out["debug_again"], out["set_again"]) == (EINVAL, 0)


def test_the_new_type_tells_nothing(host: SevHost) -> None:
    out = run(host, SEALED, "3")
    assert out["open_cr3"] == 0x5000
    assert out["sealed"] == [0, 0]
    assert out["results"] == [EINVAL] * 5
    assert (out["debug_again"], out["set_again"]) == (EINVAL, EINVAL)
