"""Door 2 through the house's own VmFd and VcpuFd."""

import errno

import pytest

from sevkvm import errors
from sevkvm.abi import sev
from sevkvm.abi.kvm import CpuidEntry
from sevkvm.abi.policybits import POLICY_ES, POLICY_NODBG
from sevkvm.host.kvm import VcpuFd, VmFd
from sevkvm.host.port import IoctlPort
from sevkvm.shim.port import FakePort, launch_guest

RAM = bytes(range(256)) * 64  # four pages
SHARED = (0x2000, 0x1000)


def test_a_launched_guest_is_noise_outside_and_plaintext_through_debug() -> None:
    guest = launch_guest({0: RAM}, shared=[SHARED])
    port: IoctlPort = guest.port
    hva = guest.hva(0)
    stored = port.read(hva, len(RAM))
    assert stored[0x2000:0x3000] == RAM[0x2000:0x3000]
    assert all(stored[a : a + 16] != RAM[a : a + 16] for a in range(0, 0x2000, 16))
    VmFd(port, guest.vm_fd).sev_dbg_decrypt(hva, port.scratch_hva, len(RAM))
    plain = port.read(port.scratch_hva, len(RAM))
    assert plain[:0x2000] == RAM[:0x2000]
    assert plain[0x3000:] == RAM[0x3000:]
    assert plain[0x2000:0x3000] != RAM[0x2000:0x3000]  # a shared page decrypts to noise
    assert guest.port.kernel.firmware.counts["DBG_DECRYPT"] == 4


def test_encrypt_then_decrypt() -> None:
    guest = launch_guest({0: RAM})
    port, vm = guest.port, VmFd(guest.port, guest.vm_fd)
    port.write(port.scratch_hva, b"A" * 32)
    vm.sev_dbg_encrypt_unchecked(port.scratch_hva, guest.hva(0x1000), 32)
    assert port.read(guest.hva(0x1000), 32) != b"A" * 32
    vm.sev_dbg_decrypt(guest.hva(0x1000), port.scratch_hva + 0x1000, 64)
    assert port.read(port.scratch_hva + 0x1000, 64) == b"A" * 32 + RAM[0x1020:0x1040]


def test_status_policy_and_nodbg() -> None:
    guest = launch_guest({0: RAM}, policy=POLICY_NODBG)
    vm = VmFd(guest.port, guest.vm_fd)
    assert vm.sev_available()
    assert vm.sev_guest_status() == sev.GuestStatus(1, POLICY_NODBG, sev.GuestState.RUNNING)
    with pytest.raises(errors.FirmwareError) as refused:
        vm.sev_dbg_decrypt(guest.hva(0), guest.port.scratch_hva, 4096)
    assert refused.value.status == sev.FwStatus.POLICY_FAILURE


def test_a_vm_without_sev() -> None:
    guest = launch_guest({0: RAM}, policy=None)
    with pytest.raises(errors.IoctlError) as refused:
        VmFd(guest.port, guest.vm_fd).sev_guest_status()
    assert refused.value.errno == errno.ENOTTY
    assert guest.port.read(guest.hva(0), 16) == RAM[:16]


def test_vcpu_registers_and_cpuid() -> None:
    guest = launch_guest({0: RAM}, vcpus=2)
    state = guest.vcpu(1)
    state.regs = state.regs._replace(rip=0x1234, r15=7)
    state.sregs = state.sregs._replace(cr3=0x8_0000_0000_2000)
    state.cpuid = [CpuidEntry(0x8000001F, 0, 0, 2, 51, 0, 0)]
    vcpu = VcpuFd(guest.port, guest.vcpu_fds[1], 1)
    assert vcpu.get_regs() == state.regs
    assert vcpu.get_sregs() == state.sregs
    assert vcpu.get_cpuid2() == state.cpuid
    vcpu.set_regs(state.regs._replace(rax=5))
    assert vcpu.get_regs().rax == 5
    assert VcpuFd(guest.port, guest.vcpu_fds[0], 0).get_regs().rip == 0xFFF0


def test_sealed_registers_of_a_legacy_sev_es_guest_tell_no_cr3() -> None:
    guest = launch_guest({0: RAM}, policy=POLICY_ES, es=True, finish=False)
    guest.vcpu().sregs = guest.vcpu().sregs._replace(cr3=0x5000, cr4=0x20, efer=0x500)
    vcpu = VcpuFd(guest.port, guest.vcpu_fds[0], 0)
    assert vcpu.get_sregs().cr3 == 0x5000
    guest.port.sev_op(guest.vm_fd, sev.SevCmd.LAUNCH_UPDATE_VMSA)
    sealed = vcpu.get_sregs()
    assert (sealed.cr3, sealed.cr4, sealed.efer) == (0, 0x20, 0x500)


def test_another_process_gets_eio_with_everything_untouched() -> None:
    guest = launch_guest({0: RAM}, vcpus=1)
    other = FakePort(guest.port.kernel, pid=77)
    other.files.update(guest.port.files)
    with pytest.raises(errors.IoctlError) as refused:
        VmFd(other, guest.vm_fd).sev_guest_status()
    assert refused.value.errno == errno.EIO
    assert other.sev_error() == sev.SEV_RET_NO_FW_CALL
    with pytest.raises(errors.IoctlError) as refused:
        VcpuFd(other, guest.vcpu_fds[0], 0).get_regs()
    assert refused.value.errno == errno.EIO


def test_reading_past_memory_is_short() -> None:
    port = FakePort()
    region = port.map(b"x")
    buffer = bytearray(8192)
    assert port.readinto(region.hva, memoryview(buffer)) == 4096
    with pytest.raises(errors.MemoryFault) as fault:
        port.read(region.hva, 4097)
    assert fault.value.address == region.hva + 4096
