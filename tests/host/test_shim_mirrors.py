"""A mirror VM in a process of its own, on a pretend host."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from sevkvm.abi import sev
from sevkvm.shim.supervisor import SevHost
from tests.support.sevhost import require_kvm_mode
from tests.support.sevprog import run

pytestmark = pytest.mark.host

MIRROR = """
import socket
def enable(fd, capability, source):
    cap = bytearray(struct.pack("<II4Q64s", capability, 0, source, 0, 0, 0, b""))
    return ioctl(fd, 0x4068AEA3, hva(cap))
memory = os.memfd_create("ram")
os.ftruncate(memory, RAM)
vm = launch(ram=pages(RAM, memory, mmap.MAP_SHARED))
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
child = os.fork()
if child == 0:
    ours.close()
    _, (vm_fd, sev_fd, memory), _, _ = socket.recv_fds(theirs, 1, 3)
    mirror = Vm()
    os.close(vm.sev)  # inherited
    made = enable(mirror.fd, 197, vm_fd)
    lost = mirror.status()
    os.dup2(sev_fd, vm.sev)
    ram = pages(RAM, memory, mmap.MAP_SHARED)
    out = pages(RAM)
    say(made=made, lost=lost, status=mirror.status(), again=enable(mirror.fd, 197, vm_fd),
        not_a_vm=enable(Vm().fd, 197, memory), measure=mirror.op(6, bytes(16))[:2],
        source=op(vm_fd, 16, bytes(12))[:2], decrypt=mirror.decrypt(hva(ram), hva(out), RAM)[0],
        text=out[:16].decode(), other_cap=enable(mirror.fd, 9999, 0))
    theirs.send(b"m")
    theirs.recv(1)
    say(orphan=mirror.status())
    os._exit(0)
theirs.close()
socket.send_fds(ours, [b"f"], [vm.fd, os.dup(vm.sev), memory])
ours.recv(1)
vm.close()
libc.close(ours.fileno())
os.waitpid(child, 0)
"""


@pytest.fixture(params=["real", "standin"], scope="module")
def host(request: pytest.FixtureRequest) -> Iterator[SevHost]:
    require_kvm_mode(request.param)
    with SevHost(kvm=request.param) as host:
        yield host


def test_a_mirror_in_another_process(host: SevHost) -> None:
    out = run(host, MIRROR)
    running = [out["status"][0], 0, sev.GuestState.RUNNING]
    assert out["made"] == out["decrypt"] == 0
    assert out["status"] == running
    assert out["orphan"] == running
    assert out["text"] == "plain text 16 b\n"
    assert out["lost"] == [-errno.EBADF, sev.SEV_RET_NO_FW_CALL]
    assert out["again"] == -errno.EINVAL
    assert out["not_a_vm"] == -errno.EBADF
    assert out["measure"] == [-errno.EINVAL, sev.SEV_RET_NO_FW_CALL]
    assert out["source"] == [-errno.EIO, sev.SEV_RET_NO_FW_CALL]
    assert out["other_cap"] == -errno.EINVAL


def test_moving_the_context(host: SevHost) -> None:
    out = run(
        host,
        """
        vm, target = launch(), Vm()
        cap = bytearray(struct.pack("<II4Q64s", 206, 0, vm.fd, 0, 0, 0, b""))
        moved = ioctl(target.fd, 0x4068AEA3, hva(cap))
        old, forgotten = vm.status(), target.status()
        os.dup2(vm.sev, 0)
        say(moved=moved, old=old, forgotten=forgotten, new=target.status()[2],
            extensions=[ioctl(vm.kvm, 0xAE03, which) for which in (197, 206)])
        """,
    )
    assert out == {
        "moved": 0,
        "old": [-errno.EIO, sev.SEV_RET_NO_FW_CALL],
        "forgotten": [-errno.EBADF, sev.SEV_RET_NO_FW_CALL],
        "new": sev.GuestState.RUNNING,
        "extensions": [1, 1],
    }


def test_a_thread_with_descriptors_of_its_own(host: SevHost) -> None:
    """A VM lives as long as any table of its process has it; who asks for the platform has the dead forgotten."""
    out = run(
        host,
        """
        vm = launch()
        own, go, said = (threading.Event() for _ in range(3))
        found = {}
        def keep():
            assert libc.unshare(0x400) == 0  # CLONE_FILES
            own.set()
            go.wait()
            found["mine"] = vm.status()[2]
            said.set()
            time.sleep(60)
        threading.Thread(target=keep, daemon=True).start()
        own.wait()
        libc.close(vm.fd)
        platform(vm.sev)
        go.set()
        said.wait()
        count = platform(vm.sev)[2][8]
        say(count=count, gone=vm.op(16, bytes(12))[0], **found)
        os._exit(0)
        """,
    )
    assert out == {"count": 1, "gone": -errno.EBADF, "mine": sev.GuestState.RUNNING}
