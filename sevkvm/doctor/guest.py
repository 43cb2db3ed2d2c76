"""One guest: which way in is open, what protects it, where its memory and registers would come from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from sevkvm import errors
from sevkvm.abi import sev
from sevkvm.attach.opening import why_no_registers
from sevkvm.doctor import kernel, mirror, processor, protection, wayin
from sevkvm.doctor.attached import measure
from sevkvm.doctor.credentials import CAP_IPC_LOCK, credentials, memlock_limit
from sevkvm.doctor.finding import Finding, grouped, heading, passed, refused, skipped, warned
from sevkvm.doctor.monitor import ask
from sevkvm.host import discovery, slots
from sevkvm.memory.policy import SevInfo, SevKind
from sevkvm.vcpu import plausible_cbit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sevkvm.attach.options import AttachOptions
    from sevkvm.doctor.machine import Machine
    from sevkvm.doctor.monitor import MonitorTold
    from sevkvm.guest import Guest
    from sevkvm.host.discovery import VmInfo
    from sevkvm.host.slots import RawSlot

_PAGE_NBYTES = 4096
_CBIT_SOURCES = {"guest-cpuid": "from the guest's CPUID 8000_001F", "host-cpuid": "from this host's"}
_GUESS_HELP = "--qmp, --libvirt or --slot is exact"


class Opener(Protocol):
    """Attaches to the guest."""

    def __call__(self) -> AbstractContextManager[Guest]:
        """A guest that need not allow debugging."""
        ...


def examine_guest(machine: Machine, options: AttachOptions, attach: Opener | None = None) -> Finding:
    """The guest that ``options`` mean. Without ``attach`` it is neither stopped nor touched; with it, entered once.

    Raises UsageError for options that contradict each other.
    """
    try:
        vm = discovery.resolve(options.pid, options.vm_fd, machine.proc, machine.same_file, options.libvirt)
        way = wayin.examine(machine, vm.pid)
    except errors.SevKvmError as error:
        return refused("guest", error)
    monitor = ask(machine, vm.pid, options)
    guest = protection.told(machine, vm, monitor.sev)
    measured: list[Finding] = []
    if attach is not None:
        inside, measured = measure(attach)
        guest = protection.known(inside) if inside is not None else guest
    memory, found = _memory(machine, vm, options, monitor)
    info = guest.info or SevInfo(SevKind.SEV)
    way = heading(way, [*way.children, *mirror.examine(machine, vm, found)])
    children = [
        way,
        protection.findings(guest, vm),
        monitor.finding,
        memory,
        _vcpus(vm, info),
        _cbit(machine, options, monitor, info, told=guest.info is not None),
        *_encrypted(machine, vm, info, found, told=guest.info is not None),
        *([grouped("attached", measured)] if measured else []),
    ]
    return heading(passed("guest", f"{vm.name}, pid {vm.pid}, VM descriptor {vm.vm_fd}"), children)


def _memory(
    machine: Machine, vm: VmInfo, options: AttachOptions, monitor: MonitorTold
) -> tuple[Finding, Sequence[RawSlot]]:
    try:
        if options.slots:
            found: Sequence[RawSlot] = slots.from_user(options.slots, vm.pid, machine.proc)
            return passed("memory", f"{_sum(found)}, named by --slot"), found
        if monitor.slots:
            return passed("memory", f"{_sum(monitor.slots)}, from the monitor"), monitor.slots
        guess = slots.from_maps(vm.pid, machine.proc)
    except errors.SevKvmError as error:
        return refused("memory", error), ()
    return warned("memory", f"{_sum(guess.slots)}: {guess.warning}", _GUESS_HELP), guess.slots


def _sum(found: Sequence[RawSlot]) -> str:
    nbytes = sum(slot.nbytes for slot in found)
    return f"{len(found)} slot{'' if len(found) == 1 else 's'}, {_mib(nbytes)}"


def _mib(nbytes: int) -> str:
    return f"{nbytes / (1 << 20):.10g} MiB"


def _vcpus(vm: VmInfo, info: SevInfo) -> Finding:
    count = f"{len(vm.vcpu_fds)} (index {', '.join(map(str, vm.vcpu_fds))})" if vm.vcpu_fds else "none known"
    why = why_no_registers(info, vm)
    if why is None:
        return passed("vCPUs", count, passed("registers", "can be read; the vCPUs stand still meanwhile"))
    help = "name the root of the page tables with --cr3; without it Linux's own tables are searched for"
    return heading(passed("vCPUs", count), [warned("registers", why, help)])


def _cbit(
    machine: Machine, options: AttachOptions, monitor: MonitorTold, info: SevInfo, *, told: bool
) -> Finding:
    """In the order of ``attach.cbit``; the guest's own CPUID is asked only once attached."""
    if not info.encrypted:
        return skipped("C-bit", "the guest is not encrypted")
    if options.cbit_pos is not None:
        return passed("C-bit", f"bit {options.cbit_pos}, said by --cbit-pos")
    if monitor.cbit_pos is not None:
        return passed("C-bit", f"bit {monitor.cbit_pos}, told by the VMM's monitor")
    if info.cbit_pos is not None:
        return passed(
            "C-bit", f"bit {info.cbit_pos}, {_CBIT_SOURCES.get(info.cbit_source or '', 'when attached')}"
        )
    position = plausible_cbit(processor.leaf(machine)[1] & sev.CPUID_EBX_CBIT_MASK)
    first = "the guest's CPUID 8000_001F, asked when attached"
    if position is not None:
        return passed("C-bit", f"{first}; else bit {position} of this host's")
    if not told:
        return skipped("C-bit", f"{first}, if the guest is encrypted")
    return warned(
        "C-bit",
        f"only {first}",
        "or say it with --cbit-pos: 47 on EPYC Naples and Rome, 51 on Milan and Genoa",
    )


def _encrypted(
    machine: Machine, vm: VmInfo, info: SevInfo, found: Sequence[RawSlot], *, told: bool
) -> Iterator[Finding]:
    """What matters only where memory is decrypted."""
    if not (info.encrypted and told):
        return
    yield kernel.fixes(machine.release())
    limit = memlock_limit(machine, vm.pid)
    if limit is None or credentials(machine, vm.pid).has(CAP_IPC_LOCK):
        yield passed("memlock", "no limit for the VMM")
        return
    nbytes = sum(slot.nbytes for slot in found)
    detail = f"the VMM's limit is {_mib(limit)}, the guest's memory {_mib(nbytes)}"
    if limit < nbytes + _PAGE_NBYTES:
        # every decryption pins one page more, on the VMM's account
        yield warned("memlock", detail, "raise the VMM's RLIMIT_MEMLOCK (`prlimit`) above the guest's memory")
    else:
        yield passed("memlock", detail)
