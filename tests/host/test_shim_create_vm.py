"""VM types of KVM_CREATE_VM on a pretend SEV host: on the real KVM the type is changed on its way in."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from sevkvm.abi import sev
from sevkvm.shim.supervisor import SevHost
from tests.support.build import ROOT
from tests.support.sevhost import require_kvm_mode
from tests.support.sevprog import lines_of, program, run, start

pytestmark = pytest.mark.host

EINVAL, EIO = -errno.EINVAL, -errno.EIO
UNTOUCHED = sev.SEV_RET_NO_FW_CALL
_WAIT_SECONDS = 30.0

LAUNCH2 = """
def init2(fd, features=0, flags=0, ghcb=0):
    return op(fd, 22, struct.pack("<QIH34x", features, flags, ghcb))[:2]
kvm = os.open("/dev/kvm", os.O_RDWR)
"""


@pytest.fixture(params=["real", "standin"], scope="module")
def host(request: pytest.FixtureRequest) -> Iterator[SevHost]:
    require_kvm_mode(request.param)
    with SevHost(kvm=request.param) as host:
        yield host


def test_types_and_what_tells_of_them(host: SevHost) -> None:
    out = run(
        host,
        LAUNCH2
        + """
vms = [ioctl(kvm, 0xAE01, vm_type) for vm_type in (0, 2, 3)]
value = bytearray(8)
attr = bytearray(struct.pack("<IIQQ", 0, 1, 0, hva(value)))
say(made=[fd >= 0 for fd in vms], refused=[ioctl(kvm, 0xAE01, t) for t in (4, 5, 32, 64)],
    types=[ioctl(fd, 0xAE03, 235) for fd in (kvm, *vms)],
    other=[ioctl(kvm, 0xAE03, cap) for cap in (197, 206)],
    far=ioctl(kvm, 0xAE03, 235 + (1 << 32)),
    has=ioctl(kvm, 0x4018AEE3, hva(attr)), get=ioctl(kvm, 0x4018AEE2, hva(attr)), features=value[0],
    inits=[init2(fd) for fd in vms], again=init2(vms[1]), old=[op(fd, 0)[:2] for fd in vms[1:]],
    no_kvm=ioctl(0, 0xAE01, 2))
""",
        stdin=subprocess.DEVNULL,
    )
    assert out["made"] == [True] * 3
    assert out["refused"] == [EINVAL] * 4
    assert {types & 0b11101 for types in out["types"]} == {0b1101}
    assert out["other"] == [1, 1]
    assert out["far"] == 0
    assert (out["has"], out["get"], out["features"]) == (0, 0, 0x20)
    assert out["inits"] == [[EINVAL, UNTOUCHED], [0, UNTOUCHED], [0, UNTOUCHED]]
    assert out["again"] == [EINVAL, UNTOUCHED]
    assert out["old"] == [[EINVAL, UNTOUCHED]] * 2
    assert out["no_kvm"] == -errno.ENOTTY


def test_a_guest_of_the_new_type_launches_and_its_vcpu_waits_for_init2(host: SevHost) -> None:
    out = run(
        host,
        LAUNCH2
        + """
early = ioctl(kvm, 0xAE01, 2)
say(early=ioctl(ioctl(early, 0xAE41), 0xAE80))
class Vm:
    decrypt, encrypt, status, op, vcpu = Vm.decrypt, Vm.encrypt, Vm.status, Vm.op, Vm.vcpu
    def __init__(self):
        self.kvm = kvm
        self.fd = ioctl(kvm, 0xAE01, 2)
        self.op = lambda c, *a, **m: op(self.fd, *((22, bytes(48)) if c == 0 else (c, *a)), **m)
vm = launch()
stored = bytes(vm.ram)
vm.decrypt(vm.hva, vm.out_hva, RAM)
say(plain=b"plain" in stored, back=bytes(vm.out[:16]).decode(), status=vm.status()[2])
child = os.fork()
if child == 0:
    say(child=op(vm.fd, 16, bytes(12))[0])
    os._exit(0)
os.waitpid(child, 0)
""",
    )
    assert out["early"] == EINVAL
    assert not out["plain"]
    assert out["back"] == "plain text 16 b\n"
    assert out["status"] == sev.GuestState.RUNNING
    assert out["child"] == EIO


def test_whoever_waits_for_the_program_never_sees_the_moment_of_tracing(host: SevHost) -> None:
    process = start(
        host,
        LAUNCH2
        + """
for _ in range(200):
    os.close(ioctl(kvm, 0xAE01, 2))
say(done=1)
sys.exit(7)
""",
    )
    deadline = time.monotonic() + _WAIT_SECONDS
    while (status := process.poll()) is None:
        assert time.monotonic() < deadline
    assert status == 7
    assert process.communicate()[0] == '{"done": 1}\n'


def test_signals_while_the_type_is_changed(host: SevHost) -> None:
    out = run(
        host,
        LAUNCH2
        + """
hits = []
signal.signal(signal.SIGALRM, lambda *_: hits.append(1))
signal.siginterrupt(signal.SIGALRM, False)
signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
fds = [ioctl(kvm, 0xAE01, 2 + i % 2) for i in range(100)]
signal.setitimer(signal.ITIMER_REAL, 0)
say(failed=[fd for fd in fds if fd < 0], links={os.readlink(f"/proc/self/fd/{fd}") for fd in fds} and None,
    hits=len(hits) > 0, inits=[init2(fd)[0] for fd in fds],
    mask=[int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, [])])
""",
    )
    assert out["failed"] == []
    assert out["hits"]
    assert set(out["inits"]) <= {0, -errno.EBUSY}  # the ASIDs of SEV-ES run out at 99
    assert out["mask"] == []


def test_the_argument_register_is_put_back(host: SevHost) -> None:
    out = run(
        host,
        LAUNCH2
        + r"""
# mov edi,FD; mov esi,0xae01; mov edx,3; mov eax,16; syscall; mov eax,edx; ret
code = bytes.fromhex("bf") + struct.pack("<I", kvm) + bytes.fromhex("be01ae0000ba03000000b8100000000f0589d0c3")
room = mmap.mmap(-1, 4096, prot=7)
room[: len(code)] = code
say(edx=ctypes.CFUNCTYPE(ctypes.c_int)(hva(room))())
""",
    )
    assert out == {"edx": 3}


def test_several_threads_make_typed_vms_at_once(host: SevHost) -> None:
    out = run(
        host,
        LAUNCH2
        + """
made = []
def worker(vm_type):
    for _ in range(10):
        made.append((vm_type, ioctl(kvm, 0xAE01, vm_type)))
threads = [threading.Thread(target=worker, args=(t,)) for t in (0, 2, 3, 2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
say(wrong=[(t, fd) for t, fd in made if fd < 0 or (init2(fd)[0] == 0) != (t != 0)], made=len(made))
""",
    )
    assert out == {"wrong": [], "made": 40}


def test_killed_in_the_moment_of_tracing(host: SevHost) -> None:
    statuses = []
    for _ in range(8):
        process = start(
            host,
            LAUNCH2 + "say(up=1)\nwhile True:\n    os.close(ioctl(kvm, 0xAE01, 2))\n",
            stderr=subprocess.PIPE,
        )
        assert process.stdout
        process.stdout.readline()
        time.sleep(0.003)
        process.kill()
        process.communicate(timeout=10)
        statuses.append(process.returncode)
    assert statuses == [-signal.SIGKILL] * 8
    assert run(host, "say(alive=Vm().fd >= 0)") == {"alive": True}


def test_the_parent_of_a_killed_grandchild_is_told(host: SevHost) -> None:
    out = run(
        host,
        LAUNCH2
        + """
statuses = []
for _ in range(8):
    child = os.fork()
    if child == 0:
        while True:
            os.close(ioctl(kvm, 0xAE01, 3))
    time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
say(statuses=statuses)
""",
    )
    assert out == {"statuses": [-9] * 8}


def test_a_thread_that_is_traced_already_is_refused() -> None:
    require_kvm_mode("real")
    if shutil.which("gdb") is None:
        pytest.skip("gdb not installed")
    text = program(LAUNCH2 + "say(traced=ioctl(kvm, 0xAE01, 2), plain=ioctl(kvm, 0xAE01, 0) >= 0)\n")
    gdb = ["gdb", "-nx", "-q", "-batch", "-ex", "run", "--args", sys.executable, "-I", "-c", text]
    with SevHost(kvm="real") as host:
        process = host.popen(gdb, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT)
        out, _ = process.communicate(timeout=60)
    assert f'{{"traced": {-errno.EBUSY}, "plain": true}}' in out


def test_typed_vms_that_are_closed_are_forgotten(host: SevHost) -> None:
    process = start(
        host,
        LAUNCH2
        + """
vms = [ioctl(kvm, 0xAE01, 2) for _ in range(5)]
for vm in vms: assert init2(vm)[0] == 0
for vm in vms: os.close(vm)
os.open("/dev/sev", os.O_RDONLY)
platform(os.open("/dev/sev", os.O_RDWR))
say(done=1)
sys.stdin.readline()
""",
        stdin=subprocess.PIPE,
    )
    assert process.stdout
    process.stdout.readline()
    assert [vm for vm in host.kernel.vms if vm.active] == []
    process.stdin.write("\n")  # type: ignore[union-attr]
    lines_of(process)


def test_the_death_of_the_supervisor_in_the_moment_of_tracing() -> None:
    require_kvm_mode("real")
    text = program(
        LAUNCH2
        + """
say(up=1)
while (result := ioctl(kvm, 0xAE01, 2)) >= 0:
    os.close(result)
say(result=result)
os._exit(7 if result == -errno.ENOSYS else 8)
"""
    )
    argv = [sys.executable, "-m", "sevkvm", "shim", "--kvm", "real", "--", sys.executable, "-I", "-c", text]
    for round_ in range(6):
        with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as shim:
            assert shim.stdout
            assert shim.stdout.readline() == '{"up": 1}\n'
            time.sleep(0.002 * round_)
            shim.kill()
            # the program, which nobody answers any more, ends by itself: its end of the pipe is closed
            assert json.loads(shim.stdout.read()) == {"result": -errno.ENOSYS}
