"""``info version``, ``status``, ``cpus``, ``sev`` and ``mtree``: the VMM's own answers, or what is known without it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sevkvm import __version__
from sevkvm.abi.sev import guest_state_name
from sevkvm.monitor import memorytree
from sevkvm.monitor.command import Command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sevkvm.guest import Guest
    from sevkvm.monitor.arguments import Arguments
    from sevkvm.monitor.monitor import Monitor

_NO_KEY_SHARING: Final = 1 << 1  # of the policy: QEMU's "key-sharing" says whether the bit is clear


def info_version(monitor: Monitor, given: Arguments) -> Iterator[str]:
    """The VMM's version; ours where it does not tell."""
    yield monitor.outside.ask("info version") or f"sevkvm {__version__}\n"


def info_status(monitor: Monitor, given: Arguments) -> Iterator[str]:
    """Running or paused; where the VMM does not tell, ``running`` unless we hold it ourselves."""
    if monitor.control.holding or monitor.guest.contents is not None:
        yield "VM status: paused\n"
    else:
        yield monitor.outside.ask("info status") or "VM status: running\n"


def info_cpus(monitor: Monitor, given: Arguments) -> Iterator[str]:
    """vCPUs and their threads; the star is at the one that commands are about."""
    tids = monitor.outside.thread_ids()
    indexes = tuple(tids) or tuple(monitor.guest.vcpu_indexes)
    current = monitor.vcpu if monitor.vcpu is not None else monitor.guest.default_vcpu
    if current is None and indexes:
        current = indexes[0]
    for index in indexes:
        thread = tids.get(index, "unknown")
        yield f"{'*' if index == current else ' '} CPU #{index}: thread_id={thread}\n"


def info_sev(monitor: Monitor, given: Arguments) -> Iterator[str]:
    """What QEMU says of its guest; else what KVM says, which is silent on the firmware's version."""
    guest = monitor.guest
    told = monitor.outside.ask("info sev")
    if told is not None and (told.startswith("handle:") or not guest.sev.encrypted):
        yield told
    elif not guest.sev.encrypted:
        yield "SEV is not enabled\n"
    else:
        yield from _sev_facts(guest)


def _sev_facts(guest: Guest) -> Iterator[str]:
    sev = guest.sev
    if sev.handle is not None:
        yield f"handle: {sev.handle}\n"
    if sev.state is not None:
        yield f"state: {guest_state_name(sev.state)}\n"
    if sev.policy is not None:
        yield f"debug: {'on' if sev.policy.debug_allowed else 'off'}\n"
        yield f"key-sharing: {'off' if sev.policy.value & _NO_KEY_SHARING else 'on'}\n"
    if sev.handle is None and sev.policy is None:
        yield f"{sev.kind.value}: nothing more is known\n"


def info_mtree(monitor: Monitor, given: Arguments) -> Iterator[str]:
    """The VMM's memory tree; where it does not tell, the slots that are known."""
    flags = "".join(f" -{flag}" for flag in ("f", "d", "o", "D") if flag in given.flags)
    told = monitor.outside.ask(f"info mtree{flags}")
    if told is not None:
        yield told
    elif "f" in given.flags:
        yield from memorytree.flat_view(monitor.guest.slots)
    else:
        yield from memorytree.tree(monitor.guest.slots)


COMMANDS: Final = (
    Command("cpus", "", "", "show infos for each CPU", info_cpus),
    Command(
        "mtree",
        "f:-f,d:-d,o:-o,D:-D",
        "[-f][-d][-o][-D]",
        "show memory tree (-f: dump flat view for address spaces;-d: dump dispatch tree, valid with -f only);"
        "-o: dump region owners/parents;-D: dump disabled regions",
        info_mtree,
    ),
    Command("sev", "", "", "show SEV information", info_sev),
    Command("status", "", "", "show the current VM status (running|paused)", info_status),
    Command("version", "", "", "show the version of QEMU", info_version),
)
