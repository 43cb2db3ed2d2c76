"""`sevkvm drgn`, and drgn's own command with our plug-in, on an encrypted Linux: they say what a dump of it does."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from sevkvm.attach import AttachOptions, open_guest
from sevkvm.host.deputy import Deputy
from sevkvm.lab.sealed import SealedLinux
from tests.support.drgnsays import QUESTIONS, agrees, drgn_argv, sevkvm_drgn, stacks_of_dump, symbols
from tests.support.killing import assert_left, shape
from tests.support.lab import SUBPROCESS_ENVIRONMENT
from tests.support.qemu import QemuVmm, qemu, require_kvm_qemu
from tests.support.qemu_sealed import CPU, load_ram, sealed_qemu
from tests.support.readers.dumps import Dumps, sealed
from tests.support.readers.programs import require_module
from tests.support.readers.told import told_by
from tests.support.sevhost import Host, sev_host

pytestmark = [pytest.mark.kvm, pytest.mark.sev]

KILLS = 5
READING: Final = """
print("go", flush=True)
while True:
    for gpa in range(0x100000, 0x4000000, 4096):
        prog.read(gpa | 1 << 51, 4096, True)
"""


@dataclass(frozen=True)
class Encrypted:
    """A Linux in QEMU on the pretend host, and the options that lead to it."""

    linux: SealedLinux
    host: Host
    vmm: QemuVmm
    where: list[str]
    socket: Path

    @property
    def commands(self) -> int:
        """Pages that the firmware has decrypted."""
        return self.host.kernel.firmware.counts["DBG_DECRYPT"]


def options(linux: SealedLinux, vmm: QemuVmm) -> list[str]:
    where = ["--pid", str(vmm.pid), "--vm-fd", str(vmm.vm_fd), "--qmp", vmm.qmp_path]
    return [*where, "--cbit-pos", str(linux.seal.cbit_pos)]


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> Dumps:
    return Dumps(tmp_path_factory.mktemp("dumps"))


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    require_kvm_qemu()
    require_module("drgn")
    linux = sealed(4, 51)
    socket = tmp_path_factory.mktemp("third") / "qmp"
    third = ["-qmp", f"unix:{socket},server=on,wait=off"]
    with sev_host() as host, sealed_qemu(linux, popen=host.popen, sev_policy=0, extra=third) as vmm:
        yield Encrypted(linux, host, vmm, options(linux, vmm), socket)


def test_four_levels_and_bit_51(guest: Encrypted, dumps: Dumps) -> None:
    before, told = shape(guest.vmm.pid), told_by(guest.linux)
    done = sevkvm_drgn(guest.where, *symbols(told), "--hold", "60", "-e", QUESTIONS)
    assert done.returncode == 0, done.stderr
    assert agrees(done.stdout, told) == stacks_of_dump(dumps.dump((4, 51, "strip")), told)
    assert_left(guest.vmm.pid, before)


@pytest.mark.pretended("the processor has its C-bit where it has it")
def test_four_levels_and_bit_47(dumps: Dumps) -> None:
    require_kvm_qemu()
    linux = sealed(4, 47)
    told = told_by(linux)
    words = [*symbols(told), "-e", QUESTIONS]
    with sev_host() as host, sealed_qemu(linux, popen=host.popen, sev_policy=0) as vmm:
        done = sevkvm_drgn(options(linux, vmm), *words)
    assert done.returncode == 0, done.stderr
    assert agrees(done.stdout, told) == stacks_of_dump(dumps.dump((4, 51, "strip")), told)


def test_five_levels(dumps: Dumps) -> None:
    """No KVM here takes a vCPU with five levels: the root is named, as for a guest without registers."""
    require_kvm_qemu()
    linux = sealed(5, 51)
    told, machine = told_by(linux), linux.plain.machine
    root = linux.vcpus[0].sregs.cr3 & 0x000F_FFFF_FFFF_F000 & ~(1 << 51)
    words = [*symbols(told), "-e", QUESTIONS]
    settings = {"ram": f"{machine.ram_nbytes >> 20}M", "cpus": machine.cpus, "extra": ["-cpu", CPU]}
    with sev_host() as host, qemu(sev_policy=0, popen=host.popen, **settings) as vmm:
        with Deputy(vmm.pid) as port:
            load_ram(vmm, linux, port, encrypt=True)
        done = sevkvm_drgn([*options(linux, vmm), "--cr3", hex(root), "--paging", "5level"], *words)
    assert done.returncode == 0, done.stderr
    assert agrees(done.stdout, told) == stacks_of_dump(dumps.dump((5, 51, "strip")), told)


def test_a_page_costs_one_command_however_often_it_is_read(guest: Encrypted) -> None:
    from drgn.helpers.linux import for_each_task

    from sevkvm.drgnprog.program import kernel_note, make_program, program_memory

    asked = AttachOptions(pid=guest.vmm.pid, vm_fd=guest.vmm.vm_fd, qmp=guest.vmm.qmp_path, cbit_pos=51)
    (_, vmlinux) = symbols(told_by(guest.linux))
    pages: set[int] = set()
    with open_guest(asked) as ours:
        note = kernel_note(ours)
        memory = program_memory(ours, note, 0)
        read = memory.read

        def listening(address: int, nbytes: int, offset: int, physical: bool) -> bytes:
            page = address & ~(1 << 51)
            pages.update(range(page >> 12, page + nbytes + 4095 >> 12))
            return read(address, nbytes, offset, physical)

        memory.read = listening  # type: ignore[method-assign]
        program = make_program(ours, note, memory)
        program.load_debug_info([vmlinux])
        with ours.held():
            memory.still = True
            pages.clear()
            before = guest.commands
            for _ in range(3):
                names = [task.comm.string_() for task in for_each_task(program)]
            spent = guest.commands - before
            assert b"keeper-alpha" in names
            assert 20 < len(pages) == spent
            memory.still = False
        # of a guest that runs nothing is remembered here: a maximal age of 0
        before = guest.commands
        for _ in range(2):
            assert program["init_task"].comm.string_() == b"swapper/0"
        assert guest.commands - before > 2 * 4


def test_the_c_bit_of_an_address_says_how_it_is_read_and_a_hole_is_a_fault(guest: Encrypted) -> None:
    (banner,) = guest.linux.image.landmarks
    code = f"""
print(prog.read({banner.gpa:#x} | 1 << 51, 14, True).decode())
print(prog.read({banner.gpa:#x}, 16, True).hex())
for hole in (0xa0000000, 0xa0000000 | 1 << 51, 1 << 50):
    try:
        print(prog.read(hole, 8, physical=True))
    except FaultError as fault:
        print("fault at", hex(fault.address))
"""
    done = sevkvm_drgn(guest.where, "--no-default-symbols", "-e", code)
    assert done.returncode == 0, done.stderr
    plaintext, ciphertext, *holes = done.stdout.splitlines()
    assert plaintext == "Linux version "
    with open(f"/proc/{guest.vmm.pid}/mem", "rb", buffering=0) as memory:
        seen = os.pread(memory.fileno(), 16, guest.vmm.gpa2hva(banner.gpa))
    assert ciphertext == seen.hex()
    assert bytes.fromhex(ciphertext)[:14] != b"Linux version "
    assert holes == ["fault at 0xa0000000", "fault at 0x80000a0000000", "fault at 0x4000000000000"]


def test_a_task_that_is_on_a_processor(guest: Encrypted) -> None:
    """drgn knows no registers of it; with the vCPU's it unwinds from where that was stopped."""
    told = told_by(guest.linux)
    code = (
        "trace = stack_trace(vcpu_regs(0)); print(hex(trace[0].pc)); print([frame.name for frame in trace]);"
        "print(sum(1 for task in for_each_task() if task_on_cpu(task)))"
    )
    done = sevkvm_drgn(guest.where, *symbols(told), "--hold", "60", "-e", code)
    assert done.returncode == 0, done.stderr
    pc, names, running = done.stdout.splitlines()
    assert int(pc, 16) == guest.linux.vcpus[0].regs.rip
    # from the bottom of its stack: it was in a system call, or had nothing to do
    assert "entry_SYSCALL_64" in names or "cpu_startup_entry" in names
    idle = "cpu_startup_entry" in names  # the idle task is in no list of tasks
    assert running == ("0" if idle else "1")


def test_killed_at_any_moment(guest: Encrypted) -> None:
    """What is in flight is a decryption into our scratch area, with the vCPU threads held or not."""
    before = shape(guest.vmm.pid)
    for turn in range(KILLS):
        hold = ["--hold", "60"] if turn % 2 else ["--max-age", "0"]
        argv = drgn_argv(guest.where, "--no-default-symbols", *hold, "-e", READING)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "env": SUBPROCESS_ENVIRONMENT}
        with subprocess.Popen(argv, **pipes) as process:
            assert process.stdout
            assert process.stdout.readline() == b"go\n"
            reached = guest.commands + 7 * turn
            while guest.commands < reached:
                assert process.poll() is None
            process.kill()
            assert process.wait(20) == -signal.SIGKILL
        assert guest.vmm.process.poll() is None
        assert "VM status" in guest.vmm.hmp("info status")
    with Deputy(guest.vmm.pid):
        pass
    assert_left(guest.vmm.pid, before)


def plugged(guest: Encrypted, words: str, *more: str) -> subprocess.CompletedProcess[str]:
    """Unmodified drgn on a monitor of QEMU's."""
    argv = [require_module("drgn"), "-q", "--qemu", str(guest.socket), *more]
    # as it is installed: a checkout on the path would answer with the entry points of when it was last built
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"SEVKVM_DRGN": words} if words else {}
    return subprocess.run(
        argv,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
        stdin=subprocess.DEVNULL,
    )


def test_drgns_own_command_with_the_plugin(guest: Encrypted, dumps: Dumps) -> None:
    before, told = shape(guest.vmm.pid), told_by(guest.linux)
    done = plugged(guest, " ".join([*guest.where, "--hold", "60"]), *symbols(told), "-e", QUESTIONS)
    assert done.returncode == 0, done.stderr
    assert agrees(done.stdout, told) == stacks_of_dump(dumps.dump((4, 51, "strip")), told)
    assert_left(guest.vmm.pid, before)


def test_the_plugin_does_nothing_unless_it_is_asked(guest: Encrypted) -> None:
    commands = guest.commands
    loaded = "import sys; print(prog.flags); print(sorted(name for name in sys.modules if name.startswith('sevkvm')))"
    done = plugged(guest, "", "--no-default-symbols", "-e", loaded)
    assert done.returncode == 0, done.stderr
    flags, modules = done.stdout.splitlines()
    assert flags == "ProgramFlags.IS_LIVE"  # no Linux: to drgn alone it is noise
    names = ["sevkvm", "sevkvm._version", "sevkvm.cli", "sevkvm.cli.drgn_plugin", "sevkvm.cli.signals"]
    assert modules == str(names)
    assert guest.commands == commands


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        ("--pid 1234567", 4, "1234567"),
        ("--hold never", 2, "--hold"),
        ("--file guest.core", 2, "name a running guest"),
        ("--pid 'x", 2, "SEVKVM_DRGN"),
    ],
)
def test_a_plugin_that_cannot_do_as_it_is_told_ends_drgn(
    guest: Encrypted, words: str, status: int, text: str
) -> None:
    done = plugged(guest, words, "--no-default-symbols", "-e", "print('it goes on')")
    assert (done.returncode, done.stdout) == (status, "")
    assert text in done.stderr
