"""x87 and vector registers with known contents, written into a vCPU."""

from __future__ import annotations

import struct

from sevkvm.abi import kvm as abi
from sevkvm.host.deputy import Deputy
from sevkvm.host.kvm import VcpuFd

CR4_OSXSAVE = 1 << 18
_XSTATE_BV_OFFSET = 512
_YMM_OFFSET = 576


def load_vectors(port: Deputy, vcpu_fd: int) -> None:
    """XCR0 = 7 (x87, SSE, AVX), every byte of ST, XMM and YMM different from its neighbours, odd control words."""
    vcpu = VcpuFd(port, vcpu_fd, 0)
    sregs = vcpu.get_sregs()
    vcpu.set_sregs(sregs._replace(cr4=sregs.cr4 | CR4_OSXSAVE))
    xcrs = struct.pack("<IIIIQ", 1, 0, 0, 0, 7).ljust(abi.request_nbytes(abi.KVM_SET_XCRS), b"\0")
    port.write(port.args_hva, xcrs)
    port.ioctl(vcpu_fd, abi.KVM_SET_XCRS, port.args_hva)
    area = bytearray(abi.request_nbytes(abi.KVM_SET_XSAVE))
    struct.pack_into("<HHB19xI", area, 0, 0x27F, 5 << 11, 0x41, 0x1FA0)
    area[32:160] = bytes(range(1, 129))
    for offset in range(32, 160, 16):
        area[offset + 10 : offset + 16] = bytes(6)
    area[160:416] = bytes(range(256))
    area[_YMM_OFFSET : _YMM_OFFSET + 256] = bytes(255 - each for each in range(256))
    struct.pack_into("<Q", area, _XSTATE_BV_OFFSET, 7)
    port.write(port.args_hva, bytes(area))
    port.ioctl(vcpu_fd, abi.KVM_SET_XSAVE, port.args_hva)
