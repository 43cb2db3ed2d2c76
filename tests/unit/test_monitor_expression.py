"""Expressions of the monitor: values by Python's own arithmetic, problems in QEMU's words, nothing else ever."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sevkvm.monitor.expression import Values, evaluate
from sevkvm.monitor.problem import BadArgument

MASK = (1 << 64) - 1
REGISTERS = {"pc": 0xFFFF_FFFF_8100_0000, "eax": 7}
VALUES = Values(REGISTERS.get)


def value(text: str) -> int:
    found, end = evaluate(text, 0, VALUES)
    assert end == len(text)
    return found


def signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1+2*3", 7),
        ("1-2", MASK),
        ("5 & 3 | 8 ^ 1", 8),
        ("1+2|4", 7),  # + binds looser than |
        ("4|1+2", 7),
        ("-7/2", -3 & MASK),
        ("-7%3", -1 & MASK),
        ("7%-3", 1),
        ("0x8000000000000000/-1", 1 << 63),
        ("0x8000000000000000%-1", 0),
        ("~0x10", ~0x10 & MASK),
        ("010", 8),
        ("'a'", 97),
        ("'''", 39),
        ("$pc + $eax", 0xFFFF_FFFF_8100_0007),
        ("((1))", 1),
    ],
)
def test_values(text: str, expected: int) -> None:
    assert value(text) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "unexpected end of expression"),
        ("1+", "unexpected end of expression"),
        ("(1", "')' expected"),
        ("$nothing", "unknown register"),
        ("!1", "invalid char '!' in expression"),
        ("1/0", "division by zero"),
        ("1%0", "division by zero"),
        ("18446744073709551616", "number too large"),
        ("02000000000000000000000", "number too large"),
        ("9" * 5000, "number too large"),
        ("'", "character constant expected"),
        ("'a", "missing terminating ' character"),
        ("(" * 5000, "expression too deep"),
        ("-" * 5000 + "1", "expression too deep"),
    ],
)
def test_problems(text: str, problem: str) -> None:
    with pytest.raises(BadArgument) as caught:
        evaluate(text, 0, VALUES)
    assert caught.value.text == problem


numbers = st.integers(0, MASK)


@given(numbers, st.sampled_from("+-*&|^"), numbers)
def test_operators_wrap_in_64_bits(left: int, operator: str, right: int) -> None:
    expected = {
        "+": left + right,
        "-": left - right,
        "*": left * right,
        "&": left & right,
        "|": left | right,
        "^": left ^ right,
    }[operator]
    assert value(f"{left:#x} {operator} {right}") == expected & MASK


@given(numbers, numbers.filter(bool))
def test_division_rounds_to_zero(left: int, right: int) -> None:
    quotient, rest = signed(value(f"{left}/{right}")), signed(value(f"{left}%{right}"))
    assert (quotient * signed(right) + rest) & MASK == left
    assert abs(rest) < abs(signed(right))
    assert rest == 0 or (rest < 0) == (signed(left) < 0)


@given(st.text(alphabet="0123456789abxX$pce+-*/%&|^~()' .,\t\\\"é٣", max_size=40))
def test_anything_else_is_a_problem_and_nothing_worse(text: str) -> None:
    try:
        found, end = evaluate(text, 0, VALUES)
    except BadArgument:
        return
    assert 0 <= found <= MASK
    assert 0 < end <= len(text)
