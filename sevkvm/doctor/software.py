"""Programs and Python packages that sevkvm can make use of; none of them is needed to attach and decrypt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from sevkvm.abi import lzo
from sevkvm.doctor.finding import Finding, grouped, passed, skipped

if TYPE_CHECKING:
    from sevkvm.doctor.machine import Machine

_PROGRAMS: Final = (
    ("qemu-system-x86_64", "any other VMM will do"),
    ("virsh", "--libvirt needs it"),
)
_PACKAGES: Final = (
    ("zstandard", "dump --compress zstd", "sevkvm[dump]"),
    ("cramjam", "dump --compress snappy", "sevkvm[dump]"),
    ("yara", "search --yara", "sevkvm[yara]"),
    ("capstone", "machine code as instructions", "sevkvm[disasm]"),
    ("fsspec", "dump -o s3://... and other remote stores", "sevkvm[remote]"),
    ("cryptography", "sevkvm shim, the pretend SEV host", "sevkvm[shim]"),
)


def examine(machine: Machine) -> Finding:
    """What is there, and what each thing is for."""
    return grouped("software", [*_programs(machine), *_packages(machine), _lzo(machine)])


def _programs(machine: Machine) -> Iterator[Finding]:
    for name, use in _PROGRAMS:
        version = machine.program_version(name)
        if version is None:
            yield skipped(name, f"not found; {use}")
        else:
            yield passed(name, version or "found, but does not tell its version")


def _lzo(machine: Machine) -> Finding:
    if machine.has_library(lzo.NAME):
        return passed(lzo.NAME, "for dump --compress lzo")
    return skipped(
        lzo.NAME, "not found: no dump --compress lzo", f"install it (Debian: apt install {lzo.PACKAGE})"
    )


def _packages(machine: Machine) -> Iterator[Finding]:
    for name, use, package in _PACKAGES:
        if machine.has_module(name):
            yield passed(f"Python {name}", f"for {use}")
        else:
            yield skipped(f"Python {name}", f"not installed: no {use}", f"pip install '{package}'")
