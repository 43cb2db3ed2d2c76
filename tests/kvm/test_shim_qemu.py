"""Unmodified QEMU on a pretend SEV host."""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevkvm.abi.policybits import POLICY_ES, POLICY_NODBG
from sevkvm.host.deputy import Deputy
from sevkvm.host.kvm import VmFd
from sevkvm.shim.supervisor import SevHost
from tests.support.qemu import QemuVmm, qemu, require_kvm_qemu
from tests.support.sevhost import require_kvm_mode

pytestmark = pytest.mark.kvm

BIOS_GPA = 0xFFFF0000


@pytest.fixture
def host() -> Iterator[SevHost]:
    require_kvm_qemu()
    require_kvm_mode("real")
    with SevHost(kvm="real") as host:
        yield host


@pytest.mark.parametrize("sandbox", [False, True], ids=["open", "sandboxed"])
@pytest.mark.parametrize("memfd", [False, True], ids=["private", "memfd"])
def test_it_launches_and_runs_and_stops(host: SevHost, sandbox: bool, memfd: bool) -> None:
    with qemu(popen=host.popen, sev_policy=0, sandbox=sandbox, memfd=memfd) as vmm:
        assert "state: launch-secret" in vmm.hmp("info sev")
        vmm.execute("cont")
        told = vmm.hmp("info sev")
        assert "state: running" in told
        assert "debug: on" in told
        assert vmm.execute("query-sev")["policy"] == 0
        for _ in range(3):
            vmm.execute("stop")
            assert vmm.execute("query-status")["status"] == "paused"
            vmm.execute("cont")
    assert host.log.names()[:3] == ["PLATFORM_STATUS", "INIT", "LAUNCH_START"]
    assert host.kernel.firmware.counts["LAUNCH_FINISH"] == 1


def test_its_firmware_image_is_ciphertext_that_the_deputy_decrypts(host: SevHost) -> None:
    with qemu() as plain, Deputy(plain.pid) as deputy:
        wanted = deputy.read(plain.gpa2hva(BIOS_GPA), 0x10000)
    with qemu(popen=host.popen, sev_policy=0, sandbox=True) as vmm:
        hva = vmm.gpa2hva(BIOS_GPA)
        with Deputy(vmm.pid) as deputy:
            assert deputy.read(hva, 0x10000) != wanted
            VmFd(deputy, vmm.vm_fd).sev_dbg_decrypt(hva, deputy.scratch_hva, 0x10000)
            assert deputy.read(deputy.scratch_hva, 0x10000) == wanted
        assert vmm.execute("query-status")["status"] == "prelaunch"
    assert host.kernel.firmware.counts["DBG_DECRYPT"] == 16


def flash_image() -> bytes:
    """A firmware of nothing but halts, with the table in which QEMU looks for the reset address of SEV-ES vCPUs.

    Layout (OVMF's GUIDed table): ... data, length, GUID of each entry; total length, GUID of the table; 32 bytes.
    """
    reset_block = uuid.UUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e").bytes_le
    footer = uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
    entry = struct.pack("<IH", 0xFFFF0000, 4 + 2 + 16) + reset_block
    table = entry + struct.pack("<H", len(entry) + 2 + 16) + footer
    return b"\xf4" * (0x10000 - 32 - len(table)) + table + b"\xf4" * 32


def test_sev_es_launches_too(host: SevHost, tmp_path: Path) -> None:
    flash = tmp_path / "flash"
    flash.write_bytes(flash_image())
    extra = ["-drive", f"if=pflash,format=raw,readonly=on,file={flash}"]
    with qemu(popen=host.popen, sev_policy=POLICY_ES, cpus=2, extra=extra) as vmm:
        assert vmm.execute("query-sev")["policy"] == POLICY_ES
        vmm.execute("cont")
        assert "state: running" in vmm.hmp("info sev")
        with Deputy(vmm.pid) as deputy:
            hva = vmm.gpa2hva(BIOS_GPA)
            VmFd(deputy, vmm.vm_fd).sev_dbg_decrypt(hva, deputy.scratch_hva, 0x10000)
            assert deputy.read(deputy.scratch_hva, 0x10000) == flash_image()
    assert host.log.names()[1] == "ES_INIT"
    assert host.kernel.firmware.counts["LAUNCH_UPDATE_VMSA"] == 2


def test_the_launch_measurement_can_be_verified(host: SevHost) -> None:
    with qemu(popen=host.popen, sev_policy=0) as vmm:
        blob = base64.b64decode(vmm.execute("query-sev-launch-measure")["data"])
        info = vmm.execute("query-sev")
        hva = vmm.gpa2hva(0xFFFC0000)
        with Deputy(vmm.pid) as deputy:
            vm = VmFd(deputy, vmm.vm_fd)
            vm.sev_dbg_decrypt(hva, deputy.scratch_hva, 0x40000)
            digest = hashlib.sha256(deputy.read(deputy.scratch_hva, 0x40000)).digest()
    version = bytes([0x04, info["api-major"], info["api-minor"], info["build-id"]])
    message = version + info["policy"].to_bytes(4, "little") + digest + blob[32:]
    no_session = bytes(16)  # the integrity key of a guest whose owner brought none
    assert blob[:32] == hmac.new(no_session, message, hashlib.sha256).digest()


def test_nodbg_is_what_qemu_chooses_by_default(host: SevHost) -> None:
    with qemu(popen=host.popen, sev_policy=POLICY_NODBG) as vmm:
        assert "debug: off" in vmm.hmp("info sev")


def instruction(vmm: QemuVmm) -> int:
    return int(vmm.hmp("info registers").split("IP=")[1].split()[0], 16)


def test_an_unencrypted_guest_beside_it_runs_on_the_real_kvm(host: SevHost) -> None:
    with (
        qemu(popen=host.popen, sev_policy=0, stopped=False) as sealed,
        qemu(popen=host.popen, stopped=False) as plain,
    ):
        for vmm in (sealed, plain):
            assert vmm.execute("query-status")["status"] == "running"
        deadline = time.monotonic() + 10
        while instruction(plain) == 0xFFF0:  # it leaves its reset vector
            assert time.monotonic() < deadline
            time.sleep(0.01)
        sealed.execute("stop")
        assert instruction(sealed) == 0xFFF0
