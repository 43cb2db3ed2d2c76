"""Everything sevkvm raises.

Classes differ where a *caller* would act differently. They carry data in attributes, a one-line message, and
``help``: what to do about it, printed by the command line. ``exit_code`` is the process exit status.
"""

from __future__ import annotations

import errno as _errno
import os

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_ATTACH = 3
EXIT_NO_VM = 4
EXIT_FORBIDDEN = 5
EXIT_HOLES = 6

_POLICY_FAILURE = 0x07  # abi.sev.FwStatus, which stands above this module


class SevKvmError(Exception):
    """Base of all errors; ``help`` says what to do next, or is None."""

    exit_code = EXIT_FAILURE

    def __init__(self, message: str, *, help: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.help = help

    def __str__(self) -> str:
        return self.message


class UsageError(SevKvmError, ValueError):
    """What was asked for contradicts itself or is malformed."""

    exit_code = EXIT_USAGE


class AttachError(SevKvmError, PermissionError):
    """We could not get into the VMM, or must not."""

    exit_code = EXIT_ATTACH

    def __init__(self, message: str, *, pid: int | None = None, help: str | None = None) -> None:
        super().__init__(message, help=help)
        self.pid = pid


class MirrorUnavailable(AttachError):
    """No VM of our own can stand in for this one; another way in may be open.

    ``copy_refused``: the kernel can copy encryption contexts, and found none in this VM that it could.
    """

    def __init__(
        self,
        message: str,
        *,
        pid: int | None = None,
        help: str | None = "--via deputy adds a thread to the VMM instead, which needs ptrace",
        copy_refused: bool = False,
    ) -> None:
        super().__init__(message, pid=pid, help=help)
        self.copy_refused = copy_refused


class VmNotFound(SevKvmError, LookupError):
    """No such process, or it has no such VM."""

    exit_code = EXIT_NO_VM


class TargetGone(SevKvmError, ProcessLookupError):
    """The VMM ended while we were attached."""

    def __init__(self, message: str, *, pid: int | None = None, help: str | None = None) -> None:
        super().__init__(message, help=help)
        self.pid = pid


class TargetTimeout(SevKvmError, TimeoutError):
    """A bounded wait for the VMM or its monitor ran out."""


class IoctlError(SevKvmError, OSError):
    """An ioctl failed with ``errno``; ``request`` is its kernel name."""

    errno: int

    def __init__(self, request: str, os_errno: int, *, help: str | None = None) -> None:
        name = _errno.errorcode.get(os_errno, str(os_errno))
        super().__init__(f"{request}: {name} ({os.strerror(os_errno)})", help=help)
        self.request = request
        self.errno = os_errno


class FirmwareError(SevKvmError, OSError):
    """The secure processor refused: ``status`` is its code, ``status_name`` its name in the SEV API."""

    def __init__(self, command: str, status: int, status_name: str, *, help: str | None = None) -> None:
        super().__init__(f"{command}: firmware answered {status_name} (0x{status:02x})", help=help)
        if status == _POLICY_FAILURE:
            self.exit_code = EXIT_FORBIDDEN
        self.command = command
        self.status = status
        self.status_name = status_name


class DebugForbidden(SevKvmError, PermissionError):
    """The guest's policy forbids debugging; ``policy`` is its value."""

    exit_code = EXIT_FORBIDDEN

    def __init__(self, message: str, *, policy: int | None = None, help: str | None = None) -> None:
        super().__init__(message, help=help)
        self.policy = policy


class PlatformUnsupported(SevKvmError):
    """The platform cannot do it for anybody (SEV-SNP, no SEV at all, an unknown C-bit)."""

    exit_code = EXIT_FORBIDDEN


class MemoryFault(SevKvmError, OSError):
    """A guest or host address that cannot be read; ``space`` is ``gva``, ``gpa`` or ``hva``."""

    def __init__(self, space: str, address: int, *, reason: str = "", help: str | None = None) -> None:
        super().__init__(
            f"cannot access {space} 0x{address:x}" + (f": {reason}" if reason else ""), help=help
        )
        self.space = space
        self.address = address
        self.reason = reason


class NotMemory(MemoryFault):
    """``gpa`` is no memory of the guest: a device's, or nothing's. ``gva``: what the user calls that place, or None."""

    def __init__(self, gpa: int, gva: int | None = None) -> None:
        if gva is None:
            super().__init__("gpa", gpa, reason="not guest RAM")
        else:
            super().__init__("gva", gva, reason=f"at gpa 0x{gpa:x}: not guest RAM")
        self.gpa = gpa


class PageNotPresent(MemoryFault):
    """The guest's page tables do not map this ``gva``; ``level`` is 0 where not even the root could be read."""

    def __init__(self, gva: int, *, level: int, index: int, entry: int, reason: str = "not present") -> None:
        where = f" at level {level}, index {index}, entry 0x{entry:016x}" if level else ""
        super().__init__("gva", gva, reason=reason + where)
        self.level = level
        self.index = index
        self.entry = entry


class WriteFailed(SevKvmError, OSError):
    """A write that had begun went wrong at ``address`` (of ``space``, as in MemoryFault).

    ``written``: how many bytes before that were written and read back. In the page of ``address`` each block of 16
    bytes is the old one or the new one; what was to come after that page is as it was.
    """

    def __init__(
        self, space: str, address: int, reason: str, *, written: int, cause: SevKvmError | None = None
    ) -> None:
        before = f"{written} bytes before that are written" if written else "nothing before that is written"
        super().__init__(
            f"writing failed at {space} 0x{address:x}: {reason} ({before}, nothing after that page)",
            help=cause.help if cause else None,
        )
        if cause is not None:
            self.exit_code = cause.exit_code
        self.space = space
        self.address = address
        self.reason = reason
        self.written = written


class BadGuestData(SevKvmError, ValueError):
    """Bytes of the guest are not what they must be."""


class BadDump(SevKvmError, ValueError):
    """A file is not the dump that it should be; ``path`` names it, ``problem`` says what is wrong."""

    def __init__(self, path: str, problem: str, *, help: str | None = None) -> None:
        super().__init__(f"{path}: {problem}", help=help)
        self.path = path
        self.problem = problem


class ProtocolError(SevKvmError, ValueError):
    """The VMM's monitor answered what we cannot understand."""


class MonitorRefused(SevKvmError):
    """The VMM's monitor understood ``command`` and failed it; ``reason`` is what it said."""

    def __init__(self, command: str, reason: str, *, help: str | None = None) -> None:
        super().__init__(f"the monitor refused {command}: {reason}", help=help)
        self.command = command
        self.reason = reason


class RegistersUnavailable(SevKvmError):
    """The vCPU's registers cannot be known (SEV-ES, no vCPU fd, several VMs in one process)."""
