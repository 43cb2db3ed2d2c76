"""Is a page noise? A test of 4 KiB that calls true noise data less often than once in 10**11 pages.

Noise: 4096 bytes, independent, every value equally likely. Three things are looked at; P is how often noise does it:

    a byte that occurs MOST_LIMIT times or more     P < 1.3e-12: 256 exact binomial tails added up
    chi-square of the byte counts, CHI_SQUARE_LIMIT or more
                                                    P < 1.1e-12: Chernoff's bound for 256 independent Poisson counts
                                                    below MOST_LIMIT, divided by P(they add up to 4096) = 0.0062
    two equal 16-byte blocks                        P < 1e-34: 32,640 pairs, 2**-128 each

Added up less than 1e-11. Chi-square has 255 degrees of freedom: noise has 255 on the average, text and tables
thousands. ``tests/unit/test_verify_noise.py`` computes both bounds again.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Final, NamedTuple

from sevkvm.abi.sev import BLOCK_NBYTES
from sevkvm.abi.x86 import PAGE_NBYTES

MOST_LIMIT: Final = 56
CHI_SQUARE_LIMIT: Final = 500.0
FALSE_ALARM: Final = 1e-11
_EXPECTED: Final = PAGE_NBYTES / 256


class Noise(NamedTuple):
    """What a page looks like. ``entropy``: bits a byte, of the byte counts; noise has 7.92 to 7.98.

    ``most``: how often its most frequent byte occurs. ``repeated``: 16-byte blocks that occurred before in the page.
    """

    entropy: float
    chi_square: float
    most: int
    repeated: int

    @property
    def is_noise(self) -> bool:
        """Could a cipher, or chance, have made it?"""
        return self.most < MOST_LIMIT and self.chi_square < CHI_SQUARE_LIMIT and not self.repeated


def measure(page: bytes) -> Noise:
    """Look at one page (4096 bytes)."""
    if len(page) != PAGE_NBYTES:
        raise ValueError(f"{len(page)} bytes are not a page")
    counts = Counter(page).values()
    # of the values that do not occur, each adds (0 - 16)**2 / 16
    chi_square = sum(count * count for count in counts) / _EXPECTED - PAGE_NBYTES
    entropy = -sum(count / PAGE_NBYTES * math.log2(count / PAGE_NBYTES) for count in counts)
    blocks = {page[at : at + BLOCK_NBYTES] for at in range(0, PAGE_NBYTES, BLOCK_NBYTES)}
    repeated = PAGE_NBYTES // BLOCK_NBYTES - len(blocks)
    return Noise(entropy + 0.0, chi_square, max(counts), repeated)
