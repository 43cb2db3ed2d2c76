"""Failures on demand: what the secure processor does wrong, and how long it takes.

    dbg_decrypt:after=100:status=HWSEV_RET_PLATFORM   the firmware answers with this status (a name, or 0xNN)
    guest_status:count=1:errno=ENODEV                 the driver fails, and the firmware is not reached
    launch_measure:delay=2.5                          so many seconds longer
    psp-dead:after=N                                  every later command fails with EBUSY
    psp-timeout:after=N                               the next one with ETIMEDOUT, all later ones with EBUSY
    vm-dead:after=N                                   every VM is dead: EIO, with the command struct untouched

A command is the firmware's (DBG_DECRYPT, ACTIVATE, PDH_CERT_EXPORT, ...; ``any`` is each of them); ``after``
spares the first N, ``count`` ends it after so many. Debug commands count once a page. The last three count all.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sevkvm.abi.sev import FwStatus
from sevkvm.errors import UsageError
from sevkvm.shim.firmware_failure import DriverFailure, FirmwareFailure

_NAMES: Final = """
INIT SHUTDOWN PLATFORM_RESET PLATFORM_STATUS PEK_GEN PEK_CSR PEK_CERT_IMPORT PDH_GEN PDH_CERT_EXPORT GET_ID
SNP_PLATFORM_STATUS ACTIVATE DEACTIVATE DECOMMISSION GUEST_STATUS DBG_DECRYPT DBG_ENCRYPT ATTESTATION
LAUNCH_START LAUNCH_UPDATE_DATA LAUNCH_UPDATE_VMSA LAUNCH_MEASURE LAUNCH_SECRET LAUNCH_FINISH
SEND_START SEND_UPDATE_DATA SEND_FINISH SEND_CANCEL RECEIVE_START RECEIVE_UPDATE_DATA RECEIVE_FINISH
SNP_GCTX_CREATE SNP_LAUNCH_START SNP_ACTIVATE SNP_LAUNCH_UPDATE SNP_LAUNCH_FINISH SNP_DECOMMISSION
"""
COMMANDS: Final = frozenset(_NAMES.split())
ANY: Final = "ANY"
_PSP_DEAD, _PSP_TIMEOUT, _VM_DEAD = "PSP_DEAD", "PSP_TIMEOUT", "VM_DEAD"
_PLATFORM: Final = frozenset((_PSP_DEAD, _PSP_TIMEOUT, _VM_DEAD))
_MOST_SECONDS: Final = 3600.0
_HELP: Final = (
    "COMMAND[:after=N][:count=M] with one of :status=NAME, :errno=NAME, :delay=SECONDS; "
    "or psp-dead, psp-timeout, vm-dead [:after=N]"
)


@dataclass
class Fault:
    """One of the forms above; exactly one of ``status``, ``os_errno`` and ``delay`` for a command."""

    command: str
    after: int = 0
    count: int | None = None
    status: int | None = None
    os_errno: int | None = None
    delay: float | None = None
    seen: int = 0

    def strikes(self, command: str, count: int) -> bool:
        """Count the command, or ``count`` of them; is one of them hit?"""
        if self.command not in (command, ANY):
            return False
        first, self.seen = self.seen, self.seen + count
        return self.seen > self.after and (self.count is None or first < self.after + self.count)


def parse_fault(text: str) -> Fault:
    """A fault as the forms above; UsageError says what is wrong with it."""
    head, *fields = text.split(":")
    fault = Fault(head.upper().replace("-", "_"))
    if fault.command not in COMMANDS | _PLATFORM | {ANY}:
        raise _malformed(text, f"no firmware command is called '{head}'")
    for item in fields:
        key, equals, value = item.partition("=")
        if not equals or key not in ("after", "count", "status", "errno", "delay"):
            raise _malformed(text, f"'{item}' is not after=, count=, status=, errno= or delay=")
        try:
            _set(fault, key, value)
        except ValueError as error:
            raise _malformed(text, str(error)) from None
    effects = sum(each is not None for each in (fault.status, fault.os_errno, fault.delay))
    if fault.command in _PLATFORM:
        if effects or fault.count is not None:
            raise _malformed(text, f"{head} takes after= only")
    elif effects != 1:
        raise _malformed(text, "one of status=, errno= and delay= says what happens")
    return fault


def _malformed(text: str, why: str) -> UsageError:
    return UsageError(f"the fault '{text}' makes no sense: {why}", help=_HELP)


def _set(fault: Fault, key: str, value: str) -> None:
    if key == "after":
        fault.after = _number(value, least=0)
    elif key == "count":
        fault.count = _number(value, least=1)
    elif key == "status":
        fault.status = _status(value)
    elif key == "errno":
        fault.os_errno = _errno(value)
    else:
        fault.delay = _seconds(value)


def _number(text: str, *, least: int) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        raise ValueError(f"'{text}' is not a number from {least} on")
    return int(text)


def _status(text: str) -> int:
    if text.upper() in FwStatus.__members__:
        value = int(FwStatus[text.upper()])
    else:
        try:
            value = int(text, 16) if text[:2].lower() == "0x" else int(text)
        except ValueError:
            raise ValueError(f"'{text}' is no status of the firmware; INVALID_GUEST or 0x10, say") from None
    if not 0 < value < 0x10000:
        raise ValueError(f"a status of {text} is no failure")
    return value


def _errno(text: str) -> int:
    for number, name in errno.errorcode.items():
        if name == text.upper():
            return number
    raise ValueError(f"'{text}' is not the name of an errno such as ENODEV")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise ValueError(f"'{text}' is not a number of seconds") from None
    if not 0 < seconds <= _MOST_SECONDS:
        raise ValueError(f"a delay is more than 0 and at most {_MOST_SECONDS:.0f} seconds")
    return seconds


class Faults:
    """What goes wrong on one host, and how long commands take; ``latency`` is seconds a firmware command."""

    def __init__(self, faults: Iterable[Fault] = (), latency: float = 0.0) -> None:
        self._faults = list(faults)
        self._latency = latency
        self._seen = 0
        self._psp_dead = False
        self._busy = 0.0

    @property
    def watching(self) -> bool:
        """Must commands come one by one, because one of them may be hit?"""
        return bool(self._faults)

    @property
    def vm_dead(self) -> bool:
        """Are all VMs dead by now?"""
        return any(each.command == _VM_DEAD and self._seen >= each.after for each in self._faults)

    def take_seconds(self) -> float:
        """How long the commands since the last call have taken."""
        busy, self._busy = self._busy, 0.0
        return busy

    def command(self, command: str, count: int = 1) -> None:
        """A command is sent, or ``count`` of them: FirmwareFailure or DriverFailure if it is to fail."""
        self._seen += count
        if self._psp_dead or self._ended(_PSP_DEAD):
            raise DriverFailure(errno.EBUSY)
        if self._ended(_PSP_TIMEOUT):
            self._psp_dead = True
            raise DriverFailure(errno.ETIMEDOUT, error=0)
        self._busy += self._latency * count
        for fault in [each for each in self._faults if each.strikes(command, count)]:
            if fault.delay is not None:
                self._busy += fault.delay
            elif fault.status is not None:
                raise FirmwareFailure(fault.status)
            elif fault.os_errno is not None:
                raise DriverFailure(fault.os_errno)

    def _ended(self, kind: str) -> bool:
        return any(each.command == kind and self._seen > each.after for each in self._faults)
