"""Guest policies: every bit of SEV's and of SEV-SNP's, with its name and what it means. The one table of them.

Sources: AMD publication 55766, "Secure Encrypted Virtualization API", chapter 3 (32 bits, also SEV-ES); AMD publication
56860, "SEV Secure Nested Paging Firmware ABI", guest policy (64 bits).
"""

from __future__ import annotations

from typing import Final, NamedTuple

POLICY_NODBG: Final = 1 << 0
POLICY_NOKS: Final = 1 << 1
POLICY_ES: Final = 1 << 2
POLICY_NOSEND: Final = 1 << 3
POLICY_DOMAIN: Final = 1 << 4
POLICY_SEV: Final = 1 << 5
POLICY_RESERVED: Final = 0xFFC0

SNP_POLICY_SMT: Final = 1 << 16
SNP_POLICY_MUST_BE_ONE: Final = 1 << 17
SNP_POLICY_MIGRATE_MA: Final = 1 << 18
SNP_POLICY_DEBUG: Final = 1 << 19
SNP_POLICY_SINGLE_SOCKET: Final = 1 << 20
SNP_POLICY_RESERVED: Final = ((1 << 64) - 1) & ~((1 << 26) - 1)


class PolicyBit(NamedTuple):
    """One bit. ``when_set`` and ``when_clear`` say what it means, ``owner`` what that is to the guest's owner,
    ``tool`` what it is to sevkvm (empty: nothing)."""

    mask: int
    name: str
    when_set: str
    when_clear: str
    owner: str
    tool: str

    @property
    def bit(self) -> int:
        """Its number."""
        return self.mask.bit_length() - 1


SEV_BITS: Final = (
    PolicyBit(
        POLICY_NODBG,
        "NODBG",
        "debugging is forbidden",
        "debugging is allowed",
        "if clear, whoever runs the host may have all memory decrypted and rewritten; set it in production",
        "if set, only ciphertext can be read: status and verify still work",
    ),
    PolicyBit(
        POLICY_NOKS,
        "NOKS",
        "sharing the key with other guests is forbidden",
        "the key may be shared with other guests",
        "if clear, the host may launch another guest with the same key, which can read this one's memory",
        "",
    ),
    PolicyBit(
        POLICY_ES,
        "ES",
        "SEV-ES is required: registers are encrypted",
        "SEV-ES is not required: the host sees the registers",
        "if clear, the host may read and change registers whenever a vCPU exits",
        "if set, registers are not available: page tables are searched for, or named with --cr3",
    ),
    PolicyBit(
        POLICY_NOSEND,
        "NOSEND",
        "sending to another platform is forbidden",
        "it may be sent to another platform",
        "if set, the guest cannot be migrated live, nor saved and restored elsewhere",
        "",
    ),
    PolicyBit(
        POLICY_DOMAIN,
        "DOMAIN",
        "sending outside the domain is forbidden",
        "it may be sent outside the domain",
        "if set, only platforms that the same owner has certified can receive the guest",
        "",
    ),
    PolicyBit(
        POLICY_SEV,
        "SEV",
        "sending to a platform without SEV is forbidden",
        "it may be sent to a platform without SEV",
        "if set, the guest stays encrypted wherever it goes",
        "",
    ),
)
SNP_BITS: Final = (
    PolicyBit(
        SNP_POLICY_SMT,
        "SMT",
        "simultaneous multithreading is allowed",
        "simultaneous multithreading must be off on the host",
        "if clear, the guest starts only where no other guest can share a core's threads",
        "",
    ),
    PolicyBit(
        SNP_POLICY_MUST_BE_ONE,
        "MBO",
        "the reserved bit that must be one is set",
        "the reserved bit that must be one is clear: every launch is refused",
        "it has no meaning, and must be set",
        "",
    ),
    PolicyBit(
        SNP_POLICY_MIGRATE_MA,
        "MIGRATE_MA",
        "a migration agent may be associated",
        "no migration agent may be associated",
        "if set, an agent that the owner trusts may export the guest's secrets to migrate it",
        "",
    ),
    PolicyBit(
        SNP_POLICY_DEBUG,
        "DEBUG",
        "debugging is allowed",
        "debugging is forbidden",
        "if set, whoever runs the host may have memory and registers decrypted; never in production",
        "Linux gives no way to use it, so memory cannot be read either way",
    ),
    PolicyBit(
        SNP_POLICY_SINGLE_SOCKET,
        "SINGLE_SOCKET",
        "it runs on one socket only",
        "it may run on several sockets",
        "if set, its memory and its processors stay on one package",
        "",
    ),
    PolicyBit(
        1 << 21,
        "CXL_ALLOW",
        "CXL devices and memory are allowed",
        "the host must have no CXL devices or memory",
        "if set, data may leave the package over CXL",
        "",
    ),
    PolicyBit(
        1 << 22,
        "MEM_AES_256_XTS",
        "memory encryption must be AES-256-XTS",
        "memory encryption may be AES-128 or AES-256-XTS",
        "if set, hosts that cannot do AES-256-XTS are refused",
        "",
    ),
    PolicyBit(
        1 << 23,
        "RAPL_DIS",
        "energy counters (RAPL) must be off",
        "energy counters (RAPL) may be on",
        "if set, the host cannot measure the guest's energy, which is a side channel",
        "",
    ),
    PolicyBit(
        1 << 24,
        "CIPHERTEXT_HIDING_DRAM",
        "ciphertext must be hidden from the host",
        "the host may see ciphertext",
        "if set, the host cannot watch ciphertext change, which is a side channel",
        "if set, even the host's view of private memory cannot be read",
    ),
    PolicyBit(
        1 << 25,
        "PAGE_SWAP_DISABLE",
        "moving and swapping its pages is forbidden",
        "its pages may be moved and swapped",
        "if set, the host cannot move private pages about",
        "",
    ),
)
