import pytest

from sevkvm.cli.values import Range, parse_address, parse_nbytes, parse_number, parse_range


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("4096", 4096),
        ("0x1000", 4096),
        ("0X1F", 31),
        ("010", 10),
        ("0xffffffffffffffff", (1 << 64) - 1),
    ],
)
def test_numbers(text, value):
    assert parse_number(text) == value
    assert parse_address(text) == value


@pytest.mark.parametrize(
    "text", ["", "0x", "-1", "+1", " 1", "1 ", "1_000", "0x_1", "zz", "ff", "1.5", "٣", "0b1", "1K", "0x-1"]
)
def test_what_is_not_a_number_is_refused(text):
    with pytest.raises(ValueError, match="is not a number"):
        parse_number(text)


def test_hex_without_its_prefix_gets_a_hint():
    with pytest.raises(ValueError, match=r"0xffff8880\?"):
        parse_number("ffff8880")


def test_an_address_has_64_bits():
    with pytest.raises(ValueError, match="64 bits"):
        parse_address("0x10000000000000000")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("512", 512),
        ("0x200", 512),
        ("4k", 4096),
        ("4K", 4096),
        ("4KiB", 4096),
        ("3M", 3 << 20),
        ("2G", 2 << 30),
        ("1T", 1 << 40),
    ],
)
def test_sizes(text, value):
    assert parse_nbytes(text) == value


@pytest.mark.parametrize("text", ["", "K", "iB", "4B", "4KB", "-4K", "0x4K", "4 K"])
def test_what_is_not_a_size_is_refused(text):
    with pytest.raises(ValueError, match="is not a number"):
        parse_nbytes(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0:4096", Range(0, 4096)),
        ("0x1000:0x3000", Range(0x1000, 0x3000)),
        ("0x1000:+0x3000", Range(0x1000, 0x4000)),
        ("1M:+64K", Range(1 << 20, (1 << 20) + (64 << 10))),
        ("0:0x10000000000000000", Range(0, 1 << 64)),
    ],
)
def test_ranges(text, value):
    assert parse_range(text) == value


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("0x1000", "not a range"),
        ("", "not a range"),
        ("0x1000:0x1000", "empty"),
        ("0x2000:0x1000", "empty"),
        ("0x1000:+0", "empty"),
        ("1:2:3", "not a number"),
        (":5", "not a number"),
        ("5:", "not a number"),
        ("1:0x10000000000000001", "above"),
        ("0xffffffffffffffff:+2", "above"),
    ],
)
def test_what_is_not_a_range_is_refused(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_range(text)


def test_a_range_knows_its_size():
    assert Range(0x1000, 0x1800).nbytes == 0x800
