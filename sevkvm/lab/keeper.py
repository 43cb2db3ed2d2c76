"""The keeper: a tiny static program that holds a secret in memory of its own and sleeps for ever.

The file holds the secret only masked, so that its plain text is in one page of the guest and nowhere else: not
in the page cache, not on a command line. All keepers keep theirs at the same address, so that only their page
tables tell them apart.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

SECRET_GVA: Final = 0x5_EC4E_7000
SECRET_NBYTES: Final = 64
_MASK: Final = 0x5A
_BASE_GVA: Final = 0x40_0000
_EHDR_NBYTES: Final = 64
_PHDR_NBYTES: Final = 56
_MESSAGE_NBYTES: Final = 64

# x86-64 Linux system calls: mmap 9, write 1, pause 34.
_CODE: Final = bytes.fromhex(
    "b809000000"  # mov eax, 9
    "48bf"
    + SECRET_GVA.to_bytes(8, "little").hex()  # mov rdi, SECRET_GVA
    + "be00100000"  # mov esi, 0x1000
    "ba03000000"  # mov edx, PROT_READ | PROT_WRITE
    "41ba22001000"  # mov r10d, MAP_FIXED_NOREPLACE | MAP_ANONYMOUS | MAP_PRIVATE
    "49c7c0ffffffff"  # mov r8, -1
    "4531c9"  # xor r9d, r9d
    "0f05"  # syscall
    "488d352f000000"  # lea rsi, [rip + masked]
    "4889c7"  # mov rdi, rax
    "b940000000"  # mov ecx, SECRET_NBYTES
    "ac345aaae2fa"  # 1: lodsb; xor al, _MASK; stosb; loop 1b
    "b801000000"  # mov eax, 1
    "bf01000000"  # mov edi, 1
    "488d3550000000"  # lea rsi, [rip + message]
    "ba40000000"  # mov edx, _MESSAGE_NBYTES
    "0f05"  # syscall
    "b822000000"  # 2: mov eax, 34
    "0f05"  # syscall
    "ebf7"  # jmp 2b
)


@dataclass(frozen=True)
class Keeper:
    """One keeper process of the guest."""

    name: str

    @property
    def secret(self) -> bytes:
        """What it keeps at SECRET_GVA: SECRET_NBYTES bytes."""
        text = b"sevkvm-lab: only the keeper %s knows this" % self.name.encode()
        return text.ljust(SECRET_NBYTES, b".")

    @property
    def message(self) -> bytes:
        """What it writes once the secret is in place: one line of _MESSAGE_NBYTES bytes."""
        line = b"sevkvm-keeper %s holds gva 0x%x" % (self.name.encode(), SECRET_GVA)
        return line.ljust(_MESSAGE_NBYTES - 1) + b"\n"

    def program(self) -> bytes:
        """The ELF executable."""
        masked = bytes(byte ^ _MASK for byte in self.secret)
        body = _CODE + masked + self.message
        start = _EHDR_NBYTES + _PHDR_NBYTES
        nbytes = start + len(body)
        ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
        header = ident + struct.pack(
            "<HHIQQQIHHHHHH",
            2,  # ET_EXEC
            62,  # EM_X86_64
            1,
            _BASE_GVA + start,
            _EHDR_NBYTES,
            0,
            0,
            _EHDR_NBYTES,
            _PHDR_NBYTES,
            1,
            0,
            0,
            0,
        )
        segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE_GVA, _BASE_GVA, nbytes, nbytes, 0x1000)
        return header + segment + body
