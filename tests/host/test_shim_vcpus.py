"""vCPUs of encrypted guests wait in KVM_RUN, and can be had out of it in every way the kernel knows."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from sevkvm.host.deputy import Deputy
from sevkvm.host.kvm import VcpuFd
from sevkvm.shim.supervisor import SevHost
from tests.support.build import ROOT
from tests.support.sevhost import require_kvm_mode
from tests.support.sevprog import run, start

pytestmark = pytest.mark.host

EINTR = -errno.EINTR
_WAIT_SECONDS = 10.0

RUNNER = """
vm = launch()
vcpu = vm.vcpu()
run = mmap.mmap(vcpu, ioctl(vm.kvm, 0xAE04))
results = []
def in_guest():
    results.append(ioctl(vcpu, 0xAE80))
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.siginterrupt(signal.SIGUSR1, sys.argv[1] == "interrupt")
thread = threading.Thread(target=in_guest, daemon=True)
"""


@pytest.fixture(params=["real", "standin"], scope="module")
def host(request: pytest.FixtureRequest) -> Iterator[SevHost]:
    require_kvm_mode(request.param)
    with SevHost(kvm=request.param) as host:
        yield host


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize("how", ["interrupt", "restart"])
def test_a_signal_ends_kvm_run_with_eintr_whatever_its_handler_says(host: SevHost, how: str) -> None:
    out = run(
        host,
        RUNNER
        + """
thread.start()
thread.join(0.2)
say(waits=thread.is_alive(), reason=struct.unpack_from("<I", run, 8)[0])
signal.pthread_kill(thread.ident, signal.SIGUSR1)
thread.join(10)
say(results=results, after=struct.unpack_from("<I", run, 8)[0])
""",
        how,
    )
    assert out["waits"]
    assert out["results"] == [EINTR]
    if how == "restart":  # otherwise the call is over before anybody could write there
        assert out["after"] == 10  # KVM_EXIT_INTR


def test_immediate_exit(host: SevHost) -> None:
    out = run(
        host,
        RUNNER
        + """
run[1] = 1
in_guest()
say(results=results, reason=struct.unpack_from("<I", run, 8)[0])
""",
        "interrupt",
    )
    assert out == {"results": [EINTR], "reason": 10}


def test_a_vm_that_is_not_encrypted_runs_on_the_real_kvm() -> None:
    require_kvm_mode("real")
    with SevHost(kvm="real") as host:
        out = run(
            host,
            """
            encrypted = launch()
            plain = Vm()
            code = pages(4096)
            code[:] = bytes([0xF4]) * 4096  # hlt, wherever the reset vector points
            region = bytearray(struct.pack("<IIQQQ", 0, 0, 0xFFFFF000, 4096, hva(code)))
            assert ioctl(plain.fd, 0x4020AE46, hva(region)) == 0
            vcpus = [encrypted.vcpu(), plain.vcpu()]
            room = mmap.mmap(vcpus[1], ioctl(plain.kvm, 0xAE04))
            say(result=ioctl(vcpus[1], 0xAE80), reason=struct.unpack_from("<I", room, 8)[0])
            """,
        )
    assert out == {"result": 0, "reason": 5}  # KVM_EXIT_HLT


def test_a_process_dies_in_kvm_run_and_its_guest_is_forgotten(host: SevHost) -> None:
    wait_until(lambda: not host.kernel.firmware.guests)
    process = start(host, RUNNER + "thread.start()\ntime.sleep(0.1)\nsay(up=1)\ntime.sleep(60)", "interrupt")
    assert process.stdout
    process.stdout.readline()
    assert len(host.kernel.firmware.guests) == 1
    process.kill()
    process.communicate(timeout=10)
    wait_until(lambda: not host.kernel.firmware.guests)


def test_the_deputy_reads_registers_of_a_vcpu_whose_thread_it_holds(host: SevHost) -> None:
    process = start(
        host,
        RUNNER
        + """
registers = bytearray(struct.pack("<18Q", *range(18)))
ioctl(vcpu, 0x4090AE82, hva(registers))
thread.start()
time.sleep(0.1)
say(vcpu=vcpu, tid=thread.native_id)
sys.stdin.readline()
signal.pthread_kill(thread.ident, signal.SIGUSR1)
thread.join(10)
say(results=results)
""",
        "interrupt",
        stdin=-1,
    )
    assert process.stdin
    assert process.stdout
    try:
        facts = json.loads(process.stdout.readline())
        with Deputy(process.pid) as deputy:
            assert deputy.hold([facts["tid"]]) == 1
            regs = VcpuFd(deputy, facts["vcpu"], 0).get_regs()
            deputy.release()
            assert (regs.rax, regs.rbx, regs.rip) == (0, 1, 16)
        process.stdin.write("\n")
        process.stdin.flush()
        last = json.loads(process.stdout.readline())
        assert last == {"results": [EINTR]}
    finally:
        process.kill()
        process.communicate(timeout=10)


def test_whoever_wants_a_parked_vcpu_of_the_stand_in_waits_for_its_mutex() -> None:
    require_kvm_mode("standin")
    with SevHost(kvm="standin") as host:
        out = run(
            host,
            RUNNER
            + """
thread.start()
time.sleep(0.1)
registers = bytearray(144)
got = []
reader = threading.Thread(target=lambda: got.append(ioctl(vcpu, 0x8090AE81, hva(registers))), daemon=True)
reader.start()
reader.join(0.2)
say(waits=not got)
signal.pthread_kill(thread.ident, signal.SIGUSR1)
reader.join(10)
thread.join(10)
say(got=got, results=results)
""",
            "interrupt",
        )
    assert out == {"waits": True, "got": [0], "results": [EINTR]}


def test_commands_are_carried_out_once_however_often_signals_come(host: SevHost) -> None:
    before = host.kernel.firmware.counts.copy()
    out = run(
        host,
        """
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.siginterrupt(signal.SIGALRM, False)
        vm = launch()
        big = pages(4 << 20)
        big[:] = b"plain text 16 b\\n" * (len(big) // 16)
        vm.encrypt(hva(big), hva(big), len(big))
        result = bytearray(4 << 20)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        failures = sum(vm.encrypt(hva(big), hva(big), len(big))[0] != 0 for _ in range(20))
        out = pages(4 << 20)
        for _ in range(20):
            failures += vm.decrypt(hva(big), hva(big), len(big))[0] != 0
        failures += vm.decrypt(hva(big), hva(out), len(out))[0] != 0
        signal.setitimer(signal.ITIMER_REAL, 0)
        say(failures=failures, right=out[:] == b"plain text 16 b\\n" * (len(big) // 16))
        """,
    )
    assert out == {"failures": 0, "right": True}
    npages = (4 << 20) // 4096
    assert host.kernel.firmware.counts["DBG_ENCRYPT"] - before["DBG_ENCRYPT"] == 21 * npages
    assert host.kernel.firmware.counts["DBG_DECRYPT"] - before["DBG_DECRYPT"] == 21 * npages


def test_the_death_of_the_supervisor_is_told_by_enosys() -> None:
    require_kvm_mode("standin")
    program = (
        "import os, sys, time\nprint(os.getpid(), flush=True)\nsys.stdin.readline()\n"
        "try:\n    os.open('/dev/null', os.O_RDONLY)\nexcept OSError as error:\n    print(error.errno, flush=True)\n"
    )
    argv = [sys.executable, "-m", "sevkvm", "shim", "--kvm", "standin", "--", sys.executable, "-Ic", program]
    with subprocess.Popen(
        argv, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=-1, stdout=-1, text=True
    ) as shim:
        assert shim.stdin
        assert shim.stdout
        int(shim.stdout.readline())
        os.kill(shim.pid, signal.SIGKILL)
        shim.wait(10)
        shim.stdin.write("\n")
        shim.stdin.flush()
        assert int(shim.stdout.readline()) == errno.ENOSYS
