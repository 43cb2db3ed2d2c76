"""Every struct of ``sevkvm.abi`` as the kernel lays it out: sizes and offsets written out as literals.

Offsets are found by packing one field at a time, so nothing here repeats the format strings it checks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from sevkvm.abi import kvm, sev

Pack = Callable[[str], bytes]


@dataclasses.dataclass(frozen=True)
class Layout:
    """``pack(field)`` gives the struct with 1 in that field and 0 elsewhere; ``offsets`` by the kernel's names.

    ``ours`` maps a kernel field name to our own where they differ; ``newer_than_headers``: distributions still ship
    kernel headers without it.
    """

    kernel_name: str
    nbytes: int
    pack: Pack
    offsets: Mapping[str, int]
    ours: Mapping[str, str] = dataclasses.field(default_factory=dict)
    struct: type | None = None
    newer_than_headers: bool = False

    def measured_offset(self, field: str) -> int:
        """Where the field's lowest byte lands in the packed bytes."""
        data = self.pack(self.ours.get(field, field))
        assert sum(data) == 1, f"{self.kernel_name}.{field} does not pack to a single 1"
        return data.index(1)


_ONES: dict[str, Any] = {
    "Segment": kvm.Segment(base=1),
    "Dtable": kvm.Dtable(base=1),
    "int": 1,
    "bytes": b"\1".ljust(32, b"\0"),
}


def _of(cls: Any, nbytes: int) -> Pack:
    def pack(field: str) -> bytes:
        value = _ONES[str(cls.__annotations__[field].__forward_arg__)]
        changed = cls.unpack(bytes(nbytes))._replace(**{field: value})
        return bytes(changed.pack())

    return pack


def _call(function: Callable[..., bytes], *parameters: str) -> Pack:
    return lambda field: function(*(int(name == field) for name in parameters))


def _cpuid_entry(field: str) -> bytes:
    entry = kvm.CpuidEntry(*(int(name == field) for name in kvm.CpuidEntry._fields))
    return kvm.pack_cpuid2([entry])[8:]


# struct sev_es_save_area is the kernel's own: no header of the host has it, and nothing packs it.
VMSA_NBYTES = 1648
VMSA_SEGMENTS = {
    "es": 0x00,
    "cs": 0x10,
    "ss": 0x20,
    "ds": 0x30,
    "fs": 0x40,
    "gs": 0x50,
    "gdtr": 0x60,
    "ldtr": 0x70,
    "idtr": 0x80,
    "tr": 0x90,
}
VMSA_FIELDS = {
    "vmpl": (0xCA, 1),
    "cpl": (0xCB, 1),
    "efer": (0xD0, 8),
    "cr4": (0x148, 8),
    "cr3": (0x150, 8),
    "cr0": (0x158, 8),
    "dr7": (0x160, 8),
    "dr6": (0x168, 8),
    "rflags": (0x170, 8),
    "rip": (0x178, 8),
    "rsp": (0x1D8, 8),
    "rax": (0x1F8, 8),
    "star": (0x200, 8),
    "lstar": (0x208, 8),
    "cstar": (0x210, 8),
    "sfmask": (0x218, 8),
    "kernel_gs_base": (0x220, 8),
    "cr2": (0x240, 8),
    "rcx": (0x308, 8),
    "rdx": (0x310, 8),
    "rbx": (0x318, 8),
    "rbp": (0x328, 8),
    "rsi": (0x330, 8),
    "rdi": (0x338, 8),
    "r8": (0x340, 8),
    "r9": (0x348, 8),
    "r10": (0x350, 8),
    "r11": (0x358, 8),
    "r12": (0x360, 8),
    "r13": (0x368, 8),
    "r14": (0x370, 8),
    "r15": (0x378, 8),
    "sev_features": (0x3B0, 8),
}

_GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp")
_NUMBERED = tuple(f"r{n}" for n in range(8, 16))
_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")

LAYOUTS = (
    Layout(
        "kvm_regs",
        144,
        _of(kvm.Regs, 144),
        {name: 8 * n for n, name in enumerate((*_GENERAL, *_NUMBERED, "rip", "rflags"))},
        struct=kvm.Regs,
    ),
    Layout(
        "kvm_segment",
        24,
        _of(kvm.Segment, 24),
        {
            "base": 0,
            "limit": 8,
            "selector": 12,
            "type": 14,
            "present": 15,
            "dpl": 16,
            "db": 17,
            "s": 18,
            "l": 19,
            "g": 20,
            "avl": 21,
            "unusable": 22,
        },
        struct=kvm.Segment,
    ),
    Layout("kvm_dtable", 16, _of(kvm.Dtable, 16), {"base": 0, "limit": 8}, struct=kvm.Dtable),
    Layout(
        "kvm_sregs",
        312,
        _of(kvm.Sregs, 312),
        {name: 24 * n for n, name in enumerate(_SEGMENTS)}
        | {"gdt": 192, "idt": 208, "cr0": 224, "cr2": 232, "cr3": 240, "cr4": 248, "cr8": 256}
        | {"efer": 264, "apic_base": 272, "interrupt_bitmap": 280},
        struct=kvm.Sregs,
    ),
    Layout(
        "kvm_cpuid_entry2",
        40,
        _cpuid_entry,
        {"function": 0, "index": 4, "flags": 8, "eax": 12, "ebx": 16, "ecx": 20, "edx": 24},
        struct=kvm.CpuidEntry,
    ),
    Layout(
        "kvm_msr_entry",
        16,
        lambda field: _call(kvm.pack_msr, "index", "data")(field)[8:],
        {"index": 0, "data": 8},
    ),
    Layout(
        "kvm_userspace_memory_region",
        32,
        _call(kvm.pack_memory_region, "slot", "flags", "gpa", "nbytes", "hva"),
        {"slot": 0, "flags": 4, "guest_phys_addr": 8, "memory_size": 16, "userspace_addr": 24},
        ours={"guest_phys_addr": "gpa", "memory_size": "nbytes", "userspace_addr": "hva"},
    ),
    Layout(
        "kvm_enc_region",
        16,
        _call(kvm.pack_enc_region, "hva", "nbytes"),
        {"addr": 0, "size": 8},
        ours={"addr": "hva", "size": "nbytes"},
    ),
    Layout(
        "kvm_sev_cmd",
        24,
        _of(sev.KvmSevCmd, 24),
        {"id": 0, "data": 8, "error": 16, "sev_fd": 20},
        struct=sev.KvmSevCmd,
    ),
    Layout(
        "kvm_sev_dbg",
        24,
        _call(sev.pack_dbg, "src_uaddr", "dst_uaddr", "nbytes"),
        {"src_uaddr": 0, "dst_uaddr": 8, "len": 16},
        ours={"len": "nbytes"},
    ),
    Layout(
        "kvm_sev_guest_status",
        12,
        _of(sev.GuestStatus, 12),
        {"handle": 0, "policy": 4, "state": 8},
        struct=sev.GuestStatus,
    ),
    Layout(
        "kvm_sev_init",
        48,
        _of(sev.SevInit, 48),
        {"vmsa_features": 0, "flags": 8, "ghcb_version": 12},
        struct=sev.SevInit,
        newer_than_headers=True,
    ),
    Layout(
        "kvm_device_attr",
        24,
        _of(kvm.DeviceAttr, 24),
        {"flags": 0, "group": 4, "attr": 8, "addr": 16},
        struct=kvm.DeviceAttr,
    ),
    Layout(
        "kvm_enable_cap",
        104,
        _of(kvm.EnableCap, 104),
        {"cap": 0, "flags": 4, "args": 8},
        ours={"cap": "capability", "args": "arg0"},
        struct=kvm.EnableCap,
    ),
    Layout(
        "kvm_sev_launch_start",
        40,
        _of(sev.LaunchStart, 40),
        {"handle": 0, "policy": 4, "dh_uaddr": 8, "dh_len": 16, "session_uaddr": 24, "session_len": 32},
        ours={"dh_len": "dh_nbytes", "session_len": "session_nbytes"},
        struct=sev.LaunchStart,
    ),
    Layout(
        "kvm_sev_launch_update_data",
        16,
        _call(sev.pack_uaddr_len, "uaddr", "nbytes"),
        {"uaddr": 0, "len": 8},
        ours={"len": "nbytes"},
    ),
    Layout(
        "kvm_sev_launch_measure",
        16,
        _call(sev.pack_uaddr_len, "uaddr", "nbytes"),
        {"uaddr": 0, "len": 8},
        ours={"len": "nbytes"},
    ),
    Layout(
        "sev_issue_cmd",
        16,
        _of(sev.SevIssueCmd, 16),
        {"cmd": 0, "data": 4, "error": 12},
        struct=sev.SevIssueCmd,
    ),
    Layout(
        "sev_user_data_status",
        12,
        _of(sev.PlatformStatus, 12),
        {"api_major": 0, "api_minor": 1, "state": 2, "flags": 3, "build": 7, "guest_count": 8},
        struct=sev.PlatformStatus,
    ),
)
