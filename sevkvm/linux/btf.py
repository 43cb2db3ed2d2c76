"""Where the members of a kernel's structs are, from the type information (BTF) that it carries.

Source: Linux Documentation/bpf/btf.rst, include/uapi/linux/btf.h (v6.1).
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

from sevkvm.errors import BadGuestData

NBYTES_MAX: Final = 64 << 20  # a distribution's kernel has 4 to 8 MB
_HEADER: Final = struct.Struct("<HBBIIIII")
_TYPE: Final = struct.Struct("<III")
_MEMBER: Final = struct.Struct("<III")
_MAGIC: Final = 0xEB9F
_STRUCT, _UNION = 4, 5
# Words of a type by its kind: (itself, each of vlen); 0: no such kind.
_KINDS: Final = {
    **dict.fromkeys((2, 7, 8, 9, 10, 11, 12, 16, 18), (3, 0)),
    **dict.fromkeys((1, 14, 17), (4, 0)),
    **dict.fromkeys((_STRUCT, _UNION, 15, 19), (3, 3)),
    **dict.fromkeys((6, 13), (3, 2)),
    3: (6, 0),
}
_TAILS: Final = [_KINDS.get(kind, (0, 0)) for kind in range(32)]
_TYPES_MAX: Final = 1 << 21
_DEPTH_MAX: Final = 8
_MEMBERS_MAX: Final = 1 << 16  # looked at for one answer


class Btf:
    """Parsed BTF; BadGuestData for bytes that are none."""

    def __init__(self, data: bytes) -> None:
        if len(data) < _HEADER.size:
            raise BadGuestData("the kernel's type information is cut off")
        magic, version, _, header_nbytes, type_at, types_nbytes, name_at, names_nbytes = _HEADER.unpack_from(
            data
        )
        self._types = data[header_nbytes + type_at :][:types_nbytes]
        self._names = data[header_nbytes + name_at :][:names_nbytes]
        whole = types_nbytes % 4 == 0
        if (
            (magic, version) != (_MAGIC, 1)
            or not whole
            or len(self._types) < types_nbytes
            or len(self._names) < names_nbytes
        ):
            raise BadGuestData("the kernel's type information is not BTF")
        self._offsets = _type_offsets(self._types)
        self._budget = 0

    def offset(self, struct_name: str, member: str) -> int:
        """Bytes from the start of a struct to a member, which may be in anonymous structs and unions of it.

        BadGuestData if there is none, or structs of that name that differ about it.
        """
        self._budget = _MEMBERS_MAX
        found = {self._find(at, member.encode(), 0) for at in self._structs(struct_name)} - {None}
        if len(found) != 1:
            raise BadGuestData(f"the kernel's type information does not tell where {struct_name}.{member} is")
        return (found.pop() or 0) // 8

    def _structs(self, name: str) -> Iterator[int]:
        """Where the structs of that name are."""
        at = self._names.find(b"\0" + name.encode() + b"\0") + 1
        wanted = at.to_bytes(4, "little")
        where = self._types.find(wanted) if at else -1
        while where >= 0:
            index = bisect_left(self._offsets, where)
            if self._offsets[index : index + 1] == [where]:
                info = _TYPE.unpack_from(self._types, where)[1]
                if info >> 24 & 31 == _STRUCT:
                    yield where
            where = self._types.find(wanted, where + 1)

    def _find(self, at: int, member: bytes, depth: int) -> int | None:
        """Bits to ``member`` within the struct or union at ``at``."""
        _, info, _ = _TYPE.unpack_from(self._types, at)
        if info >> 24 & 31 not in (_STRUCT, _UNION) or depth > _DEPTH_MAX:
            return None
        self._budget -= info & 0xFFFF
        if self._budget < 0:
            raise BadGuestData("the kernel's type information goes round in circles")
        for number in range(info & 0xFFFF):
            name, type_id, offset = _MEMBER.unpack_from(self._types, at + _TYPE.size + number * _MEMBER.size)
            bits: int = offset & 0xFF_FFFF if info >> 31 else offset
            if name:
                if self._names.startswith(member + b"\0", name):
                    return bits
            elif 0 < type_id < len(self._offsets):  # number 0 is void
                inner = self._find(self._offsets[type_id], member, depth + 1)
                if inner is not None:
                    return bits + inner
        return None


def _type_offsets(types: bytes) -> list[int]:
    """Where each type begins, by its number; the first is number 1. ``types``: whole words."""
    words = memoryview(types).cast("I")
    offsets = [-1]
    at, end = 0, len(words) - 2
    while at < end and len(offsets) <= _TYPES_MAX:
        info = words[at + 1]
        fixed, each = _TAILS[info >> 24 & 31]
        if not fixed:
            raise BadGuestData(f"the kernel's type information has types of kind {info >> 24 & 31}")
        offsets.append(4 * at)
        at += fixed + each * (info & 0xFFFF)
    if at != len(words):
        raise BadGuestData("the kernel's type information does not end well")
    return offsets
