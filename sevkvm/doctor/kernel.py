"""The kernel: is it new enough, are its modules there, does it have the SEV debug fixes of 2026?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from sevkvm.doctor.finding import Finding, failed, grouped, heading, passed, skipped, warned

if TYPE_CHECKING:
    from sevkvm.doctor.machine import Machine

_SEV_SINCE: Final = (4, 16)  # KVM_SEV_*: arch/x86/kvm/svm.c of v4.16
_ES_SINCE: Final = (5, 11)
_FIXED_SINCE: Final = (7, 2)
# commit 78ee2d50185a, as far as the stable releases that took it are known
_FIXED_POINTS: Final = {(5, 10): 260, (5, 15): 211, (6, 1): 177}
_ON: Final = ("Y", "1")
_PARAMETER_HELP: Final = (
    "boot with kvm_amd.{0}=1, or `options kvm_amd {0}=1` in /etc/modprobe.d;"
    " `dmesg | grep -i -e sev -e kvm_amd` tells why the kernel turned it off"
)


def examine(machine: Machine, *, wanted: bool, has_sev_device: bool) -> Finding:
    """``wanted``: the host can have encrypted guests, so that kvm_amd and ccp matter."""
    children = [_version(machine.release()), _kvm(machine)]
    if wanted:
        children += [_kvm_amd(machine), _ccp(machine, has_sev_device=has_sev_device)]
    else:
        children += [skipped(name, "of no use without SEV in the processor") for name in ("kvm_amd", "ccp")]
    children.append(fixes(machine.release()) if wanted else skipped(FIXES, "only kvm_amd needs them"))
    return grouped("kernel", children)


FIXES: Final = "SEV debug fixes"


def fixes(release: str) -> Finding:
    """CVE-2026-63794 and the rewrite that followed; a distribution may have the fix under an older number."""
    safe = "sevkvm does not depend on it: it asks for whole 16-byte blocks at equal page offsets, within a page, only"
    number = _number(release)
    if number is None:
        return skipped(FIXES, f"{release!r} is no version number; {safe}")
    series, point = number[:2], number[2]
    if series >= _FIXED_SINCE:
        return passed(FIXES, "in this kernel (since 7.2)")
    fixed_at = _FIXED_POINTS.get(series)
    if fixed_at is not None and point >= fixed_at:
        return passed(FIXES, f"in this kernel (since {series[0]}.{series[1]}.{fixed_at})")
    newer = (
        f"{series[0]}.{series[1]}.{fixed_at}"
        if fixed_at is not None
        else "7.2, or a stable kernel since July 2026"
    )
    return warned(
        FIXES,
        f"CVE-2026-63794 may be open: other programs' debug requests can make KVM write past a page; {safe}",
        f"run {newer}, or ask the distribution for the fix of CVE-2026-63794",
    )


def _version(release: str) -> Finding:
    number = _number(release)
    if number is None:
        return skipped("version", f"{release!r} is no version number")
    if number[:2] < _SEV_SINCE:
        return failed("version", f"{release}: KVM has SEV since 4.16", "run a newer kernel")
    if number[:2] < _ES_SINCE:
        return warned("version", f"{release}: no SEV-ES guests before 5.11")
    return passed("version", release)


def _kvm(machine: Machine) -> Finding:
    modules = machine.sys / "module"
    if not (modules / "kvm").exists():
        return failed(
            "kvm", "not loaded", "`modprobe kvm_amd` (`kvm_intel` on Intel); SVM or VT-x must be enabled"
        )
    try:
        vendors = sorted(path.name for path in modules.glob("kvm_*"))
    except OSError:
        vendors = []
    return passed("kvm", f"loaded, with {', '.join(vendors)}" if vendors else "loaded")


def _kvm_amd(machine: Machine) -> Finding:
    module = machine.sys / "module" / "kvm_amd"
    if not module.exists():
        help = "`modprobe kvm_amd`; SVM must be enabled in the firmware setup (BIOS)"
        return failed("kvm_amd", "not loaded", help)
    return heading(passed("kvm_amd", "loaded"), _parameters(machine))


def _parameters(machine: Machine) -> Iterator[Finding]:
    values = {
        name: machine.text(machine.sys / "module" / "kvm_amd" / "parameters" / name)
        for name in ("sev", "sev_es", "sev_snp")
    }
    sev, es, snp = values.values()
    if sev is None:
        yield failed("sev", "this kvm_amd has no such parameter", "run a kernel with CONFIG_KVM_AMD_SEV")
    elif sev not in _ON:
        yield failed("sev", f"off ({sev})", _PARAMETER_HELP.format("sev"))
    else:
        yield passed("sev", f"on ({sev})")
    if es is None:
        yield skipped("sev_es", "this kvm_amd has no such parameter")
    elif es not in _ON:
        yield warned("sev_es", f"off ({es}): no SEV-ES guests", _PARAMETER_HELP.format("sev_es"))
    else:
        yield passed("sev_es", f"on ({es})")
    if snp is None or snp not in _ON:
        told = "this kvm_amd has no such parameter" if snp is None else f"off ({snp})"
        yield skipped("sev_snp", f"{told}; SNP guests cannot be debugged anyway")
    else:
        yield passed("sev_snp", f"on ({snp}); SNP guests cannot be debugged")


def _ccp(machine: Machine, *, has_sev_device: bool) -> Finding:
    if (machine.sys / "module" / "ccp").exists():
        return passed("ccp", "loaded")
    if has_sev_device:
        return passed("ccp", "built in")
    return failed("ccp", "not loaded: the driver of the secure processor", "`modprobe ccp`")


def at_least(release: str, version: tuple[int, int]) -> bool | None:
    """Is this kernel that new? None where its release tells no number."""
    number = _number(release)
    return None if number is None else number[:2] >= version


def _number(release: str) -> tuple[int, int, int] | None:
    match = re.match(r"(\d{1,3})\.(\d{1,5})(?:\.(\d{1,5}))?", release)
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None
