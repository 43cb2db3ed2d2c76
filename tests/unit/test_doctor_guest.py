"""The doctor on guests of made-up hosts: which way in is open, what protects them, and how it ends."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sevkvm import errors
from sevkvm.attach.options import AttachOptions
from sevkvm.cli.doctor import lines
from sevkvm.doctor import Finding, examine_guest, exit_status
from sevkvm.doctor.machine import Owner
from sevkvm.guest import Guest
from sevkvm.memory.policy import SevKind
from sevkvm.native import SANDBOX_HELP
from tests.support.fakehosts import FakeHost, find, refuse_attach
from tests.unit.cli.conftest import Attached, make_guest

PID = 4242
RAM = 64 << 20
MAPS = f"7f0000000000-{0x7F0000000000 + RAM:x} rw-p 00000000 00:00 0 \n"
QEMU = ("/usr/bin/qemu-system-x86_64", "-name", "guest=g1", "-machine", "q35", "-m", "64M")
PTRACE = (
    "hint: run sevkvm as root or as the VMM's own user, in the VMM's pid namespace;"
    " check /proc/sys/kernel/yama/ptrace_scope and that no other debugger is attached"
)


def sev_args(policy: int) -> tuple[str, ...]:
    return (*QEMU, "-object", f"sev-guest,id=s0,cbitpos=51,reduced-phys-bits=1,policy={policy:#x}")


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def start(host: FakeHost, argv: tuple[str, ...] = QEMU, *, sev: bool = False, **settings: object) -> None:
    """A VMM with one VM of two vCPUs."""
    fds = {9: "vm:A", 10: "vcpu:A:0", 11: "vcpu:A:1"} | ({12: "/dev/sev"} if sev else {})
    settings = {"argv": argv, "comm": "qemu", "fds": fds, "maps": MAPS} | settings
    host.processes.process(PID, **settings)  # type: ignore[arg-type]
    host.namespaces(PID)
    host.write(f"proc/{PID}/exe", "\x7fELF\x02")
    (host.root / f"proc/{PID}/cwd").symlink_to("/")


def examine(host: FakeHost, **options: object) -> Finding:
    return examine_guest(host.machine(), AttachOptions(pid=PID, **options))  # type: ignore[arg-type]


def tree(finding: Finding) -> list[str]:
    return list(lines(finding))


GUESSED = (
    f"guest memory was guessed from the mappings of process {PID} and its command line: the video window, ROM and"
    " flash below 1 MiB and below 4 GiB are missing or show the RAM behind them;"
    " --qmp, --libvirt or --slot is exact"
)
PLAIN = f"""\
[ WARN ] - guest: g1, pid {PID}, VM descriptor 9
[ PASS ]   - way in
[ PASS ]     - user: the VMM is root's, we are root with CAP_SYS_PTRACE
[ PASS ]     - Yama: ptrace_scope 0: a user's own processes may be attached to
[ PASS ]     - tracer: none
[ PASS ]     - state: alive
[ PASS ]     - program: 64-bit
[ PASS ]     - sandbox: no seccomp filter
[ PASS ]     - deputy: rights, threads and code are as attaching needs them; nothing was touched
[ PASS ]   - protection: not encrypted (its command line says)
[ WARN ]   - monitor: the command line names no QMP socket on which QEMU listens
             hint: start QEMU with one more -qmp unix:PATH,server=on,wait=off, or name the memory with --slot
[ WARN ]   - memory: 1 slot, 64 MiB: {GUESSED}
             hint: --qmp, --libvirt or --slot is exact
[ PASS ]   - vCPUs: 2 (index 0, 1)
[ PASS ]     - registers: can be read; the vCPUs stand still meanwhile
[ SKIP ]   - C-bit: the guest is not encrypted
"""


def test_a_plain_guest(host: FakeHost) -> None:
    start(host)
    finding = examine(host)
    assert tree(finding) == PLAIN.splitlines()
    assert exit_status([finding]) == 0


SHARED_MAPS = f"7f0000000000-{0x7F0000000000 + RAM:x} rw-s 00000000 00:01 77 /memfd:ram (deleted)\n"


@pytest.mark.parametrize(
    ("settings", "release", "expected"),
    [
        (
            {"maps": SHARED_MAPS},
            "6.1.177",
            "guest RAM is in shared memory: --via mirror leaves the VMM alone",
        ),
        ({}, "6.1.177", "not open: guest RAM at gpa 0x0: it is anonymous memory"),
        (
            {"maps": SHARED_MAPS},
            "5.14.0",
            "not open: Linux 5.14.0 has no debug commands on mirror VMs (5.15)",
        ),
        (
            {"maps": SHARED_MAPS, "argv": ("/usr/bin/vmm",)},
            "6.1.177",
            "cannot be told: it is not known where guest memory is",
        ),
    ],
)
def test_which_guest_a_mirror_could_look_into(
    host: FakeHost, settings: dict[str, object], release: str, expected: str
) -> None:
    start(host, **({"argv": sev_args(0), "sev": True} | settings))  # type: ignore[arg-type]
    host.release = release
    assert find([examine(host)], "mirror").detail == expected


def test_a_guest_without_encryption_needs_no_mirror(host: FakeHost) -> None:
    start(host, maps=SHARED_MAPS)
    assert not [each for each in examine(host).walk() if each.name == "mirror"]


def test_an_encrypted_guest(host: FakeHost) -> None:
    start(host, sev_args(0), sev=True)
    host.write(f"proc/{PID}/limits", "Max locked memory   67108864   67108864   bytes\n")
    finding = examine(host)
    assert [line for line in tree(finding) if line not in PLAIN.splitlines()] == [
        "[ SKIP ]     - mirror: not open: guest RAM at gpa 0x0: it is anonymous memory",
        "               hint: give QEMU its RAM as -object memory-backend-memfd,share=on",
        "[ PASS ]   - protection: SEV (its command line says)",
        "[ PASS ]     - policy: 0x0 (no restriction)",
        "[ PASS ]     - debugging: the policy allows it",
        "[ PASS ]   - C-bit: the guest's CPUID 8000_001F, asked when attached; else bit 51 of this host's",
        "[ PASS ]   - SEV debug fixes: in this kernel (since 6.1.177)",
        "[ WARN ]   - memlock: the VMM's limit is 64 MiB, the guest's memory 64 MiB",
        "             hint: raise the VMM's RLIMIT_MEMLOCK (`prlimit`) above the guest's memory",
    ]
    assert exit_status([finding]) == 0


@pytest.mark.parametrize(
    ("argv", "kind", "debugging"),
    [
        (sev_args(1), "SEV", "the guest's policy 0x1 forbids debugging (NODBG)"),
        (sev_args(5), "SEV-ES", "the guest's policy 0x5 forbids debugging (NODBG)"),
        ((*QEMU, "-object", "sev-guest,id=s0"), "SEV", "the guest's policy 0x1 forbids debugging (NODBG)"),
        (
            (*QEMU, "-object", "sev-snp-guest,id=s0"),
            "SEV-SNP",
            "this is a SEV-SNP guest: the kernel offers no way to decrypt its memory for the host",
        ),
    ],
)
def test_what_nobody_may_look_into_ends_with_5(
    host: FakeHost, argv: tuple[str, ...], kind: str, debugging: str
) -> None:
    start(host, argv, sev=True)
    finding = examine(host)
    assert find([finding], "protection").detail == f"{kind} (its command line says)"
    assert find([finding], "debugging").detail == debugging
    assert find([finding], "debugging").help is not None
    assert exit_status([finding]) == errors.EXIT_FORBIDDEN


def test_registers_of_a_sev_es_guest_are_no_hope(host: FakeHost) -> None:
    start(host, sev_args(4), sev=True)
    finding = find([examine(host)], "registers")
    assert finding.detail == "this is a SEV-ES guest: its registers are encrypted"
    assert "--cr3" in (finding.help or "")


def test_an_object_that_the_machine_does_not_use(host: FakeHost) -> None:
    start(host, sev_args(1))
    detail = "not encrypted (its command line has a SEV object, but no /dev/sev is open for it)"
    assert find([examine(host)], "protection").detail == detail


@pytest.mark.parametrize(
    ("sev", "detail"),
    [
        (True, "the VMM has /dev/sev open: whether the guest is encrypted shows only inside"),
        (False, "not encrypted (the VMM has no /dev/sev open)"),
    ],
)
def test_another_vmm_does_not_tell(host: FakeHost, sev: bool, detail: str) -> None:
    start(host, ("/usr/bin/cloud-hypervisor",), sev=sev)
    finding = examine(host, slots=("0x0:64M:0x7f0000000000",))
    assert find([finding], "protection").detail == detail
    assert find([finding], "memory").detail == "1 slot, 64 MiB, named by --slot"
    assert exit_status([finding]) == 0


def test_memory_that_nobody_tells_is_a_failure(host: FakeHost) -> None:
    start(host, ("/usr/bin/firecracker",))
    finding = examine(host)
    assert "--slot GPA:SIZE:HVA" in (find([finding], "memory").help or "")
    assert exit_status([finding]) == errors.EXIT_FAILURE


def undumpable_for_us(host: FakeHost) -> None:
    host.me(uid=64057)
    host.owners[f"proc/{PID}"] = Owner(0, 0, 0o555)


Change = Callable[[FakeHost], None]
WAYS: dict[str, tuple[dict[str, object], Change, list[str], int]] = {
    "another-user": (
        {"uid": 64055},
        lambda host: host.me(uid=64057),
        [
            "[ FAIL ]     - user: the VMM is uid 64055's, we are uid 64057 without CAP_SYS_PTRACE",
            f"               {PTRACE}",
        ],
        1,
    ),
    "same-user": (
        {"uid": 64057},
        lambda host: host.me(uid=64057),
        ["[ PASS ]     - user: the VMM is uid 64057's, we are uid 64057"],
        0,
    ),
    "undumpable": (
        {"uid": 64057},
        undumpable_for_us,
        [
            "[ FAIL ]     - dumpable: the VMM made itself undumpable"
            " (prctl PR_SET_DUMPABLE, or it changed its user)",
            f"               {PTRACE}",
        ],
        1,
    ),
    "undumpable-for-root": (
        {"uid": 64057},
        lambda host: host.owners.update({f"proc/{PID}": Owner(0, 0, 0o555)}),
        [
            "[ PASS ]     - dumpable: the VMM made itself undumpable"
            " (prctl PR_SET_DUMPABLE, or it changed its user); CAP_SYS_PTRACE attaches nevertheless"
        ],
        0,
    ),
    "traced": (
        {"tracer": 77},
        lambda host: host.write("proc/77/comm", "gdb\n"),
        [
            "[ FAIL ]     - tracer: process 77 (gdb) traces the VMM",
            "               hint: detach the other debugger first",
        ],
        1,
    ),
    "a-traced-thread": (
        {},
        lambda host: host.write(f"proc/{PID}/task/{PID}/status", "TracerPid:\t78\nSeccomp:\t0\n"),
        [
            f"[ WARN ]     - tracer: process 78 (?) traces thread {PID} of the VMM",
            "               hint: unless that is another sevkvm: detach the other debugger first",
        ],
        0,
    ),
    "sandboxed": (
        {"seccomp": 2, "argv": (*QEMU, "-sandbox", "on,spawn=deny")},
        lambda host: None,
        [
            "[ PASS ]     - sandbox: seccomp filter, -sandbox on,spawn=deny; QEMU's strictest lets pass what a deputy"
            " calls: mmap, munmap, clone, ioctl and exit"
        ],
        0,
    ),
    "sandboxed-thread": (
        {"argv": QEMU},
        lambda host: host.write(f"proc/{PID}/task/{PID}/status", "Seccomp:\t2\n"),
        [
            "[ PASS ]     - sandbox: seccomp filter; QEMU's strictest lets pass what a deputy"
            " calls: mmap, munmap, clone, ioctl and exit"
        ],
        0,
    ),
    "sandboxed-by-others": (
        {"seccomp": 2, "argv": ("cloud-hypervisor", "--cpus", "boot=1"), "comm": "cloud-hypervisor"},
        lambda host: None,
        [
            "[ PASS ]     - sandbox: seccomp filter, not QEMU's; attaching asks it first, and refuses unless it lets"
            " pass mmap, munmap, clone, ioctl and exit"
        ],
        1,  # where its memory is nobody says
    ),
    "sandboxed-by-others-and-not-shown": (
        {"seccomp": 2, "argv": ("cloud-hypervisor", "--cpus", "boot=1"), "comm": "cloud-hypervisor"},
        lambda host: host.me(seccomp=2),
        [
            "[ FAIL ]     - sandbox: seccomp filter, not QEMU's, and not shown to us: what it forbids would kill"
            " the VMM",
            f"               hint: {SANDBOX_HELP}",
        ],
        1,
    ),
    "on-a-pretend-host": (
        {"seccomp": 2, "argv": ("python3", "-m", "sevkvm", "lab"), "comm": "python3"},
        lambda host: (host.me(seccomp=2), host.write(f"proc/{PID}/environ", "HOME=/\0SEVKVM_SHIM=1\0")),
        ["[ PASS ]     - sandbox: seccomp filter of the pretend SEV host, which kills nobody"],
        1,  # where its memory is nobody says
    ),
    "strict-seccomp": (
        {"seccomp": 1},
        lambda host: None,
        ["[ FAIL ]     - sandbox: strict seccomp: any call of a deputy would kill the VMM"],
        5,
    ),
    "32-bit": (
        {},
        lambda host: host.write(f"proc/{PID}/exe", "\x7fELF\x01"),
        ["[ FAIL ]     - program: 32-bit", "               hint: run a 64-bit VMM"],
        1,
    ),
    "container": (
        {},
        lambda host: host.namespaces(PID, pid="pid:[4026532002]", mnt="mnt:[4026532001]"),
        [
            "[ PASS ]     - pid namespace: the VMM has its own; thread ids differ: to read registers, all threads of"
            " the VMM are held",
            "[ PASS ]     - mnt namespace: the VMM has its own; its files and sockets are reached through"
            " /proc/PID/root",
        ],
        0,
    ),
    "yama-3": (
        {},
        lambda host: host.write("proc/sys/kernel/yama/ptrace_scope", "3\n"),
        [
            "[ FAIL ]     - Yama: ptrace_scope 3: nobody may attach to anything, and only a reboot changes that",
            "               hint: boot without kernel.yama.ptrace_scope=3 in /etc/sysctl.d",
        ],
        1,
    ),
    "static": (
        {},
        lambda host: setattr(
            host, "deputy_check", refuse_attach(PID, f"process {PID} maps no code", "static, musl")
        ),
        [f"[ FAIL ]     - deputy: process {PID} maps no code", "               hint: static, musl"],
        1,
    ),
}


@pytest.mark.parametrize("name", WAYS)
def test_the_way_in(host: FakeHost, name: str) -> None:
    settings, change, expected, status = WAYS[name]
    start(host, **settings)  # type: ignore[arg-type]
    change(host)
    finding = examine(host)
    way = find([finding], "way in")
    said = [line for child in way.children for line in lines(child, 2)]
    usual = PLAIN.splitlines()
    if name in ("undumpable", "undumpable-for-root"):
        said = [line for line in said if " - user: " not in line]
    assert [line for line in said if line not in usual] == expected
    assert exit_status([finding]) == status


# ---- the monitor


def listening(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    return server


def test_a_monitor_that_somebody_holds(host: FakeHost) -> None:
    path = host.root / "qmp.sock"
    with listening(path):
        start(host, (*QEMU, "-qmp", f"unix:{path},server=on,wait=off"))
        row = f"0000000000000000: 00000003 00000000 00000000 0001 03 77 {path}\n"
        host.write(f"proc/{PID}/net/unix", row)
        (host.root / f"proc/{PID}/root").symlink_to("/")
        finding = examine(host, timeout=0.01)
    monitor = find([finding], "monitor")
    assert monitor.detail == f"another client uses the monitor of process {PID} ({path})"
    assert monitor.help == "close that client, or start QEMU with one more -qmp unix:PATH,server=on,wait=off"
    assert find([finding], "memory").detail.startswith("1 slot, 64 MiB: guest memory was guessed")
    assert exit_status([finding]) == 0


def test_a_monitor_that_was_named_must_answer(host: FakeHost) -> None:
    start(host)
    finding = examine(host, qmp=str(host.root / "none"))
    assert find([finding], "monitor").outcome.value == "fail"
    assert exit_status([finding]) == errors.EXIT_FAILURE


def test_a_monitor_that_libvirt_holds(host: FakeHost) -> None:
    start(host, (*QEMU, "-chardev", "socket,id=m,fd=3", "-mon", "x=/var/lib/libvirt/qemu"))
    monitor = find([examine(host)], "monitor")
    assert (monitor.detail, monitor.help) == ("libvirt holds it", "--libvirt g1 asks through virsh")


def test_two_monitors_contradict_each_other(host: FakeHost) -> None:
    start(host)
    with pytest.raises(errors.UsageError):
        examine(host, qmp="/a", libvirt="b")


# ---- no guest


def test_no_such_guest(host: FakeHost) -> None:
    finding = examine(host)
    assert tree(finding) == [
        f"[ FAIL ] - guest: no process {PID}",
        "           hint: `sevkvm list` shows the VMs of this host; in a container only its own",
    ]
    assert exit_status([finding]) == errors.EXIT_FAILURE


def test_several_vms_in_one_process(host: FakeHost) -> None:
    start(host, fds={9: "vm:A", 10: "vm:B", 11: "vcpu:A:0"})
    assert examine(host).detail == f"process {PID} has 2 VMs"
    finding = examine(host, vm_fd=9)
    assert "several VMs" in find([finding], "registers").detail


# ---- --attach


def opener(guest: Guest) -> Callable[[], object]:
    @contextmanager
    def attach() -> Iterator[Guest]:
        yield guest

    return attach


def attached(host: FakeHost, **settings: object) -> Finding:
    start(host, ("/usr/bin/vmm",), sev=True)
    guest = make_guest(Attached(), **settings)  # type: ignore[arg-type]
    options = AttachOptions(pid=PID, slots=("0x0:64M:0x7f0000000000",))
    return examine_guest(host.machine(), options, opener(guest))  # type: ignore[arg-type]


def test_attaching_asks_the_kernel_and_decrypts(host: FakeHost) -> None:
    finding = attached(host, policy=0)
    assert find([finding], "protection").detail == "SEV (the kernel says)"
    assert find([finding], "launch state").detail == "running"
    inside = [each for each in finding.children if each.name == "attached"]
    assert find(inside, "registers").detail == "read, of 2 vCPUs"
    assert find(inside, "memory").detail == "16 bytes at gpa 0x0 decrypted"
    assert exit_status([finding]) == 0


def test_attaching_to_a_guest_that_forbids_it(host: FakeHost) -> None:
    finding = attached(host, policy=1)
    inside = [each for each in finding.children if each.name == "attached"]
    assert find(inside, "memory").detail == "not read: the guest's policy 0x1 forbids debugging (NODBG)"
    assert exit_status([finding]) == errors.EXIT_FORBIDDEN


def test_attaching_to_a_guest_without_encryption(host: FakeHost) -> None:
    finding = attached(host, policy=None)
    assert find([finding], "protection").detail == "not encrypted (the kernel says)"
    inside = [each for each in finding.children if each.name == "attached"]
    assert find(inside, "memory").detail == "16 bytes at gpa 0x0 read"
    assert exit_status([finding]) == 0


def test_attaching_to_snp(host: FakeHost) -> None:
    assert exit_status([attached(host, policy=0, kind=SevKind.SEV_SNP)]) == errors.EXIT_FORBIDDEN


def test_attaching_that_fails_says_why(host: FakeHost) -> None:
    start(host)

    @contextmanager
    def refuse() -> Iterator[Guest]:
        raise errors.AttachError("may not", help="be root")
        yield

    finding = examine_guest(host.machine(), AttachOptions(pid=PID), refuse)
    assert (find([finding], "attach").detail, find([finding], "attach").help) == ("may not", "be root")
    assert exit_status([finding]) == errors.EXIT_FAILURE
