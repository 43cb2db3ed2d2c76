"""A real QEMU's monitor, through its socket and through virsh."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sevkvm import errors
from sevkvm.host import discovery, monitorfacts, slots
from sevkvm.host.qmp import Monitor, QmpMonitor
from sevkvm.host.virsh import VirshMonitor
from tests.support.qemu import QemuVmm, qemu, require_kvm_qemu

pytestmark = pytest.mark.kvm


@pytest.fixture(autouse=True)
def _needs_qemu() -> None:
    require_kvm_qemu()


def test_facts_from_the_monitor() -> None:
    with qemu(cpus=2) as vmm, closing(QmpMonitor(vmm.qmp_path)) as monitor:
        tids = monitorfacts.vcpu_thread_ids(monitor)
        names = {Path(f"/proc/{vmm.pid}/task/{tid}/comm").read_text().strip() for tid in tids.values()}
        assert list(tids) == [0, 1]
        assert names == {"CPU 0/KVM", "CPU 1/KVM"}
        assert monitorfacts.run_state(monitor) == "prelaunch"
        assert monitorfacts.cbit_position(monitor) is None
        info = monitorfacts.sev_info(monitor)
        assert info is not None
        assert (info.enabled, info.snp) == (False, False)
        with pytest.raises(errors.MonitorRefused, match="no-such-command"):
            monitor.execute("no-such-command")
        assert monitor.hmp("no such command").startswith("unknown command")


def test_the_command_line_names_a_free_monitor() -> None:
    with qemu() as vmm:
        # the test's own client holds the second socket
        assert discovery.monitor_socket(vmm.pid) == vmm.qmp_path
        with closing(QmpMonitor(vmm.qmp_path)) as monitor:
            assert monitorfacts.run_state(monitor) == "prelaunch"
            with pytest.raises(errors.AttachError, match="another client"):
                discovery.monitor_socket(vmm.pid)
            with pytest.raises(errors.TargetTimeout, match="has not greeted"):
                QmpMonitor(vmm.qmp_path, timeout=0.3)
        assert discovery.monitor_socket(vmm.pid) == vmm.qmp_path


def test_a_monitor_by_chardev(tmp_path: Path) -> None:
    path = tmp_path / "a,b.sock"
    chardev = f"socket,id=m0,path={tmp_path}/a,,b.sock,server=on,wait=off"
    extra = ("-chardev", chardev, "-mon", "chardev=m0,mode=control")
    with qemu(extra=extra) as vmm, closing(QmpMonitor(vmm.qmp_path)):
        assert discovery.monitor_socket(vmm.pid) == str(path)


def test_a_stopped_vmm_is_a_timeout_not_a_hang() -> None:
    with qemu() as vmm, closing(QmpMonitor(vmm.qmp_path, timeout=0.3)) as monitor:
        os.kill(vmm.pid, 19)  # SIGSTOP
        try:
            with pytest.raises(errors.TargetTimeout, match="has not answered"):
                monitor.hmp("info status")
        finally:
            os.kill(vmm.pid, 18)  # SIGCONT


def test_a_vmm_that_dies_while_asked() -> None:
    with qemu() as vmm, closing(QmpMonitor(vmm.qmp_path)) as monitor:
        vmm.process.kill()
        vmm.process.wait(20)
        with pytest.raises(errors.ProtocolError, match="broke off"):
            monitor.hmp("info status")


FAKE_VIRSH = """\
#!{python}
import json, sys
sys.path.insert(0, {root!r})
from tests.support.qmp import QmpClient, QmpError
_, quiet, verb, domain, *question = sys.argv
assert (quiet, verb) == ("--quiet", "qemu-monitor-command"), sys.argv
if domain != "web":
    sys.exit(f"error: failed to get domain {{domain!r}}")
client = QmpClient({socket!r})
if question[0] == "--hmp":
    print(client.execute("human-monitor-command", **{{"command-line": question[1]}}))
else:
    request = json.loads(question[0])
    answer = {{"id": "libvirt-9"}}
    try:
        answer["return"] = client.execute(request["execute"], **request.get("arguments", {{}}))
    except QmpError as error:
        answer["error"] = {{"class": "GenericError", "desc": str(error)}}
    print(json.dumps(answer))
"""


@pytest.fixture
def libvirt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[QemuVmm]:
    """A QEMU that a virsh on PATH calls ``web``."""
    with qemu(cpus=2) as vmm:
        script = FAKE_VIRSH.format(python=sys.executable, root=str(Path.cwd()), socket=vmm.qmp_path)
        (tmp_path / "virsh").write_text(script)
        (tmp_path / "virsh").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        yield vmm


def test_virsh_tells_what_the_socket_tells(libvirt: QemuVmm) -> None:
    virsh = VirshMonitor("web", timeout=20)
    direct: Monitor = QmpMonitor(libvirt.qmp_path)
    with closing(direct):
        expected = [
            slots.from_monitor(direct, libvirt.pid),
            monitorfacts.vcpu_thread_ids(direct),
            monitorfacts.sev_info(direct),
            monitorfacts.run_state(direct),
            direct.hmp("info registers"),
        ]
    assert [
        slots.from_monitor(virsh, libvirt.pid),
        monitorfacts.vcpu_thread_ids(virsh),
        monitorfacts.sev_info(virsh),
        monitorfacts.run_state(virsh),
        virsh.hmp("info registers"),
    ] == expected
    assert monitorfacts.cbit_position(virsh) is None
    with pytest.raises(errors.AttachError, match="failed to get domain 'db'"):
        VirshMonitor("db", timeout=20).hmp("info status")
