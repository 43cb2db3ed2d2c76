"""The test of noise: its bounds computed again, and what it calls noise."""

from __future__ import annotations

import math
import random
import zlib

import pytest

from sevkvm.verify.noise import CHI_SQUARE_LIMIT, FALSE_ALARM, MOST_LIMIT, measure

PAGE = 4096


def most_frequent_bound() -> float:
    """256 times P(a binomial count of 4096 at 1/256 reaches the limit): no inequality but the union of 256 events."""
    terms = (
        math.exp(
            math.lgamma(PAGE + 1)
            - math.lgamma(count + 1)
            - math.lgamma(PAGE - count + 1)
            - count * math.log(256)
            + (PAGE - count) * math.log(255 / 256)
        )
        for count in range(MOST_LIMIT, PAGE + 1)
    )
    return 256 * math.fsum(terms)


def chi_square_bound() -> float:
    """Counts of noise are Poisson counts of mean 16 given that they add up to 4096; then Chernoff's bound."""

    def poisson(mean: float, count: int) -> float:
        return math.exp(-mean + count * math.log(mean) - math.lgamma(count + 1))

    def exponent(s: float) -> float:
        one = math.fsum(
            poisson(16, count) * math.exp(s * (count - 16) ** 2 / 16) for count in range(MOST_LIMIT)
        )
        return 256 * math.log(one) - s * CHI_SQUARE_LIMIT

    return math.exp(min(exponent(s / 500) for s in range(1, 200))) / poisson(PAGE, PAGE)


def test_the_stated_false_alarm_probability_is_a_bound() -> None:
    most, chi_square = most_frequent_bound(), chi_square_bound()
    blocks = math.comb(PAGE // 16, 2) / 2**128
    assert (most < 1.3e-12, chi_square < 1.1e-12, blocks < 1e-34) == (True, True, True)
    assert most + chi_square + blocks < FALSE_ALARM


def test_noise_is_noise() -> None:
    source = random.Random(4)
    found = [measure(source.randbytes(PAGE)) for _ in range(500)]
    assert all(each.is_noise for each in found)
    assert 7.93 < min(each.entropy for each in found) <= max(each.entropy for each in found) < 7.98
    assert 240 < sum(each.chi_square for each in found) / len(found) < 270


NOISE = random.Random(5).randbytes(PAGE)
TEXT = (b"The quick brown fox jumps over the lazy dog. " * 100)[:PAGE]


@pytest.mark.parametrize(
    "page",
    [
        bytes(PAGE),
        b"\xff" * PAGE,
        TEXT,
        bytes(range(256)) * 16,  # every byte as often as every other
        NOISE[: PAGE // 2] * 2,
        NOISE[:-32] + NOISE[:16] + NOISE[-16:],  # one block twice
        NOISE[:3968] + bytes(128),
        bytes(PAGE - 512) + NOISE[:512],
        b"".join(value.to_bytes(8, "little") for value in range(512)),
        bytes(byte & 0x7F for byte in NOISE),
        bytes(byte if byte > 32 else byte + 100 for byte in NOISE),
        NOISE.hex().encode()[:PAGE],
    ],
)
def test_what_has_structure_is_not(page: bytes) -> None:
    assert len(page) == PAGE
    assert not measure(page).is_noise


def test_what_is_measured() -> None:
    zeros = measure(bytes(PAGE))
    assert zeros == (0.0, 4096 * 4096 / 16 - 4096, 4096, 255)
    flat = measure(bytes(range(256)) * 16)
    assert (flat.entropy, flat.chi_square, flat.most, flat.repeated) == (8.0, 0.0, 16, 240)


def test_compressed_data_passes_for_noise() -> None:
    # which is why noise alone proves nothing
    data = zlib.compress(random.Random(6).randbytes(2 * PAGE).hex().encode(), 9)[64:]
    assert measure(data[:PAGE]).is_noise


@pytest.mark.parametrize("nbytes", [0, 16, 4095, 8192])
def test_only_whole_pages(nbytes: int) -> None:
    with pytest.raises(ValueError, match="not a page"):
        measure(bytes(nbytes))
