"""``sevkvm status``: what protects a guest, and where its memory lies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sevkvm.cli.command import command as sevkvm_command
from sevkvm.cli.options import GuestSession, guest_options, json_option
from sevkvm.cli.render import hexadecimal, print_facts, print_json, print_table, size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sevkvm.guest import Guest
    from sevkvm.memory.policy import SevInfo

_CBIT_SOURCES = {
    "option": "said by --cbit-pos",
    "qmp": "told by the VMM's monitor",
    "guest-cpuid": "from the guest's CPUID 8000_001F",
    "host-cpuid": "from this host's CPUID 8000_001F",
}
_WAYS = {
    "deputy": "deputy: a thread in the VMM, gone again",
    "mirror": "mirror: through a VM of our own; the VMM was neither traced nor stopped",
    "local": "local: from within the VMM",
}
_KINDS = {
    "none": "not encrypted",
    "sev": "SEV: memory is encrypted",
    "sev-es": "SEV-ES: memory and registers are encrypted",
    "sev-snp": "SEV-SNP: memory and registers are encrypted, and guarded against the host",
}


@sevkvm_command(
    "status",
    examples="""
    sevkvm status --pid 4242
    # a VMM whose monitor libvirt holds
    sevkvm status --pid 4242 --libvirt guest1
    # may its memory be read?
    sevkvm status --pid 4242 --json | jq .debug_allowed
    # what a dump holds
    sevkvm status --file guest.core
    """,
)
@guest_options
@json_option
def command(session: GuestSession, as_json: bool) -> None:
    """Show what protects a guest: type, policy in words, state, C-bit, memory slots, vCPUs.

    Works for a guest whose policy forbids debugging too: nothing is decrypted. Of a --file it shows the format, which
    memory it holds and which it lacks, vCPUs, C-bit.
    """
    from sevkvm.attach import Needs

    with session.open(need_debug=False, needs=Needs.STATUS) as guest:
        if guest.contents is not None:
            from sevkvm.cli.status_file import show

            show(guest, guest.contents, as_json=as_json)
            return
        # all that is asked for was learned by attaching
    if as_json:
        print_json(status_json(guest))
        return
    print_facts(_facts(guest))
    if len(guest.slots):
        rows = [
            (
                f"0x{slot.gpa:x}",
                f"0x{slot.end:x}",
                size(slot.nbytes),
                f"0x{slot.hva:x}",
                _slot_note(slot.name, slot.readonly),
            )
            for slot in guest.slots
        ]
        print_table(("GPA", "END", "SIZE", "HVA", "NAME"), rows, indent="  ")


def _slot_note(name: str, readonly: bool) -> str:
    return f"{name} (read-only)" if readonly else name


def _way(guest: Guest) -> str:
    words = _WAYS.get(guest.way or "", guest.way or "")
    if guest.way == "mirror" and not guest.sev.encrypted:
        words = "none: the guest is not encrypted, and its memory is read as it is"
    elif guest.way_remark:
        words += f"; not a mirror: {guest.way_remark}"
    return words


def _state(info: SevInfo) -> str | None:
    from sevkvm.abi.sev import guest_state_name

    return None if info.state is None else guest_state_name(info.state)


def _debug_allowed(info: SevInfo) -> bool | None:
    """None for a guest that is not encrypted: nobody can forbid it."""
    if info.policy is not None:
        return info.policy.debug_allowed
    return False if info.encrypted else None


def _facts(guest: Guest) -> Iterator[tuple[str, str]]:
    info = guest.sev
    yield "guest", f"{guest.name or '(no name)'}, pid {guest.pid}, VM descriptor {guest.vm_fd}"
    yield "protection", _KINDS[info.kind.value]
    if info.policy is not None:
        major, minor = info.policy.api_version
        names = ", ".join(info.policy.flags) or "no restriction"
        yield "policy", f"0x{info.policy.value:x} ({names}), firmware API {major}.{minor} or later"
        for sentence in info.policy.sentences:
            yield "", sentence
    if info.encrypted:
        yield "debugging", "allowed" if _debug_allowed(info) else "forbidden: its memory cannot be read"
    state = _state(info)
    if state is not None:
        yield "state", f"{state}, firmware handle {info.handle}"
    if info.cbit_pos is not None:
        yield "C-bit", f"bit {info.cbit_pos}, {_CBIT_SOURCES.get(info.cbit_source or '', 'source unknown')}"
    elif info.encrypted:
        yield "C-bit", "unknown; say it with --cbit-pos"
    if guest.way is not None:
        yield "way in", _way(guest)
    yield "vCPUs", _vcpus(guest.vcpu_indexes)
    yield (
        "memory",
        f"{size(guest.slots.nbytes)} in {len(guest.slots)} slots" if len(guest.slots) else "unknown",
    )


def status_json(guest: Guest) -> dict[str, Any]:
    """The object of ``--json``, of a VM."""
    info = guest.sev
    policy = info.policy
    return {
        "pid": guest.pid,
        "vm_fd": guest.vm_fd,
        "name": guest.name,
        "vcpus": len(guest.vcpu_indexes),
        "vcpu_indexes": list(guest.vcpu_indexes),
        "sev": info.kind.value,
        "policy": hexadecimal(policy.value) if policy else None,
        "policy_flags": list(policy.flags) if policy else None,
        "policy_api": list(policy.api_version) if policy else None,
        "debug_allowed": _debug_allowed(info),
        "state": _state(info),
        "handle": info.handle,
        "cbit_pos": info.cbit_pos,
        "cbit_source": info.cbit_source,
        "via": guest.way,
        "via_remark": guest.way_remark,
        "memory_size": guest.slots.nbytes if len(guest.slots) else None,
        "slots": [
            {
                "gpa": hexadecimal(slot.gpa),
                "size": slot.nbytes,
                "hva": hexadecimal(slot.hva),
                "name": slot.name,
                "readonly": slot.readonly,
            }
            for slot in guest.slots
        ],
    }


def _vcpus(indexes: Sequence[int]) -> str:
    if not indexes:
        return "none known"
    return f"{len(indexes)} (index {', '.join(map(str, indexes))})"
