"""How an unmodified QEMU launches SEV guests: what its monitor answers on the way, kernel hashes, SEV-ES."""

from __future__ import annotations

import base64
import hashlib
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sevkvm.abi.policybits import POLICY_ES
from sevkvm.host.deputy import Deputy
from sevkvm.host.kvm import VmFd
from sevkvm.shim.supervisor import SevHost
from tests.support.qemu import QemuVmm, qemu, require_kvm_qemu
from tests.support.sevhost import Host, require_kvm_mode, sev_host

pytestmark = [pytest.mark.kvm, pytest.mark.sev]

HASHES_GPA, HASHES_NBYTES = 0x10000, 0x1000
RESET_BLOCK = uuid.UUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e")
HASH_TABLE_PLACE = uuid.UUID("7255371f-3a3b-4b04-927b-1da6efa8d454")
FOOTER = uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
HASH_TABLE = uuid.UUID("9438d606-4f22-4cc9-b479-a793d411fd21")
KERNEL_HASH = uuid.UUID("4de79437-abd2-427f-b835-d5b172d2045b")
POLICIES = {"sev": 0, "sev-es": POLICY_ES}


@pytest.fixture
def host() -> Iterator[Host]:
    require_kvm_qemu()
    require_kvm_mode("real")
    with sev_host(kvm="real") as host:
        yield host


def flash_image() -> bytes:
    """A firmware of nothing but halts, with the two tables that QEMU looks for.

    Layout (OVMF's GUIDed table): ... data, length, GUID of each entry; total length, GUID of the table; 32 bytes.
    """
    entries = b""
    reset = struct.pack("<I", 0xFFFF0000), RESET_BLOCK
    for data, guid in (reset, (struct.pack("<II", HASHES_GPA, HASHES_NBYTES), HASH_TABLE_PLACE)):
        entries += data + struct.pack("<H", len(data) + 2 + 16) + guid.bytes_le
    table = entries + struct.pack("<H", len(entries) + 2 + 16) + FOOTER.bytes_le
    return b"\xf4" * (0x10000 - 32 - len(table)) + table + b"\xf4" * 32


def kernel_image() -> bytes:
    """As little of a bzImage as QEMU insists on: one setup sector, boot protocol 2.15, loaded high."""
    image = bytearray(0x2000)
    image[0x1F1] = 1
    struct.pack_into("<H", image, 0x1FE, 0xAA55)
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, 0x020F)
    image[0x211] = 1
    struct.pack_into("<I", image, 0x22C, 0x7FFFFFFF)  # initrd_addr_max
    return bytes(image)


def flash(directory: Path) -> list[str]:
    (directory / "flash").write_bytes(flash_image())
    return ["-drive", f"if=pflash,format=raw,readonly=on,file={directory / 'flash'}"]


def decrypted(vmm: QemuVmm, gpa: int, nbytes: int) -> bytes:
    hva = vmm.gpa2hva(gpa)
    with Deputy(vmm.pid) as deputy:
        VmFd(deputy, vmm.vm_fd).sev_dbg_decrypt(hva, deputy.scratch_hva, nbytes)
        return deputy.read(deputy.scratch_hva, nbytes)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_the_monitor_on_the_way_to_running(host: Host, tmp_path: Path, policy: int) -> None:
    with qemu(popen=host.popen, sev_policy=policy, extra=flash(tmp_path), cpus=2) as vmm:
        assert vmm.execute("query-status")["status"] == "prelaunch"
        told: dict[str, Any] = vmm.execute("query-sev")
        assert told["enabled"]
        assert (told["state"], told["policy"], told["handle"]) == ("launch-secret", policy, 1)
        assert len(base64.b64decode(vmm.execute("query-sev-launch-measure")["data"])) == 48
        vmm.execute("cont")
        assert vmm.execute("query-sev")["state"] == "running"
        assert vmm.execute("query-status")["status"] == "running"
        assert "key-sharing: on" in vmm.hmp("info sev")
        vmm.execute("stop")
        vmm.execute("cont")
        assert vmm.execute("query-status")["status"] == "running"
    if isinstance(host, SevHost):
        assert host.kernel.firmware.counts["LAUNCH_UPDATE_VMSA"] == (2 if policy else 0)
        assert host.log.counts["LAUNCH_FINISH"] == 1


def test_what_it_tells_of_the_platform(host: Host) -> None:
    with qemu(popen=host.popen) as vmm:
        told = vmm.execute("query-sev-capabilities")
        sizes = [len(base64.b64decode(told[name])) for name in ("pdh", "cert-chain", "cpu0-id")]
        assert sizes == [2084, 3 * 2084, 64]
        assert not vmm.execute("query-sev")["enabled"]


def test_kernel_hashes_become_part_of_the_launch(host: Host, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(kernel_image())
    extra = [*flash(tmp_path), "-kernel", str(kernel), "-append", "quiet"]
    with qemu(popen=host.popen, sev_policy=0, sev_options="kernel-hashes=on", extra=extra) as vmm:
        table = decrypted(vmm, HASHES_GPA, 0x1000)
    assert table[:16] == HASH_TABLE.bytes_le
    entry = table.index(KERNEL_HASH.bytes_le)
    # QEMU hashes what it hands to the guest, header fields filled in: only the size and the guid are the file's
    assert struct.unpack_from("<H", table, entry + 16) == (50,)
    assert table[entry + 18 : entry + 50] != bytes(32)
    command_line = hashlib.sha256(b"quiet\0").digest()
    assert command_line in table
    if isinstance(host, SevHost):
        assert host.log.counts["LAUNCH_UPDATE_DATA"] == 2
