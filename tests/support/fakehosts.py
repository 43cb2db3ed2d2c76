"""Made-up hosts for the doctor: a tree of /proc, /sys and /dev, and a processor, changed by the test at will.

The CPUID values have the shape of real machines' (C-bit 47 up to Rome, 51 later; 15, 509, 1006 guests); they were put
together by hand, not read off the machines.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from sevkvm import errors
from sevkvm.abi.sev import PlatformStatus
from sevkvm.doctor import Finding, Machine
from sevkvm.doctor.machine import Owner
from sevkvm.host.sevdev import SevDevice
from tests.support.fakeproc import FakeProc

ALL_CAPABILITIES = (1 << 41) - 1
INITIAL = {"pid": "pid:[4026531836]", "user": "user:[4026531837]", "mnt": "mnt:[4026531832]"}
SYSCFG = 0xC0010010
STATUS = """Name:\tsevkvm
Tgid:\t77
TracerPid:\t0
Uid:\t{uid}\t{uid}\t{uid}\t{uid}
Gid:\t{uid}\t{uid}\t{uid}\t{uid}
CapPrm:\t{caps:016x}
CapEff:\t{caps:016x}
Seccomp:\t{seccomp}
"""
LIMITS = """Limit                     Soft Limit           Hard Limit           Units
Max locked memory         {memlock:<20} {memlock:<20} bytes
Max address space         unlimited            unlimited            bytes
"""


class Cpu(NamedTuple):
    """CPUID: Fn0000_0001 EAX and ECX, Fn8000_001F."""

    signature: int
    sev: tuple[int, int, int, int] = (0, 0, 0, 0)
    ecx: int = 0
    vendor: bytes = b"AuthenticAMD"

    def cpuid(self, leaf: int) -> tuple[int, int, int, int]:
        """What the instruction answers."""
        if leaf == 0:
            ebx, edx, ecx = struct.unpack("<III", self.vendor)
            return 0x10, ebx, ecx, edx
        if leaf == 1:
            return self.signature, 0, self.ecx, 0
        if leaf == 0x80000000:
            return 0x80000021 if self.sev != (0, 0, 0, 0) else 0x80000008, 0, 0, 0
        return self.sev if leaf == 0x8000001F else (0, 0, 0, 0)


NAPLES = Cpu(0x00800F12, (0x0000000F, 0x0000016F, 0x0000000F, 0x00000001))
ROME = Cpu(0x00830F10, (0x0001000F, 0x0000016F, 0x000001FD, 0x00000064))
MILAN = Cpu(0x00A00F11, (0x0001780F | 1 << 4, 0x00000173, 0x000001FD, 0x00000064))
GENOA = Cpu(0x00A10F11, (0x0101FD3F, 0x000001B3, 0x000003EE, 0x00000064))
TURIN = Cpu(0x00B00F21, (0x0101FD3F, 0x000001B3, 0x000003EE, 0x00000064))
RYZEN = Cpu(0x00A20F10, (0x00000001, 0x00000173, 0, 0))
INTEL = Cpu(0x000906EA, vendor=b"GenuineIntel")
WORKING = PlatformStatus(1, 55, 2, 0x100, 21, 3)


def refuse_attach(pid: int, message: str, help: str) -> Callable[[int], None]:
    """A ``deputy_check`` that finds something."""

    def check(asked: int) -> None:
        assert asked == pid
        raise errors.AttachError(message, pid=pid, help=help)

    return check


@dataclass
class FakeHost:
    """Healthy unless changed: Milan, root, Linux 6.1.177 with kvm_amd and ccp, QEMU and all Python packages."""

    root: Path
    cpu: Cpu = MILAN
    release: str = "6.1.177-1-amd64"
    status: PlatformStatus | errors.SevKvmError = WORKING
    owners: dict[str, Owner] = field(default_factory=dict)
    unusable: set[str] = field(default_factory=set)
    programs: dict[str, str] = field(
        default_factory=lambda: {"qemu-system-x86_64": "QEMU 7.2", "virsh": "9.0"}
    )
    missing: set[str] = field(default_factory=set)
    deputy_check: Callable[[int], None] = lambda pid: None

    def __post_init__(self) -> None:
        for name in ("proc", "sys", "dev"):
            (self.root / name).mkdir()
        self.processes = FakeProc(self.root / "proc")
        (self.root / "proc/self").unlink()
        self.me()
        self.write("proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/sda1 quiet\n")
        self.write("proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu svm sme sev sev_es\n")
        self.write("proc/sys/kernel/yama/ptrace_scope", "0\n")
        self.write("proc/self/attr/current", "unconfined\n")
        self.write("sys/kernel/security/lsm", "lockdown,capability,yama,apparmor")
        self.write("sys/kernel/security/lockdown", "[none] integrity confidentiality\n")
        for name, value in (("sev", "Y"), ("sev_es", "Y"), ("sev_snp", "N")):
            self.write(f"sys/module/kvm_amd/parameters/{name}", value + "\n")
        for name in ("kvm", "ccp"):
            (self.root / "sys/module" / name).mkdir()
        for name in ("kvm", "sev"):
            self.write(f"dev/{name}", "")

    def write(self, path: str, text: str) -> None:
        """A file below the root."""
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def remove(self, path: str) -> None:
        """A file, or a directory with all that is in it."""
        target = self.root / path
        if target.is_dir() and not target.is_symlink():
            for child in target.iterdir():
                self.remove(str(child.relative_to(self.root)))
            target.rmdir()
        else:
            target.unlink()

    def me(self, uid: int = 0, caps: int | None = None, seccomp: int = 0, memlock: str = "unlimited") -> None:
        """Who runs the doctor; root has all capabilities unless told otherwise."""
        caps = caps if caps is not None else (0 if uid else ALL_CAPABILITIES)
        self.write("proc/self/status", STATUS.format(uid=uid, caps=caps, seccomp=seccomp))
        self.write("proc/self/limits", LIMITS.format(memlock=memlock))
        self.namespaces("self")

    def namespaces(self, process: int | str, **changed: str) -> None:
        """The namespaces of a process: the host's own but for those that are named."""
        directory = self.root / "proc" / str(process) / "ns"
        directory.mkdir(exist_ok=True)
        for kind, name in (INITIAL | changed).items():
            (directory / kind).unlink(missing_ok=True)
            (directory / kind).symlink_to(name)

    def write_syscfg(self, value: int) -> None:
        """/dev/cpu/0/msr: registers of 8 bytes at their number."""
        path = self.root / "dev/cpu/0/msr"
        path.parent.mkdir(parents=True)
        with path.open("wb") as file:
            file.seek(SYSCFG)
            file.write(value.to_bytes(8, "little"))

    def machine(self) -> Machine:
        """What the doctor is given."""
        return Machine(
            proc=self.root / "proc",
            sys=self.root / "sys",
            dev=self.root / "dev",
            cpuid=self.cpu.cpuid,
            release=lambda: self.release,
            owner_of=self._owner_of,
            may_use=lambda path: path.name not in self.unusable,
            platform_status=self._platform_status,
            program_version=self.programs.get,
            has_module=lambda name: name not in self.missing,
            has_library=lambda name: name not in self.missing,
            same_file=self.processes.same_file,
            deputy_check=self.deputy_check,
        )

    def _owner_of(self, path: Path) -> Owner | None:
        if not path.exists():
            return None
        told = self.owners.get(str(path.relative_to(self.root)))
        if told is None and path.name.isdecimal():  # a process's directory belongs to its effective user
            uid = int((path / "status").read_text().partition("Uid:")[2].split()[1])
            return Owner(uid, uid, 0o555)
        return told or Owner(0, 0, 0o600)

    def _platform_status(self, path: str) -> PlatformStatus:
        with SevDevice(path):  # its own error where there is no such file
            pass
        if isinstance(self.status, errors.SevKvmError):
            raise self.status
        return self.status


def no_rights() -> errors.AttachError:
    """What SevDevice raises for somebody else."""
    return errors.AttachError(
        "cannot open /dev/sev: Permission denied",
        help="only root may open /dev/sev unless udev says otherwise",
    )


def no_firmware() -> errors.IoctlError:
    """What it raises where the driver found nothing."""
    return errors.IoctlError("SEV_PLATFORM_STATUS", errno.ENODEV, help="the driver found no firmware")


def find(findings: list[Finding], name: str) -> Finding:
    """The one finding of this name."""
    (found,) = [each for finding in findings for each in finding.walk() if each.name == name]
    return found
