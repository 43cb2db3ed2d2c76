"""``--limit``."""

import pytest

from sevkvm.cli.listing_cut import Cut

TEXT = [b"1\n2\n3\n", b"4\n", b"5\n6\n"]


@pytest.mark.parametrize(
    ("limit", "more"), [(1, True), (3, True), (4, True), (5, True), (6, False), (7, False)]
)
def test_text_and_records_are_cut_alike(limit, more):
    text, records = Cut(limit), Cut(limit)
    expected = list(range(1, 7))[:limit]
    assert b"".join(text.text(TEXT)) == b"".join(b"%d\n" % n for n in expected)
    assert list(records.records(range(1, 7))) == expected
    assert text.more is records.more is more


def test_without_a_limit_chunks_pass_as_they_are():
    cut = Cut(None)
    assert list(cut.text(TEXT)) == TEXT
    assert list(cut.records("abc")) == ["a", "b", "c"]
    assert cut.more is False


def test_lines_pass_before_the_next_are_made():
    def chunks():
        yield TEXT[0]
        raise AssertionError("asked for too much")

    assert next(Cut(5).text(chunks())) == TEXT[0]
