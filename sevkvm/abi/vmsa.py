"""A vCPU's registers as SEV-ES and SEV-SNP keep them, decrypted: the page from elsewhere, as no ioctl reaches it.

Source: Linux arch/x86/include/asm/svm.h, ``struct sev_es_save_area`` and ``struct vmcb_seg`` (v6.16); AMD64 APM volume
2, appendix B (table B-4), and 15.5 for the attributes of segments.
"""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

from sevkvm.abi.kvm import Dtable, Regs, Segment, Sregs
from sevkvm.errors import BadGuestData

SAVE_AREA_NBYTES: Final = 1648
DECODED_NBYTES: Final = 0x3F0  # the last field that is decoded ends here
_SEGMENT = struct.Struct("<HHIQ")
_QUAD = struct.Struct("<Q")
_EFER_SVME: Final = 1 << 12  # set in every guest state that VMRUN accepts
_RFLAGS_FIXED: Final = 1 << 1

SEGMENTS: Final = {
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
BYTES: Final = {"vmpl": 0xCA, "cpl": 0xCB}
QUADS: Final = {
    "efer": 0xD0,
    "cr4": 0x148,
    "cr3": 0x150,
    "cr0": 0x158,
    "dr7": 0x160,
    "dr6": 0x168,
    "rflags": 0x170,
    "rip": 0x178,
    "rsp": 0x1D8,
    "rax": 0x1F8,
    "star": 0x200,
    "lstar": 0x208,
    "cstar": 0x210,
    "sfmask": 0x218,
    "kernel_gs_base": 0x220,
    "cr2": 0x240,
    "rcx": 0x308,
    "rdx": 0x310,
    "rbx": 0x318,
    "rbp": 0x328,
    "rsi": 0x330,
    "rdi": 0x338,
    **{f"r{number}": 0x340 + 8 * (number - 8) for number in range(8, 16)},
    "sev_features": 0x3B0,
}


class VmcbSegment(NamedTuple):
    """``struct vmcb_seg``: ``attrib`` has the descriptor's bits 40 to 47 and 52 to 55 in its lower twelve."""

    selector: int
    attrib: int
    limit: int
    base: int

    def segment(self) -> Segment:
        """As KVM's ioctls tell it; a segment that is not present is unusable."""
        bit = self.attrib
        present = bit >> 7 & 1
        return Segment(
            base=self.base,
            limit=self.limit,
            selector=self.selector,
            type=bit & 0xF,
            s=bit >> 4 & 1,
            dpl=bit >> 5 & 3,
            present=present,
            avl=bit >> 8 & 1,
            l=bit >> 9 & 1,
            db=bit >> 10 & 1,
            g=bit >> 11 & 1,
            unusable=1 - present,
        )


class Vmsa(NamedTuple):
    """One save area, by the kernel's names; ``cr3`` with the C-bit, as the vCPU has it."""

    es: VmcbSegment
    cs: VmcbSegment
    ss: VmcbSegment
    ds: VmcbSegment
    fs: VmcbSegment
    gs: VmcbSegment
    gdtr: VmcbSegment
    ldtr: VmcbSegment
    idtr: VmcbSegment
    tr: VmcbSegment
    vmpl: int
    cpl: int
    efer: int
    cr4: int
    cr3: int
    cr0: int
    dr7: int
    dr6: int
    rflags: int
    rip: int
    rsp: int
    rax: int
    star: int
    lstar: int
    cstar: int
    sfmask: int
    kernel_gs_base: int
    cr2: int
    rcx: int
    rdx: int
    rbx: int
    rbp: int
    rsi: int
    rdi: int
    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int
    sev_features: int

    @classmethod
    def unpack(cls, data: bytes) -> Vmsa:
        """From a page, or its first DECODED_NBYTES; BadGuestData for what cannot be a vCPU's state (ciphertext)."""
        if len(data) < DECODED_NBYTES:
            raise BadGuestData(f"a VMSA has {SAVE_AREA_NBYTES} bytes, not {len(data)}")
        fields: dict[str, Any] = {
            name: VmcbSegment(*_SEGMENT.unpack_from(data, offset)) for name, offset in SEGMENTS.items()
        }
        fields |= {name: data[offset] for name, offset in BYTES.items()}
        fields |= {name: _QUAD.unpack_from(data, offset)[0] for name, offset in QUADS.items()}
        return cls(**fields).checked()

    def checked(self) -> Vmsa:
        """Itself; BadGuestData if no vCPU can be in this state."""
        wrong = []
        if not self.efer & _EFER_SVME:
            wrong.append("EFER.SVME is clear")
        if not self.rflags & _RFLAGS_FIXED:
            wrong.append("bit 1 of RFLAGS is clear")
        if self.cr0 >> 32 or self.cr4 >> 32:
            wrong.append("CR0 or CR4 has upper bits")
        if self.cpl > 3:
            wrong.append(f"CPL is {self.cpl}")
        if wrong:
            raise BadGuestData(
                f"this is no vCPU's state: {', '.join(wrong)}",
                help="a VMSA is encrypted wherever the guest or the host keeps it: it must have been decrypted",
            )
        return self

    def regs(self) -> Regs:
        """As KVM_GET_REGS tells them."""
        return Regs(**{name: getattr(self, name) for name in Regs._fields})

    def sregs(self) -> Sregs:
        """As KVM_GET_SREGS tells them; CR8 and the APIC base are not in a VMSA, and 0 here."""
        names = ("cs", "ds", "es", "fs", "gs", "tr")
        segments = {name: getattr(self, name).segment() for name in names}
        return Sregs(
            **segments,
            ss=self.ss.segment()._replace(dpl=self.cpl),
            ldt=self.ldtr.segment(),
            gdt=Dtable(self.gdtr.base, self.gdtr.limit),
            idt=Dtable(self.idtr.base, self.idtr.limit),
            cr0=self.cr0,
            cr2=self.cr2,
            cr3=self.cr3,
            cr4=self.cr4,
            cr8=0,
            efer=self.efer,
            apic_base=0,
        )
