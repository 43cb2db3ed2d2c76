"""The doctor on made-up hosts: what it prints, line by line, and what its exit status is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sevkvm import errors
from sevkvm.abi.sev import PlatformStatus
from sevkvm.cli.doctor import lines
from sevkvm.doctor import examine_host, exit_status
from sevkvm.doctor.machine import Owner
from tests.support.fakehosts import (
    ALL_CAPABILITIES,
    GENOA,
    INTEL,
    MILAN,
    NAPLES,
    ROME,
    RYZEN,
    TURIN,
    WORKING,
    Cpu,
    FakeHost,
    no_firmware,
    no_rights,
)

HEALTHY = """\
[ PASS ] - processor: EPYC Milan (Zen 3), family 0x19 model 0x1
[ PASS ]   - memory encryption: the kernel sees `sev` in /proc/cpuinfo
[ PASS ]   - SEV
[ PASS ]     - SEV-ES: ASIDs 1 to 99
[ PASS ]     - SEV-SNP: present; nobody can look into SNP guests from the host
[ PASS ]     - C-bit: bit 51
[ PASS ]     - address bits: 5 fewer for the host while encryption is on
[ PASS ]     - ASIDs: 509 encrypted guests at most; SEV without ES from ASID 100 on
[ PASS ] - kernel
[ PASS ]   - version: 6.1.177-1-amd64
[ PASS ]   - kvm: loaded, with kvm_amd
[ PASS ]   - kvm_amd: loaded
[ PASS ]     - sev: on (Y)
[ PASS ]     - sev_es: on (Y)
[ SKIP ]     - sev_snp: off (N); SNP guests cannot be debugged anyway
[ PASS ]   - ccp: loaded
[ PASS ]   - SEV debug fixes: in this kernel (since 6.1.177)
[ PASS ] - /dev/kvm: root:root 0600
[ PASS ] - /dev/sev: root:root 0600
[ PASS ]   - platform: SEV API 1.55, build 21; WORKING, 3 guests, self-owned, SEV-ES initialised
[ PASS ] - rights
[ PASS ]   - user: root, CAP_SYS_PTRACE and CAP_SYS_ADMIN
[ PASS ]   - Yama: ptrace_scope 0: a user's own processes may be attached to
[ PASS ]   - security modules: lockdown,capability,yama,apparmor; we are unconfined
[ PASS ]   - lockdown: none
[ PASS ]   - seccomp: no filter on us
[ PASS ]   - namespaces
[ PASS ]     - pid namespace: the host's own
[ PASS ]     - user namespace: the host's own
[ PASS ]   - memlock: CAP_IPC_LOCK: no limit for what is started from here
[ PASS ] - software
[ PASS ]   - qemu-system-x86_64: QEMU 7.2
[ PASS ]   - virsh: 9.0
[ PASS ]   - Python zstandard: for dump --compress zstd
[ PASS ]   - Python cramjam: for dump --compress snappy
[ PASS ]   - Python yara: for search --yara
[ PASS ]   - Python capstone: for machine code as instructions
[ PASS ]   - Python fsspec: for dump -o s3://... and other remote stores
[ PASS ]   - Python cryptography: for sevkvm shim, the pretend SEV host
[ PASS ]   - liblzo2.so.2: for dump --compress lzo
"""
SETUP = "hint: in the firmware setup (BIOS) enable SVM, SMEE (secure memory encryption) and SEV"
BARE = "hint: SEV guests run on the bare host: sevkvm works there, and here for guests without encryption"
PTRACE = (
    "hint: run sevkvm as root or as the VMM's own user, in the VMM's pid namespace;"
    " check /proc/sys/kernel/yama/ptrace_scope and that no other debugger is attached"
)
OPEN_CVE = (
    "[ WARN ]   - SEV debug fixes: CVE-2026-63794 may be open: other programs' debug requests can make KVM write past"
    " a page; sevkvm does not depend on it: it asks for whole 16-byte blocks at equal page offsets, within a page, only"
)
DMESG = "`dmesg | grep -i -e sev -e kvm_amd` tells why the kernel turned it off"


def tree(host: FakeHost) -> tuple[list[str], int]:
    findings = examine_host(host.machine())
    return [line for each in findings for line in lines(each)], exit_status(findings)


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def test_a_healthy_host(host: FakeHost) -> None:
    assert tree(host) == (HEALTHY.splitlines(), 0)


def says(host: FakeHost) -> tuple[list[str], int]:
    """Only what a healthy host does not say."""
    told, status = tree(host)
    return [line for line in told if line not in HEALTHY.splitlines()], status


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        (
            NAPLES,
            """\
[ WARN ] - processor: EPYC Naples (Zen 1), family 0x17 model 0x1
[ WARN ]   - SEV
[ WARN ]     - SEV-ES: no ASIDs are set aside for it
               hint: raise the SEV-ES ASID limit, if the firmware setup has one
[ SKIP ]     - SEV-SNP: not in this processor
[ PASS ]     - C-bit: bit 47
[ PASS ]     - ASIDs: 15 encrypted guests at most; SEV without ES from ASID 1 on
""",
        ),
        (
            ROME,
            """\
[ PASS ] - processor: EPYC Rome (Zen 2), family 0x17 model 0x31
[ SKIP ]     - SEV-SNP: not in this processor
[ PASS ]     - C-bit: bit 47
""",
        ),
        (
            GENOA,
            """\
[ PASS ] - processor: EPYC Genoa (Zen 4), family 0x19 model 0x11
[ PASS ]     - address bits: 6 fewer for the host while encryption is on
[ PASS ]     - ASIDs: 1006 encrypted guests at most; SEV without ES from ASID 100 on
""",
        ),
        (
            TURIN,
            """\
[ PASS ] - processor: EPYC Turin (Zen 5), family 0x1a model 0x2
[ PASS ]     - address bits: 6 fewer for the host while encryption is on
[ PASS ]     - ASIDs: 1006 encrypted guests at most; SEV without ES from ASID 100 on
""",
        ),
        (
            MILAN._replace(signature=0x00C00F10),
            "[ WARN ] - processor: AuthenticAMD, family 0x1b model 0x1: not known to sevkvm\n",
        ),
        (
            MILAN._replace(sev=(0x0B, 0x173, 16, 17)),
            """\
[ WARN ] - processor: EPYC Milan (Zen 3), family 0x19 model 0x1
[ WARN ]   - SEV
[ PASS ]     - SEV-ES: ASIDs 1 to 16
[ SKIP ]     - SEV-SNP: not in this processor
[ WARN ]     - ASIDs: 16 encrypted guests at most, none left for SEV without ES
               hint: lower the SEV-ES ASID limit in the firmware setup
""",
        ),
    ],
    ids=["naples", "rome", "genoa", "turin", "unknown", "all-es"],
)
def test_processors(host: FakeHost, cpu: Cpu, expected: str) -> None:
    host.cpu = cpu
    assert says(host) == (expected.splitlines(), 0)


def without_sev(host: FakeHost, cpu: Cpu) -> None:
    host.cpu = cpu
    for path in ("dev/sev", "sys/module/kvm_amd", "sys/module/ccp"):
        host.remove(path)


REST_WITHOUT_SEV = """\
[ PASS ]   - kvm: loaded
[ SKIP ]   - kvm_amd: of no use without SEV in the processor
[ SKIP ]   - ccp: of no use without SEV in the processor
[ SKIP ]   - SEV debug fixes: only kvm_amd needs them
[ SKIP ] - /dev/sev: missing; there is no SEV in the processor
"""


@pytest.mark.parametrize(
    ("cpu", "expected", "status"),
    [
        (
            INTEL,
            f"""\
[ FAIL ] - processor: GenuineIntel, family 0x6 model 0x9e: only AMD's have SEV
           {BARE}
""",
            5,
        ),
        (
            RYZEN,
            f"""\
[ FAIL ] - processor: AuthenticAMD, family 0x19 model 0x21
[ FAIL ]   - SEV: this model does not have it
             {BARE}
""",
            5,
        ),
        (
            MILAN._replace(sev=(0, 0, 0, 0)),
            f"""\
[ FAIL ] - processor: EPYC Milan (Zen 3), family 0x19 model 0x1
[ FAIL ]   - SEV: CPUID 8000_001F does not report it
             {SETUP}
""",
            1,
        ),
        (
            MILAN._replace(sev=(0, 0, 0, 0), ecx=1 << 31),
            f"""\
[ FAIL ] - processor: EPYC Milan (Zen 3), family 0x19 model 0x1, itself virtual
[ FAIL ]   - SEV: CPUID 8000_001F does not report it: this host is a virtual machine
             {BARE}
""",
            5,
        ),
    ],
    ids=["intel", "ryzen", "off-in-setup", "virtual"],
)
def test_hosts_without_sev(host: FakeHost, cpu: Cpu, expected: str, status: int) -> None:
    without_sev(host, cpu)
    told, code = tree(host)
    first_shared = told.index("[ PASS ] - kernel")
    assert told[:first_shared] == expected.splitlines()
    assert [line for line in told[first_shared:] if line not in HEALTHY.splitlines()] == (
        REST_WITHOUT_SEV.splitlines()
    )
    assert code == status


def test_a_pretend_host_is_no_failure(host: FakeHost) -> None:
    host.cpu = INTEL
    told, status = tree(host)
    assert told[:2] == [
        "[ WARN ] - processor: GenuineIntel, family 0x6 model 0x9e",
        "[ WARN ]   - SEV: CPUID does not report it, yet /dev/sev answers: a pretend host?",
    ]
    assert status == 0


def put(path: str, text: str) -> Callable[[FakeHost], None]:
    return lambda host: host.write(path, text)


def take(*paths: str) -> Callable[[FakeHost], None]:
    def change(host: FakeHost) -> None:
        for path in paths:
            host.remove(path)

    return change


def give(**attributes: object) -> Callable[[FakeHost], None]:
    return lambda host: [setattr(host, name, value) for name, value in attributes.items()] and None


def both(*changes: Callable[[FakeHost], None]) -> Callable[[FakeHost], None]:
    return lambda host: [change(host) for change in changes] and None


CASES: dict[str, tuple[Callable[[FakeHost], None], str, int]] = {
    "smee-on-by-msr": (
        lambda host: host.write_syscfg(1 << 23),
        "[ PASS ]   - memory encryption: enabled (SYSCFG bit 23)\n",
        0,
    ),
    "smee-off-by-msr": (
        lambda host: host.write_syscfg(1 << 22),
        f"""\
[ FAIL ] - processor: EPYC Milan (Zen 3), family 0x19 model 0x1
[ FAIL ]   - memory encryption: not enabled (SYSCFG bit 23)
             {SETUP}
""",
        1,
    ),
    "smee-off-by-kernel": (
        both(
            put("proc/cpuinfo", "flags\t: fpu svm sev_es\n"),
            put("proc/cmdline", "quiet mem_encrypt=off\n"),
        ),
        f"""\
[ FAIL ] - processor: EPYC Milan (Zen 3), family 0x19 model 0x1
[ FAIL ]   - memory encryption: the kernel hides `sev` in /proc/cpuinfo; the host's own memory: mem_encrypt=off
             {SETUP}
""",
        1,
    ),
    "5.10": (
        both(give(release="5.10.0-28-amd64"), take("sys/module/kvm_amd/parameters/sev_es")),
        f"""\
[ WARN ] - kernel
[ WARN ]   - version: 5.10.0-28-amd64: no SEV-ES guests before 5.11
[ SKIP ]     - sev_es: this kvm_amd has no such parameter
{OPEN_CVE}
             hint: run 5.10.260, or ask the distribution for the fix of CVE-2026-63794
""",
        0,
    ),
    "5.15": (
        give(release="5.15.210"),
        f"""\
[ WARN ] - kernel
[ PASS ]   - version: 5.15.210
{OPEN_CVE}
             hint: run 5.15.211, or ask the distribution for the fix of CVE-2026-63794
""",
        0,
    ),
    "5.15-fixed": (
        give(release="5.15.211"),
        """\
[ PASS ]   - version: 5.15.211
[ PASS ]   - SEV debug fixes: in this kernel (since 5.15.211)
""",
        0,
    ),
    "6.6": (
        give(release="6.6.150"),
        f"""\
[ WARN ] - kernel
[ PASS ]   - version: 6.6.150
{OPEN_CVE}
             hint: run 7.2, or a stable kernel since July 2026, or ask the distribution for the fix of CVE-2026-63794
""",
        0,
    ),
    "7.2": (
        give(release="7.2.0-rc1"),
        """\
[ PASS ]   - version: 7.2.0-rc1
[ PASS ]   - SEV debug fixes: in this kernel (since 7.2)
""",
        0,
    ),
    "4.14": (
        give(release="4.14.336"),
        f"""\
[ FAIL ] - kernel
[ FAIL ]   - version: 4.14.336: KVM has SEV since 4.16
             hint: run a newer kernel
{OPEN_CVE}
             hint: run 7.2, or a stable kernel since July 2026, or ask the distribution for the fix of CVE-2026-63794
""",
        1,
    ),
    "kvm-amd-sev-0": (
        put("sys/module/kvm_amd/parameters/sev", "N\n"),
        f"""\
[ FAIL ] - kernel
[ FAIL ]   - kvm_amd: loaded
[ FAIL ]     - sev: off (N)
               hint: boot with kvm_amd.sev=1, or `options kvm_amd sev=1` in /etc/modprobe.d; {DMESG}
""",
        1,
    ),
    "integer-parameters": (
        both(
            put("sys/module/kvm_amd/parameters/sev", "1\n"),
            put("sys/module/kvm_amd/parameters/sev_es", "0\n"),
        ),
        f"""\
[ WARN ] - kernel
[ WARN ]   - kvm_amd: loaded
[ PASS ]     - sev: on (1)
[ WARN ]     - sev_es: off (0): no SEV-ES guests
               hint: boot with kvm_amd.sev_es=1, or `options kvm_amd sev_es=1` in /etc/modprobe.d; {DMESG}
""",
        0,
    ),
    "no-kvm-amd": (
        take("sys/module/kvm_amd"),
        """\
[ FAIL ] - kernel
[ PASS ]   - kvm: loaded
[ FAIL ]   - kvm_amd: not loaded
             hint: `modprobe kvm_amd`; SVM must be enabled in the firmware setup (BIOS)
""",
        1,
    ),
    "no-ccp": (
        take("sys/module/ccp", "dev/sev"),
        """\
[ FAIL ] - kernel
[ FAIL ]   - ccp: not loaded: the driver of the secure processor
             hint: `modprobe ccp`
[ FAIL ] - /dev/sev: missing
           hint: no SEV on this host: it needs an AMD EPYC, SEV enabled in the firmware setup, and the ccp module
""",
        1,
    ),
    "ccp-built-in": (take("sys/module/ccp"), "[ PASS ]   - ccp: built in\n", 0),
    "no-kvm": (
        take("sys/module/kvm", "dev/kvm"),
        """\
[ FAIL ] - kernel
[ FAIL ]   - kvm: not loaded
             hint: `modprobe kvm_amd` (`kvm_intel` on Intel); SVM or VT-x must be enabled
[ FAIL ] - /dev/kvm: missing: no KVM guest can run here
           hint: load kvm and the vendor's module; SVM or VT-x must be enabled in the firmware setup (BIOS)
""",
        1,
    ),
    "sev-of-another-owner": (
        give(owners={"dev/sev": Owner(64055, 64056, 0o660)}, unusable={"sev"}, status=no_rights()),
        """\
[ WARN ] - /dev/sev: uid 64055:gid 64056 0660: not for us
           hint: sevkvm needs no access; whoever starts guests does: root, or a member of gid 64056
[ SKIP ]   - platform: not asked: we may not open /dev/sev
             hint: only root may open /dev/sev unless udev says otherwise
""",
        0,
    ),
    "sev-for-everybody": (
        give(owners={"dev/sev": Owner(0, 0, 0o666)}),
        """\
[ WARN ] - /dev/sev: root:root 0666: anybody may reset the platform, and its keys with it
           hint: let udev make it 0660, of the VMMs' group
""",
        0,
    ),
    "platform-uninit": (
        give(status=PlatformStatus(0, 24, 0, 0, 15, 0)),
        "[ PASS ]   - platform: SEV API 0.24, build 15; UNINIT: initialised with the first encrypted guest\n",
        0,
    ),
    "platform-init": (
        give(status=WORKING._replace(state=1, flags=1, guest_count=1)),
        "[ PASS ]   - platform: SEV API 1.55, build 21; INIT, 1 guest, externally owned, SEV-ES not initialised\n",
        0,
    ),
    "platform-state-nobody-knows": (
        give(status=WORKING._replace(state=9)),
        "[ PASS ]   - platform: SEV API 1.55, build 21; unknown (9), 3 guests, self-owned, SEV-ES initialised\n",
        0,
    ),
    "platform-silent": (
        give(status=no_firmware()),
        """\
[ FAIL ] - /dev/sev: root:root 0600
[ FAIL ]   - platform: SEV_PLATFORM_STATUS: ENODEV (No such device)
             hint: the driver found no firmware
""",
        1,
    ),
    "user-yama-0": (
        lambda host: host.me(uid=64057, memlock="8388608"),
        f"""\
[ WARN ] - rights
[ WARN ]   - user: uid 64057, neither CAP_SYS_PTRACE nor CAP_SYS_ADMIN: only VMMs of the same user can be attached to
             {PTRACE}
[ WARN ]   - memlock: 8192 KiB: a VMM started from here could not pin an encrypted guest's memory
             hint: `ulimit -l unlimited`, systemd's LimitMEMLOCK=infinity, or libvirt's hard_limit
""",
        0,
    ),
    "user-yama-1": (
        both(lambda host: host.me(uid=64057), put("proc/sys/kernel/yama/ptrace_scope", "1\n")),
        f"""\
[ FAIL ] - rights
[ WARN ]   - user: uid 64057, neither CAP_SYS_PTRACE nor CAP_SYS_ADMIN: only VMMs of the same user can be attached to
             {PTRACE}
[ FAIL ]   - Yama: ptrace_scope 1: only with CAP_SYS_PTRACE, or to one's own children
             {PTRACE}
[ PASS ]   - memlock: unlimited
""",
        1,
    ),
    "capability-yama-2": (
        both(lambda host: host.me(uid=64057, caps=1 << 19), put("proc/sys/kernel/yama/ptrace_scope", "2\n")),
        """\
[ PASS ]   - user: uid 64057, CAP_SYS_PTRACE
[ PASS ]   - Yama: ptrace_scope 2: only with CAP_SYS_PTRACE
[ PASS ]   - memlock: unlimited
""",
        0,
    ),
    "root-without-ptrace": (
        lambda host: host.me(caps=ALL_CAPABILITIES & ~(1 << 19)),
        f"""\
[ WARN ] - rights
[ WARN ]   - user: root, CAP_SYS_ADMIN: only VMMs of the same user can be attached to
             {PTRACE}
""",
        0,
    ),
    "yama-3": (
        put("proc/sys/kernel/yama/ptrace_scope", "3\n"),
        """\
[ FAIL ] - rights
[ FAIL ]   - Yama: ptrace_scope 3: nobody may attach to anything, and only a reboot changes that
             hint: boot without kernel.yama.ptrace_scope=3 in /etc/sysctl.d
""",
        1,
    ),
    "selinux-denies": (
        both(
            put("sys/kernel/security/lsm", "capability,selinux"),
            put("sys/fs/selinux/booleans/deny_ptrace", "1 1"),
        ),
        """\
[ FAIL ] - rights
[ FAIL ]   - security modules: capability,selinux: SELinux denies ptrace
             hint: `setsebool deny_ptrace off`
""",
        1,
    ),
    "confined": (
        put("proc/self/attr/current", "docker-default (enforce)\n"),
        """\
[ WARN ] - rights
[ WARN ]   - security modules: lockdown,capability,yama,apparmor; we are docker-default (enforce)
             hint: if attaching is refused, run unconfined; see `dmesg`
""",
        0,
    ),
    "locked-down": (
        put("sys/kernel/security/lockdown", "none [integrity] confidentiality\n"),
        "[ PASS ]   - lockdown: integrity: forbids nothing that sevkvm does\n",
        0,
    ),
    "container": (
        both(lambda host: host.me(seccomp=2), lambda host: host.namespaces("self", pid="pid:[4026532001]")),
        """\
[ WARN ] - rights
[ WARN ]   - seccomp: a filter is on us: it may refuse ptrace, process_vm_readv or kcmp
             hint: run outside the container, or with --security-opt seccomp=unconfined --cap-add SYS_PTRACE
[ WARN ]   - namespaces
[ WARN ]     - pid namespace: we are in a container: only VMMs inside it can be seen
               hint: run on the host, or with --pid=host
""",
        0,
    ),
    "nothing-optional": (
        give(programs={"qemu-system-x86_64": ""}, missing={"cryptography", "liblzo2.so.2"}),
        """\
[ PASS ]   - qemu-system-x86_64: found, but does not tell its version
[ SKIP ]   - virsh: not found; --libvirt needs it
[ SKIP ]   - Python cryptography: not installed: no sevkvm shim, the pretend SEV host
             hint: pip install 'sevkvm[shim]'
[ SKIP ]   - liblzo2.so.2: not found: no dump --compress lzo
             hint: install it (Debian: apt install liblzo2-2)
""",
        0,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_differs_from_a_healthy_host(host: FakeHost, name: str) -> None:
    change, expected, status = CASES[name]
    change(host)
    assert says(host) == (expected.splitlines(), status)


def test_a_tree_of_nothing_is_no_crash(tmp_path: Path) -> None:
    """A kernel without half of its files: every check has an answer."""
    host = FakeHost(tmp_path, cpu=Cpu(0x00A00F11, vendor=b"AuthenticAMD"), release="unheard-of")
    for name in ("proc", "sys", "dev"):
        host.remove(name)
        (tmp_path / name).mkdir()
    told, status = tree(host)
    assert "[ SKIP ]   - version: 'unheard-of' is no version number" in told
    assert "[ FAIL ] - /dev/kvm: missing: no KVM guest can run here" in told
    assert status == errors.EXIT_FAILURE
