"""The processor: can it encrypt, how many guests, where is the C-bit?

Source: AMD64 APM volume 3, appendix E (CPUID Fn0000_0001, Fn8000_001F); Linux arch/x86/include/asm/msr-index.h (v6.18)
for SYSCFG; model numbers from AMD's revision guides.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from sevkvm.abi import sev
from sevkvm.doctor.finding import Finding, failed, heading, passed, skipped, warned
from sevkvm.vcpu import plausible_cbit

if TYPE_CHECKING:
    from sevkvm.doctor.machine import Machine

_HYPERVISOR: Final = 1 << 31  # Fn0000_0001 ECX: the processor itself is virtual
_SME: Final = 1 << 0  # Fn8000_001F EAX
_SYSCFG: Final = 0xC0010010
_SYSCFG_MEM_ENCRYPT: Final = 1 << 23
_LAST_EXTENDED: Final = 0x80000000
_EPYC: Final = {
    (0x17, 0x00): "EPYC Naples (Zen 1)",
    (0x17, 0x30): "EPYC Rome (Zen 2)",
    (0x19, 0x00): "EPYC Milan (Zen 3)",
    (0x19, 0x10): "EPYC Genoa (Zen 4)",
    (0x19, 0xA0): "EPYC Bergamo or Siena (Zen 4c)",
    (0x1A, 0x00): "EPYC Turin (Zen 5)",
    (0x1A, 0x10): "EPYC Turin Dense (Zen 5c)",
}
SETUP_HELP: Final = "in the firmware setup (BIOS) enable SVM, SMEE (secure memory encryption) and SEV"
_BARE_HELP: Final = (
    "SEV guests run on the bare host: sevkvm works there, and here for guests without encryption"
)


def leaf(machine: Machine) -> tuple[int, int, int, int]:
    """CPUID Fn8000_001F; zeros where the processor has no such leaf."""
    last = machine.cpuid(_LAST_EXTENDED)[0]
    return machine.cpuid(sev.CPUID_LEAF) if last >= sev.CPUID_LEAF else (0, 0, 0, 0)


def vendor(machine: Machine) -> str:
    """``AuthenticAMD``, for example."""
    _, ebx, ecx, edx = machine.cpuid(0)
    return struct.pack("<III", ebx, edx, ecx).decode(errors="replace").rstrip("\0")


def has_sev(machine: Machine) -> bool:
    """Does CPUID say so?"""
    return bool(leaf(machine)[0] & sev.CPUID_EAX_SEV)


def examine(machine: Machine, *, platform_answers: bool) -> Finding:
    """The processor. ``platform_answers``: a secure processor is there, whatever CPUID says (a pretend host)."""
    who = vendor(machine)
    eax, _, ecx, _ = machine.cpuid(1)
    family, model = _family_model(eax)
    name = _EPYC.get((family, model & 0xF0), "") if who == "AuthenticAMD" else ""
    what = f"{name or who}, family 0x{family:x} model 0x{model:x}"
    virtual = bool(ecx & _HYPERVISOR)
    if virtual:
        what += ", itself virtual"
    if platform_answers and not has_sev(machine):
        told = "CPUID does not report it, yet /dev/sev answers: a pretend host?"
        return warned("processor", what, None, warned("SEV", told))
    if who not in ("AuthenticAMD", "HygonGenuine"):
        return failed("processor", f"{what}: only AMD's have SEV", _BARE_HELP, forbidden=True)
    if not has_sev(machine):
        return failed("processor", what, None, _no_sev(machine, name, virtual=virtual))
    known = passed("processor", what)
    return heading(known if name else warned("processor", f"{what}: not known to sevkvm"), _features(machine))


def _no_sev(machine: Machine, name: str, *, virtual: bool) -> Finding:
    if virtual:
        told = "CPUID 8000_001F does not report it: this host is a virtual machine"
        return failed("SEV", told, _BARE_HELP, forbidden=True)
    if name:
        return failed("SEV", "CPUID 8000_001F does not report it", SETUP_HELP)
    told = "this model does not have it" if leaf(machine)[0] else "the processor has no CPUID 8000_001F"
    return failed("SEV", told, _BARE_HELP, forbidden=True)


def _features(machine: Machine) -> Iterator[Finding]:
    eax, ebx, ecx, edx = leaf(machine)
    yield _enabled(machine)
    children = []
    if not eax & sev.CPUID_EAX_SEV_ES:
        children.append(skipped("SEV-ES", "not in this processor"))
    elif edx <= 1:
        children.append(
            warned(
                "SEV-ES",
                "no ASIDs are set aside for it",
                "raise the SEV-ES ASID limit, if the firmware setup has one",
            )
        )
    else:
        children.append(passed("SEV-ES", f"ASIDs 1 to {edx - 1}"))
    snp = "present; nobody can look into SNP guests from the host" if eax & sev.CPUID_EAX_SEV_SNP else ""
    children.append(passed("SEV-SNP", snp) if snp else skipped("SEV-SNP", "not in this processor"))
    position = ebx & sev.CPUID_EBX_CBIT_MASK
    if plausible_cbit(position) is None:
        children.append(warned("C-bit", f"bit {position} makes no sense", "name it with --cbit-pos"))
    else:
        children.append(passed("C-bit", f"bit {position}"))
    children.append(passed("address bits", f"{ebx >> 6 & 0x3F} fewer for the host while encryption is on"))
    most = f"{ecx} encrypted guests at most"
    if edx <= ecx:
        children.append(passed("ASIDs", f"{most}; SEV without ES from ASID {edx} on"))
    else:
        help = "lower the SEV-ES ASID limit in the firmware setup"
        children.append(warned("ASIDs", f"{most}, none left for SEV without ES", help))
    yield heading(passed("SEV"), children)


def _enabled(machine: Machine) -> Finding:
    """SYSCFG if the msr driver is there, else what the kernel made of it: it hides `sev` where SMEE is off."""
    told = _sme_told(machine)
    syscfg = _read_msr(machine, _SYSCFG)
    if syscfg is not None:
        if syscfg & _SYSCFG_MEM_ENCRYPT:
            return passed("memory encryption", f"enabled (SYSCFG bit 23){told}")
        return failed("memory encryption", f"not enabled (SYSCFG bit 23){told}", SETUP_HELP)
    flags = re.search(r"^flags\s*:(.*)$", machine.text(machine.proc / "cpuinfo") or "", re.MULTILINE)
    if flags is None:
        return skipped("memory encryption", "neither SYSCFG nor /proc/cpuinfo can be read")
    if "sev" in flags[1].split():
        return passed("memory encryption", f"the kernel sees `sev` in /proc/cpuinfo{told}")
    return failed("memory encryption", f"the kernel hides `sev` in /proc/cpuinfo{told}", SETUP_HELP)


def _sme_told(machine: Machine) -> str:
    words = (machine.text(machine.proc / "cmdline") or "").split()
    said = [word for word in words if word.startswith("mem_encrypt=")]
    has_sme = leaf(machine)[0] & _SME
    return f"; the host's own memory: {said[-1]}" if said and has_sme else ""


def _read_msr(machine: Machine, number: int) -> int | None:
    try:
        fd = os.open(machine.dev / "cpu" / "0" / "msr", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        told = os.pread(fd, 8, number)
    except OSError:
        return None
    finally:
        os.close(fd)
    return int.from_bytes(told, "little") if len(told) == 8 else None


def _family_model(eax: int) -> tuple[int, int]:
    family, model = eax >> 8 & 0xF, eax >> 4 & 0xF
    if family == 0xF:
        family += eax >> 20 & 0xFF
    return family, model | (eax >> 16 & 0xF) << 4 if family >= 6 else model
