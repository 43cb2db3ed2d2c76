"""The whole of remote attestation with an unmodified QEMU: an owner's session, measurement, secret and report."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sevkvm.host.deputy import Deputy
from sevkvm.host.kvm import VmFd
from sevkvm.shim.supervisor import SevHost
from tests.support.qemu import QemuVmm, qemu, require_kvm_qemu, start_qemu
from tests.support.qmp import QmpError
from tests.support.sev_owner import CERT, Owner, Refused, verify_platform, verify_report
from tests.support.sevhost import require_kvm_mode

pytestmark = pytest.mark.kvm

BIOS_NBYTES = 0x40000
BIOS_GPA = (1 << 32) - BIOS_NBYTES
SECRET_GPA = 0x200000
SECRET = b"for the guest's eyes only, please"[:32]


@pytest.fixture(scope="module")
def host() -> Iterator[SevHost]:
    require_kvm_qemu()
    require_kvm_mode("real")
    with SevHost(kvm="real") as host:
        yield host


def decode(answer: dict[str, Any], key: str) -> bytes:
    return base64.b64decode(answer[key])


def bios(vmm: QemuVmm) -> bytes:
    """The firmware image that QEMU launched: what DBG_DECRYPT says was there."""
    with Deputy(vmm.pid) as deputy:
        VmFd(deputy, vmm.vm_fd).sev_dbg_decrypt(vmm.gpa2hva(BIOS_GPA), deputy.scratch_hva, BIOS_NBYTES)
        return deputy.read(deputy.scratch_hva, BIOS_NBYTES)


def test_an_owner_attests_a_guest_of_an_unmodified_qemu(host: SevHost, tmp_path: Path) -> None:
    keys = host.kernel.firmware.keys
    with qemu(popen=host.popen, sev_policy=0) as vmm:
        told = vmm.execute("query-sev-capabilities")
    pdh, chain = decode(told, "pdh"), decode(told, "cert-chain")
    verify_platform(pdh, chain, keys.signed_cek_cert.pack(), keys.amd.chain)
    owner = Owner(pdh, policy=0)
    for name, blob in (("owner.b64", owner.cert), ("session.b64", owner.session)):
        (tmp_path / name).write_bytes(base64.b64encode(blob))
    sev_guest = f"dh-cert-file={tmp_path}/owner.b64,session-file={tmp_path}/session.b64"
    with qemu(popen=host.popen, sev_policy=0, sev_options=sev_guest) as vmm:
        info = vmm.execute("query-sev")
        version = (info["api-major"], info["api-minor"], info["build-id"])
        measurement = decode(vmm.execute("query-sev-launch-measure"), "data")
        image = bios(vmm)
        owner.verify_measurement(measurement, version, image)
        with pytest.raises(Refused):
            owner.verify_measurement(measurement, version, image[:-1])
        nonce = os.urandom(16)
        answer = vmm.execute("query-sev-attestation-report", mnonce=base64.b64encode(nonce).decode())
        verify_report(decode(answer, "data"), chain[:CERT], nonce, image, 0)
        header, packet = (base64.b64encode(blob).decode() for blob in owner.secret(SECRET, measurement))
        forged = base64.b64encode(bytes(reversed(base64.b64decode(packet)))).decode()
        arguments = {"packet-header": header, "gpa": SECRET_GPA}
        with pytest.raises(QmpError, match="Bad measurement"):
            vmm.execute("sev-inject-launch-secret", secret=forged, **arguments)
        vmm.execute("sev-inject-launch-secret", secret=packet, **arguments)
        with Deputy(vmm.pid) as deputy:
            hva = vmm.gpa2hva(SECRET_GPA)
            assert SECRET not in deputy.read(hva, 4096)
            VmFd(deputy, vmm.vm_fd).sev_dbg_decrypt(hva, deputy.scratch_hva, 4096)
            assert deputy.read(deputy.scratch_hva, 32) == SECRET
        vmm.execute("cont")
        assert vmm.execute("query-sev")["state"] == "running"


def test_qemu_ends_where_the_session_is_for_another_policy(host: SevHost, tmp_path: Path) -> None:
    pdh, _ = host.kernel.firmware.keys.pdh_export()
    owner = Owner(pdh, policy=1)
    for name, blob in (("owner.b64", owner.cert), ("session.b64", owner.session)):
        (tmp_path / name).write_bytes(base64.b64encode(blob))
    sev_guest = f"dh-cert-file={tmp_path}/owner.b64,session-file={tmp_path}/session.b64"
    with pytest.raises(AssertionError, match="Bad measurement"):
        start_qemu(popen=host.popen, sev_policy=0, sev_options=sev_guest)
