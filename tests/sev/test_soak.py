"""Eight programs, a hundred thousand commands, kills at random: nothing hangs, leaks or decrypts to the wrong bytes."""

from __future__ import annotations

import gc
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sevkvm.shim.address_space import AddressSpace
from sevkvm.shim.guest_context import GuestContext
from sevkvm.shim.kept_file import KeptFile
from sevkvm.shim.notify import Listener, Notification, SharedPage
from sevkvm.shim.supervisor import SevHost
from sevkvm.shim.vm import Vm
from tests.support.sevhost import require_kvm_mode
from tests.support.sevprog import start

pytestmark = [pytest.mark.sev, pytest.mark.host, pytest.mark.timeout(240)]
pytestmark.append(pytest.mark.pretended("it looks into the pretend host, which it is a test of"))

NPROCESSES = 8
NCOMMANDS = {"real": 40_000, "standin": 60_000}
_WAIT_SECONDS = 20.0
_HELD = (Vm, GuestContext, AddressSpace, KeptFile, SharedPage, Listener, Notification)

# Random debug commands against a model of the plaintext, in guests that come and go; ends only when it is told to,
# or with status 3 when a byte is wrong.
WORKER = r"""
import random
kind, seed = sys.argv[1], int(sys.argv[2])
dice = random.Random(seed)
def memory():
    if kind == "anonymous":
        return pages(RAM), None
    fd = os.memfd_create("ram") if kind == "memfd" else os.open("/tmp", os.O_TMPFILE | os.O_RDWR)
    os.ftruncate(fd, RAM)
    ram = pages(RAM, fd, mmap.MAP_SHARED), pages(RAM, fd, mmap.MAP_SHARED)
    os.close(fd)
    return ram

def check(condition, *what):
    if not condition:
        print("WRONG", *what, file=sys.stderr, flush=True)
        os._exit(3)

def commands(vm, alias, rounds, dice):
    plain = bytearray(b"plain text 16 b\n" * (RAM // 16))
    out = pages(RAM)
    out_hva, alias_hva = hva(out), hva(alias) if alias else vm.hva
    for _ in range(rounds):
        nbytes = dice.choice((1, 16, 33, 64, 256, 4100))
        at, there = dice.randrange(RAM - nbytes), dice.randrange(RAM - nbytes)
        if dice.random() < 0.3:
            text = dice.randbytes(nbytes)
            out[there : there + nbytes] = text
            check(vm.encrypt(out_hva + there, vm.hva + at, nbytes)[:2] == (0, 0), "encrypt", nbytes)
            plain[at : at + nbytes] = text
        elif dice.random() < 0.1:
            check(vm.status()[2] == 3, "status")
        else:
            source = dice.choice((vm.hva, alias_hva))
            check(vm.decrypt(source + at, out_hva + there, nbytes)[:2] == (0, 0), "decrypt", nbytes)
            check(out[there : there + nbytes] == plain[at : at + nbytes], "bytes", at, nbytes)

def guest(rounds, dice):
    ram, alias = memory()
    vm = launch(ram=ram)
    commands(vm, alias, rounds, dice)
    vm.close()
    os.close(vm.sev)

while True:
    threads = [threading.Thread(target=guest, args=(dice.randrange(300), random.Random(dice.random())))
               for _ in range(dice.randrange(1, 3))]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    if dice.random() < 0.2:
        child = os.fork()
        if child == 0:
            guest(20, dice)
            os._exit(0)
        check(os.waitpid(child, 0)[1] == 0, "child")
"""


def held() -> Counter[str]:
    """How many of the things that the supervisor keeps for a program are alive."""
    gc.collect()
    return Counter(type(each).__name__ for each in gc.get_objects() if isinstance(each, _HELD))


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def mappings() -> int:
    return sum(
        b"memfd" in line or b"kvm" in line for line in Path("/proc/self/maps").read_bytes().splitlines()
    )


def start_worker(host: SevHost, dice: random.Random) -> subprocess.Popen[str]:
    kind = dice.choice(("anonymous", "memfd", "file"))
    return start(
        host, WORKER, kind, str(dice.randrange(1 << 30)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def end_worker(process: subprocess.Popen[str], number: signal.Signals) -> None:
    process.send_signal(number)
    _, complaints = process.communicate(timeout=_WAIT_SECONDS)
    assert process.returncode == -number, (process.returncode, complaints)


@pytest.mark.parametrize("kvm", ["real", "standin"])
def test_soak(kvm: Any) -> None:
    require_kvm_mode(kvm)
    seed = random.SystemRandom().randrange(1 << 30)
    print(f"seed {seed}")
    dice = random.Random(seed)
    before, files, mapped = held(), open_files(), mappings()
    with SevHost(kvm=kvm) as host:
        workers = [start_worker(host, dice) for _ in range(NPROCESSES)]
        last, progress = 0, time.monotonic()
        while (done := sum(host.log.counts.values())) < NCOMMANDS[kvm]:
            time.sleep(dice.random() * 0.3)
            victim = dice.randrange(NPROCESSES)
            end_worker(workers[victim], dice.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)))
            workers[victim] = start_worker(host, dice)
            if done > last:
                last, progress = done, time.monotonic()
            assert time.monotonic() - progress < _WAIT_SECONDS, "no command any more"
        for worker in workers:
            end_worker(worker, signal.SIGKILL)
        deadline = time.monotonic() + _WAIT_SECONDS
        while host.busy or host.kernel.vms or host.kernel.firmware.guests:
            assert time.monotonic() < deadline, (host.busy, host.kernel.vms, host.kernel.firmware.guests)
            time.sleep(0.05)
        while kept := held() - before:  # until the last housekeeping
            assert time.monotonic() < deadline, kept
            time.sleep(0.05)
        assert open_files() < files + 10
        assert host.log.counts["DBG_DECRYPT"] > host.log.counts["DBG_ENCRYPT"] > NCOMMANDS[kvm] / 10
    assert held() == before
    assert (open_files(), mappings()) == (files, mapped)
