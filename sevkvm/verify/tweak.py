"""Does the cipher depend on the address? Equal plaintext at two addresses must be different ciphertext.

SEV's cipher is tweaked with the physical address. Without that, whoever sees ciphertext sees which blocks are equal.
The tweaks of the first EPYCs have little entropy: there, two blocks in a few billion may really be equal.
"""

from __future__ import annotations

from sevkvm.abi.sev import BLOCK_NBYTES
from sevkvm.abi.x86 import PAGE_NBYTES
from sevkvm.verify.page import Views
from sevkvm.verify.report import Check, Outcome


class TweakTest:
    """Feed it pages, then ask."""

    def __init__(self) -> None:
        self._seen: dict[bytes, dict[bytes, int]] = {}
        self._pages: dict[bytes, set[int]] = {}
        self._equal: tuple[int, int] | None = None
        self._equal_count = 0

    def add(self, gpa: int, views: Views) -> None:
        """A page; one that is not encrypted tells nothing here."""
        if views.plain is None or views.untouched or views.equal_blocks:
            return
        for at in range(0, PAGE_NBYTES, BLOCK_NBYTES):
            plain, cipher = views.plain[at : at + BLOCK_NBYTES], views.host[at : at + BLOCK_NBYTES]
            ciphers = self._seen.setdefault(plain, {})
            first = ciphers.setdefault(cipher, gpa + at)
            if first != gpa + at:
                self._equal_count += 1
                self._equal = self._equal or (first, gpa + at)
            self._pages.setdefault(plain, set()).add(gpa)

    def check(self) -> Check:
        """Passes if some plaintext was seen in two pages, and no ciphertext twice."""
        title = "equal plaintext at two addresses is different ciphertext"
        if self._equal:
            first, second = self._equal
            evidence = (
                f"the 16 bytes at gpa 0x{first:x} and 0x{second:x} are equal in plaintext and in ciphertext",
                f"{self._equal_count} such blocks",
            )
            return Check("tweak", title, Outcome.FAIL, evidence)
        blocks = [plain for plain, pages in self._pages.items() if len(pages) > 1]
        if not blocks:
            return Check("tweak", title, Outcome.SKIP, ("no two of the pages have equal plaintext",))
        addresses = sum(len(self._seen[plain]) for plain in blocks)
        told = f"{len(blocks)} blocks of plaintext that several pages have, at {addresses} addresses"
        return Check("tweak", title, Outcome.PASS, (told,))
