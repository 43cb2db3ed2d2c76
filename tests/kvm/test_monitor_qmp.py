"""The monitor's socket: answers are QEMU's own, and unmodified drgn looks into a guest through it, encrypted or not."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevkvm.lab.sealed import SealedLinux
from sevkvm.shim.supervisor import SevHost
from tests.support.linux import require_sealed_linux
from tests.support.monitorprocess import SIGINT_STATUS, listening_monitor
from tests.support.qemu import QemuVmm, qemu, require_kvm_qemu
from tests.support.qemu_sealed import sealed_qemu
from tests.support.qmp import QmpClient
from tests.support.readers.programs import HERE, require_module, run
from tests.support.readers.symbols import require_vmlinux
from tests.support.readers.told import told_by

pytestmark = pytest.mark.kvm

BEFORE = ['{"execute":"query-target"}']
AFTER = """
{"execute":"qmp_capabilities"}
{"execute":"query-target","id":5}
{"execute":"query-target","id":{"a":[1]}}
{"execute":"nonsense"}
{"execute":5}
{"execute":null}
{}
[]
{"execute":"query-target","foo":1}
{"execute":"query-target","arguments":[]}
{"execute":"query-target","arguments":{"x":1}}
{"execute":"human-monitor-command"}
{"execute":"human-monitor-command","arguments":{"command-line":5}}
{"execute":"human-monitor-command","arguments":{"command-line":"x","cpu-index":9}}
{"execute":"human-monitor-command","arguments":{"command-line":"info foo"}}
{"execute":"human-monitor-command","arguments":{"command-line":"info registers","cpu-index":1}}
{"execute":"human-monitor-command","arguments":{"command-line":"xp /64xb 0xf0000"}}
{"execute":"human-monitor-command","arguments":{"command-line":"info mtree -f"}}
{"execute":"getfd","arguments":{"fdname":"a"}}
{"execute":"getfd"}
{"execute":"dump-guest-memory","arguments":{"paging":false,"protocol":"fd:nope"}}
{"execute":"dump-guest-memory","arguments":{"paging":false,"protocol":"foo:nope"}}
{"execute":"dump-guest-memory","arguments":{"paging":false,"protocol":"file:x","begin":0}}
{"execute":"dump-guest-memory","arguments":{"paging":false,"protocol":"file:x","length":5}}
{"execute":"dump-guest-memory","arguments":{"paging":1,"protocol":"file:x","length":5}}
{"execute":"dump-guest-memory","arguments":{"protocol":"file:x","length":5}}
{"execute":"dump-guest-memory","arguments":{"paging":false,"protocol":"file:x","begin":0,"length":0}}
{"execute":"dump-guest-memory","arguments":{"paging":false,"protocol":"file:x","begin":-1,"length":1}}
{"execute":"dump-guest-memory","arguments":{"paging":false,"protocol":"file:x","format":"foo"}}
{"execute":"memsave","arguments":{"val":1,"size":2}}
{"execute":"query-status"}
{"execute":"query-name"}
{"execute":"query-kvm"}
{"execute":"stop","arguments":{}}
""".strip().splitlines()


class Lines:
    """A connection: a message out, a line in."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(20)
        self._socket.connect(path)
        self._file = self._socket.makefile("rb")
        self.greeting = json.loads(self._file.readline())

    def ask(self, message: str) -> bytes:
        self._socket.sendall(message.encode())
        return self._file.readline()

    def close(self) -> None:
        self._file.close()
        self._socket.close()


@pytest.fixture(scope="module")
def vmm() -> Iterator[QemuVmm]:
    require_kvm_qemu()
    with qemu(cpus=2) as vmm:
        yield vmm


@pytest.fixture(scope="module")
def monitor(vmm: QemuVmm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("monitor") / "sock"
    with listening_monitor(vmm, path):
        yield path


def test_answers_are_qemus_byte_for_byte(vmm: QemuVmm, monitor: Path, tmp_path: Path) -> None:
    # QEMU serves one client a socket, and the monitor asks it in between: one after the other
    ours = Lines(str(monitor))
    assert ours.greeting["QMP"]["version"]["qemu"].keys() == {"micro", "minor", "major"}
    messages = [message.replace("file:x", f"file:{tmp_path}/x") for message in BEFORE + AFTER]
    said = [ours.ask(message) for message in messages]
    assert list(tmp_path.iterdir()) == []
    ours.close()
    theirs = Lines(vmm.qmp_path)
    assert len(said) > 30
    for message, line in zip(messages, said, strict=True):
        assert line == theirs.ask(message), message
    theirs.close()


def test_what_is_no_json_is_an_error_and_the_conversation_goes_on(monitor: Path) -> None:
    ours = Lines(str(monitor))
    ours.ask('{"execute":"qmp_capabilities"}')
    for nonsense in ('{"a":}', "garbage ", "5 "):
        assert json.loads(ours.ask(nonsense))["error"]["class"] == "GenericError", nonsense
    assert json.loads(ours.ask('{"execute":"query-target"}')) == {"return": {"arch": "x86_64"}}
    ours.close()


def test_the_vcpus_are_told_with_their_threads(vmm: QemuVmm, monitor: Path) -> None:
    ours = QmpClient(str(monitor))
    keys = ("cpu-index", "thread-id", "target")
    found = [[cpu[key] for key in keys] for cpu in ours.execute("query-cpus-fast")]
    assert found == [[cpu[key] for key in keys] for cpu in vmm.execute("query-cpus-fast")]
    ours.close()


def test_the_human_language_and_the_end(vmm: QemuVmm, tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with listening_monitor(vmm, path, "--hmp") as process:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(str(path))
            client.sendall(b"info status\nxp /2i 0xfff00\nquit\n")
            said = b""
            while piece := client.recv(4096):
                said += piece
        status, instructions = said.split(b"(qemu) ")[1:3]
        assert status == b"VM status: paused (prelaunch)\r\n"
        assert instructions.decode().replace("\r", "") == vmm.hmp("xp /2i 0xfff00").replace("\r", "")
    assert process.returncode == SIGINT_STATUS
    assert not path.exists()


def test_the_vmms_end_is_the_monitors(tmp_path: Path) -> None:
    require_kvm_qemu()
    with qemu() as vmm, listening_monitor(vmm, tmp_path / "sock") as process:
        subprocess.run(["kill", "-KILL", str(vmm.pid)], check=True)
        assert process.wait(20) == 1
        assert process.stderr
        assert b"the VMM has ended" in process.stderr.read()
        assert not (tmp_path / "sock").exists()


# ---- unmodified drgn


@pytest.fixture(scope="module")
def linux() -> SealedLinux:
    require_kvm_qemu()
    return require_sealed_linux()


def drgn_says(vmm: QemuVmm, linux: SealedLinux, directory: Path, script: str) -> list[str]:
    """The lines that unmodified drgn prints through our socket."""
    drgn, vmlinux = require_module("drgn"), require_vmlinux(told_by(linux).release)
    path = directory / "sock"
    with listening_monitor(vmm, path, "--cbit-pos", str(linux.seal.cbit_pos)):
        return run(drgn, "-q", "--qemu", path, "-s", vmlinux, "-e", script).splitlines()


def test_drgn_through_the_socket(linux: SealedLinux, tmp_path: Path) -> None:
    script = "print(prog['init_uts_ns'].name.release.string_().decode())"
    with sealed_qemu(linux.plain) as vmm:
        assert drgn_says(vmm, linux, tmp_path, script) == [told_by(linux).release]


@pytest.mark.sev
def test_drgn_sees_into_an_encrypted_guest(linux: SealedLinux, tmp_path: Path) -> None:
    """Processes, log, memory of processes, stacks: nothing of it is in reach of QEMU's own monitor.

    Some 20,000 questions of drgn's, at most a kilobyte each.
    """
    script = f"exec(open({str(HERE / 'drgn_says.py')!r}).read()); print(prog.stack_trace(1))"
    with SevHost() as host, sealed_qemu(linux, popen=host.popen, sev_policy=0) as vmm:
        first, *trace = drgn_says(vmm, linux, tmp_path, script)
    said, told = json.loads(first), told_by(linux)
    assert told.missing_processes({int(pid): comm for pid, comm in said["processes"].items()}) == {}
    assert told.missing_log(said["log"]) == []
    assert (said["release"], len(said["secrets"])) == (told.release, 3)
    assert any(re.match(r"#\d+ +schedule ", line) for line in trace)
