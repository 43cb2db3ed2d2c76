"""The SEV object on QEMU's command line: kind, policy, C-bit. Pure.

Source: qemu(1) and qapi/qom.json: sev-guest (SEV, SEV-ES), sev-snp-guest; as ``key=value`` or, libvirt's way, JSON.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from sevkvm import errors
from sevkvm.host.qemuargs import keyval

# what QEMU takes where the object has no policy= (target/i386/sev.c)
_DEFAULT_POLICIES = {"sev-guest": 0x1, "sev-snp-guest": 0x30000}
_HELP = "for example --qemu-args 'sev-guest,id=sev0,cbitpos=51,reduced-phys-bits=1,policy=0x5'"


class SevObject(NamedTuple):
    """One object. ``stated``: the policy is written there; else it is QEMU's default."""

    kind: str
    id: str | None
    policy: int
    stated: bool

    @property
    def snp(self) -> bool:
        """Its policy has SNP's layout."""
        return self.kind == "sev-snp-guest"


class SevArgs(NamedTuple):
    """What a command line says of SEV. ``only_migratable``: QEMU is to refuse what cannot be migrated."""

    objects: tuple[SevObject, ...]
    used: SevObject | None
    only_migratable: bool


def from_text(text: str) -> SevArgs:
    """The value of ``-object``, or a whole command line as a shell takes it; UsageError if it has no SEV object."""
    text = text.strip()
    if text.startswith("{") or text.split(",")[0].strip() in _DEFAULT_POLICIES:
        argv = ["-object", text]
    else:
        try:
            argv = shlex.split(text)
        except ValueError as error:
            raise errors.UsageError(f"--qemu-args: {error}", help=_HELP) from None
    found = from_argv(argv)
    if not found.objects:
        raise errors.UsageError("--qemu-args has no sev-guest or sev-snp-guest object", help=_HELP)
    return found


def from_argv(argv: Sequence[str]) -> SevArgs:
    """The SEV objects of a command line, and the one that the machine uses (if it says none, the only one).

    UsageError for a policy that is no number.
    """
    objects: list[SevObject] = []
    used_id, migratable = None, False
    for option, value in pairwise([*argv, ""]):
        option = option.removeprefix("-") if option.startswith("--") else option
        if option == "-object":
            objects += _objects(value)
        elif option in ("-machine", "-M"):
            pairs = keyval(value, "type")
            used_id = pairs.get("confidential-guest-support") or pairs.get("memory-encryption") or used_id
        migratable |= option == "-only-migratable"
    used = [each for each in objects if each.id == used_id] if used_id else objects
    return SevArgs(tuple(objects), used[0] if len(used) == 1 else None, migratable)


def _objects(text: str) -> Iterator[SevObject]:
    pairs: dict[str, Any]
    if text.lstrip().startswith("{"):
        try:
            pairs = json.loads(text)
        except (ValueError, RecursionError):
            return
        pairs = {key: str(value) for key, value in pairs.items()}
    else:
        pairs = dict(keyval(text, "qom-type"))
    kind = pairs.get("qom-type", "")
    if kind in _DEFAULT_POLICIES:
        stated = "policy" in pairs
        policy = _number(pairs["policy"]) if stated else _DEFAULT_POLICIES[kind]
        yield SevObject(kind, pairs.get("id"), policy, stated)


def _number(text: str) -> int:
    """As QEMU reads it: 0x hex, octal after a 0, decimal."""
    match = re.fullmatch(r"0[xX]([0-9a-fA-F]{1,16})|(0[0-7]*)|([1-9]\d{,19})", text)
    value = -1
    if match:
        value = int(match[1] or match[2] or match[3], 16 if match[1] else 8 if match[2] else 10)
    if not 0 <= value < 1 << 64:
        raise errors.UsageError(f"the policy '{text}' on QEMU's command line is no number", help=_HELP)
    return value
