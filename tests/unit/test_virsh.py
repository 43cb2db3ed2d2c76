"""The libvirt monitor, with a virsh of our own on PATH."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sevkvm import errors
from sevkvm.host.virsh import VirshMonitor


@pytest.fixture
def virsh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its body is for the test to write; its arguments land in the file ``args``."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path / "virsh"


def write(virsh: Path, body: str) -> None:
    log = virsh.parent / "args"
    virsh.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > "{log}"\n{body}\n')
    virsh.chmod(0o755)


def arguments(virsh: Path) -> list[str]:
    return (virsh.parent / "args").read_text().splitlines()


def test_hmp(virsh: Path) -> None:
    write(virsh, r"printf 'one\r\ntwo\r\n\n'")
    assert VirshMonitor("web").hmp("info mtree -f") == "one\ntwo\n"
    assert arguments(virsh) == ["--quiet", "qemu-monitor-command", "web", "--hmp", "info mtree -f"]


def test_execute(virsh: Path) -> None:
    write(virsh, """echo '{"return":[{"cpu-index":0}],"id":"libvirt-7"}'""")
    monitor = VirshMonitor("web")
    assert monitor.execute("query-cpus-fast") == [{"cpu-index": 0}]
    assert json.loads(arguments(virsh)[-1]) == {"execute": "query-cpus-fast"}
    monitor.execute("qom-get", {"path": "/objects/lsec0", "property": "cbitpos"})
    assert json.loads(arguments(virsh)[-1]) == {
        "execute": "qom-get",
        "arguments": {"path": "/objects/lsec0", "property": "cbitpos"},
    }
    monitor.close()


def test_a_refusal(virsh: Path) -> None:
    write(virsh, """echo '{"id":"libvirt-7","error":{"class":"GenericError","desc":"SEV is not enabled"}}'""")
    with pytest.raises(errors.MonitorRefused, match="SEV is not enabled"):
        VirshMonitor("web").execute("query-sev-capabilities")


@pytest.mark.parametrize("said", ["", "text", "[]", "{}", '{"error": "x"}', "[" * 100_000])
def test_nonsense(virsh: Path, said: str) -> None:
    (virsh.parent / "said").write_text(said)
    write(virsh, f"cat {virsh.parent}/said")
    with pytest.raises(errors.ProtocolError, match="query-x"):
        VirshMonitor("web").execute("query-x")


def test_virshs_own_errors_are_passed_on(virsh: Path) -> None:
    write(virsh, "echo \"error: failed to get domain 'web'\" >&2; exit 1")
    with pytest.raises(errors.AttachError, match="failed to get domain 'web'") as caught:
        VirshMonitor("web").hmp("info status")
    assert caught.value.help is not None
    assert "virsh list" in caught.value.help


def test_no_virsh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(errors.AttachError, match="cannot run virsh"):
        VirshMonitor("web").hmp("info status")


@pytest.mark.parametrize("domain", ["", "-c", "--connect=x"])
def test_a_domain_is_no_option(domain: str) -> None:
    with pytest.raises(errors.UsageError):
        VirshMonitor(domain)


@pytest.mark.parametrize("body", ["exec sleep 30", "exec >&- 2>&-; exec sleep 30"])
def test_a_virsh_that_hangs_is_ended(virsh: Path, body: str) -> None:
    write(virsh, f'echo $$ > "{virsh.parent}/pid"; {body}')
    with pytest.raises(errors.TargetTimeout, match=r"has not answered in 0\.3 s"):
        VirshMonitor("web", timeout=0.3).hmp("info status")
    pid = int((virsh.parent / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_virsh_that_talks_for_ever_is_ended(virsh: Path) -> None:
    write(virsh, "exec yes")
    with pytest.raises((errors.ProtocolError, errors.TargetTimeout)):
        VirshMonitor("web", timeout=10).hmp("info status")


def test_a_child_that_keeps_the_pipe_open_does_not_keep_us(virsh: Path) -> None:
    """Like a virsh that starts a daemon: the answer's end is then never seen."""
    write(virsh, "sleep 5 &\necho hello")
    with pytest.raises(errors.TargetTimeout):
        VirshMonitor("web", timeout=0.3).hmp("info status")
