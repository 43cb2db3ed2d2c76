"""Patterns, windows and memory: a match is found wherever it lies, once, and nothing else is."""

from __future__ import annotations

import itertools
import re
import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sevkvm import errors
from sevkvm.memory.source import Slot, SlotMap
from sevkvm.paging.listing import Listing
from sevkvm.search import memory, pattern
from sevkvm.search.job import Search
from sevkvm.search.memory import Lost, Stretch
from sevkvm.search.scanner import Match, Scanner
from tests.support.fakeguest import PAGE, FakeGuest, FakeMemory, ListedPages, UniformPages
from tests.support.tables import Tables


def scan(wanted: pattern.Pattern, pieces: list[tuple[int, bytes]], context: int = 0) -> list[Match]:
    scanner = Scanner(wanted, context)
    found = [match for address, data in pieces for match in scanner.feed(address, data)]
    return found + list(scanner.flush())


def places(matches: list[Match]) -> list[tuple[int, bytes]]:
    return [(match.address, match.data) for match in matches]


# ---- patterns


@pytest.mark.parametrize(
    ("wanted", "data", "at"),
    [
        (pattern.string("key"), b"a key here", 2),
        (pattern.string("schlüssel"), "ein schlüssel".encode(), 4),
        (pattern.string("KEY", ignore_case=True), b"a Key", 2),
        (pattern.utf16("key"), b"..k\0e\0y\0", 2),
        (pattern.utf16("KEY", ignore_case=True), b"..k\0e\0y\0", 2),
        (pattern.hexadecimal("6b 65 79"), b"a key", 2),
        (pattern.hexadecimal("6B??79"), b"a kxy", 2),
        (pattern.hexadecimal("6b ?? 79"), b"a k\ny", 2),  # any byte, a newline too
        (pattern.hexadecimal("2e ??"), b"ab.d", 2),  # no letter of a regular expression
        (pattern.regular_expression(r"k\w+\x00"), b"a key\0", 2),
        (pattern.regular_expression(r"K[a-f]Y", ignore_case=True), b"a key", 2),
    ],
)
def test_patterns_find_what_they_say(wanted, data, at):
    ((address, found),) = places(scan(wanted, [(0x1000, data)]))
    assert address == 0x1000 + at
    assert data[at : at + len(found)] == found


@pytest.mark.parametrize(
    ("make", "text", "says"),
    [
        (pattern.string, "", "0 bytes"),
        (pattern.hexadecimal, "", "0 bytes"),
        (pattern.hexadecimal, "abc", "'c' is not a byte"),
        (pattern.hexadecimal, "0x12", "'0x' is not a byte"),
        (pattern.hexadecimal, "?? ??", "found everywhere"),
        (pattern.hexadecimal, "1?", "'1?' is not a byte"),
        (pattern.string, "x" * 70000, "70000 bytes"),
        (pattern.regular_expression, "(", "not a regular expression"),
        (pattern.regular_expression, "a*", "matches nothing"),
    ],
)
def test_useless_patterns_are_refused(make, text, says):
    with pytest.raises(errors.UsageError) as refused:
        make(text)
    assert says in str(refused.value)


def test_a_regular_expression_may_match_nothing_in_places():
    assert places(scan(pattern.regular_expression(r"x*(?=a)|b"), [(0, b"a xa b")])) == [(2, b"x"), (5, b"b")]


def test_matches_of_a_regular_expression_are_cut_at_the_longest():
    found = scan(pattern.regular_expression("x+"), [(0, b"-" + b"x" * 10000)])
    assert places(found) == [(1, b"x" * 4096), (4097, b"x" * 4096), (8193, b"x" * 1808)]


def test_a_catastrophic_expression_can_be_interrupted():
    class Enough(Exception):
        pass

    def stop(signum, frame):
        raise Enough

    previous = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Enough):
            scan(pattern.regular_expression(r"(a+)+b"), [(0, b"a" * 5000)])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


# ---- windows


@pytest.mark.parametrize("cut", range(1, 10))
def test_a_match_across_pieces_is_found_once_with_its_context(cut):
    data = b"..abcdef.."
    (match,) = scan(pattern.string("abcdef"), [(0x1000, data[:cut]), (0x1000 + cut, data[cut:])], context=3)
    assert match == Match(0x1002, b"abcdef", b"..", b"..")


def test_nothing_is_found_across_a_gap():
    assert scan(pattern.string("abcd"), [(0x1000, b"..ab"), (0x1005, b"cd..")]) == []


def test_context_ends_at_a_gap():
    (match,) = scan(pattern.string("ab"), [(0, b"xxxx"), (5, b"-ab"), (9, b"yyyy")], context=4)
    assert match == Match(6, b"ab", b"-", b"")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([b"a", b"b", b"ab", b"\0", b"\n", b"abc" * 30]), max_size=60),
    st.lists(st.integers(1, 40), min_size=1, max_size=50),
    st.sampled_from(
        [
            pattern.string("ab"),
            pattern.string("aba"),
            pattern.hexadecimal("61 ?? 61"),
            pattern.regular_expression("(?s)a.{0,5}?b"),
            pattern.regular_expression(r"b\b|\Ba\n"),
        ]
    ),
    st.integers(0, 20),
)
def test_cutting_memory_into_pieces_changes_nothing(words, sizes, wanted, context):
    data = b"".join(words)
    expression = wanted.regex or re.compile(re.escape(wanted.literal))
    expected = [
        (
            found.start(),
            found.group(),
            data[max(found.start() - context, 0) : found.start()],
            data[found.end() : found.end() + context],
        )
        for found in expression.finditer(data)
    ]
    pieces, at = [], 0
    for size in itertools.cycle(sizes):
        if at >= len(data):
            break
        pieces.append((at, data[at : at + size]))
        at += size
    found = scan(wanted, pieces, context)
    assert [(m.address, m.data, m.before, m.after) for m in found] == expected


def test_the_window_stays_small():
    scanner = Scanner(pattern.string("needle"), 16)
    for number in range(1000):
        list(scanner.feed(number * PAGE, bytes(PAGE)))
    assert len(scanner._window) < 2 * PAGE


# ---- memory


def guest(ram, **rest) -> FakeGuest:
    return FakeGuest(ram, **rest)


def find(search: Search) -> list[tuple[int, bytes]]:
    return places(list(search))


def test_physical_memory_is_searched_across_slots_that_touch_and_no_others():
    subject = guest(
        {
            0: b"." * (PAGE - 2) + b"ab",
            PAGE: b"cd" + b"." * (PAGE - 4) + b"ab",
            3 * PAGE: b"cd".ljust(PAGE, b"."),
        }
    )
    stretches = memory.physical(subject.slots, UniformPages(), [])
    assert find(Search(subject.memory, stretches, pattern.string("abcd"))) == [(PAGE - 2, b"abcd")]


def test_each_page_is_read_as_the_guest_maps_it():
    secret = b"secret".ljust(PAGE, b"\xff")
    subject = guest(
        {0: secret + bytes(byte ^ 0xFF for byte in secret)}
    )  # a private read gives the bytes xor 0xff
    pages = ListedPages((0, PAGE, False, "shared"), (PAGE, PAGE, True, "private"))
    search = Search(subject.memory, memory.physical(subject.slots, pages, []), pattern.string("secret"))
    assert find(search) == [(0, b"secret"), (PAGE, b"secret")]
    everything_shared = Search(
        subject.memory, memory.physical(subject.slots, UniformPages(False), []), pattern.string("secret")
    )
    assert find(everything_shared) == [(0, b"secret")]


def test_only_the_wanted_ranges_are_searched_each_byte_once():
    subject = guest({0: b"needle" * 2000 + bytes(4 * PAGE - 12000)})
    ranges = [(600, 1200), (900, 1203), (6, 12)]
    stretches = memory.physical(subject.slots, UniformPages(), ranges)
    found = [address for address, _ in find(Search(subject.memory, stretches, pattern.string("needle")))]
    assert found == [6, *range(600, 1200, 6)]


def test_what_cannot_be_read_is_told_and_the_rest_is_searched():
    subject = guest({0: b"needle".ljust(PAGE, b".") * 8}, bad_pages={2 * PAGE, 3 * PAGE})
    search = Search(
        subject.memory, memory.physical(subject.slots, UniformPages(), []), pattern.string("needle")
    )
    assert [address for address, _ in find(search)] == [0, PAGE, *range(4 * PAGE, 8 * PAGE, PAGE)]
    assert search.lost == [Lost(2 * PAGE, 2 * PAGE, False)]
    assert (search.searched_nbytes, search.lost_nbytes, search.lost_count) == (6 * PAGE, 2 * PAGE, 1)


def test_a_range_without_memory_is_refused():
    subject = guest({0: bytes(PAGE)})
    with pytest.raises(errors.UsageError, match="no guest memory"):
        memory.physical(subject.slots, UniformPages(), [(PAGE, 2 * PAGE)])


def virtual_search(tables: Tables, ram: dict[int, bytes], text: str, ranges=()) -> Search:
    slots = SlotMap(Slot(gpa, len(data), 0x7F00_0000_0000 + gpa) for gpa, data in ram.items())
    held = FakeMemory(ram, slots, ())
    held.tables = tables
    listing = Listing(held, tables.form, ranges=ranges)
    return Search(held, memory.virtual(slots, listing, ranges), pattern.string(text))


def test_virtual_memory_is_searched_in_the_order_the_tables_give_it():
    tables = Tables()
    ram = {0: b"cd".ljust(PAGE, b".") + b"ab".rjust(PAGE, b".") + b"ab".ljust(PAGE, b".")}
    tables.map(0x40_0000, PAGE)
    tables.map(0x40_1000, 0)  # continues it: abcd across a border that is none in physical memory
    tables.map(0x40_2000, 0x8000_0000)  # device registers: not searched, no loss
    tables.map(0x40_3000, 0)
    search = virtual_search(tables, ram, "abcd")
    found = [(match.address, search.gpa(match.address), search.gpa(match.address + 2)) for match in search]
    assert found == [(0x40_0FFE, 2 * PAGE - 2, 0)]
    assert search.lost == []


def test_virtual_ranges_cut_pages():
    tables = Tables()
    tables.map(0x40_0000, 0)
    ram = {0: b"needle" * 682 + b"...."}
    ranges = [(0x40_0000 + 6, 0x40_0000 + 12), (0x40_0000 + 18, 0x40_0000 + 30)]
    assert [address for address, _ in find(virtual_search(tables, ram, "needle", ranges))] == [
        0x40_0006,
        0x40_0012,
        0x40_0018,
    ]


def test_a_private_mapping_is_read_as_private():
    tables = Tables(cbit=51)
    tables.map(0x40_0000, 0)
    tables.map(0x40_1000, 0, private=False)
    assert find(
        virtual_search(tables, {0: bytes(byte ^ 0xFF for byte in b"needle" + bytes(PAGE - 6))}, "needle")
    ) == [(0x40_0000, b"needle")]


def test_memory_is_read_in_bounded_pieces():
    class Endless:
        chunk_nbytes = 64 * PAGE

        def readinto(self, gpa, private, buffer, ahead=0):
            assert len(buffer) <= self.chunk_nbytes
            buffer[:] = b"n" * len(buffer)
            return len(buffer)

    search = Search(Endless(), [Stretch(0, 0, 1 << 50, True)], pattern.string("nnnn"))
    assert len(list(itertools.islice(search, 100_000))) == 100_000


class Labelled:
    """A finder that, like YARA, is asked for steps and answers with overlapping matches."""

    longest, step, overlapping = 8, 100, True

    def __init__(self) -> None:
        self.calls = 0

    def matches(self, window, start, limit):
        self.calls += 1
        for found in re.finditer(b"(?=(ab)|(abab))", window):
            if start <= found.start() < limit:
                yield found.start(), found.start() + 2, "short"
                if window[found.start() :].startswith(b"abab"):
                    yield found.start(), found.start() + 4, "long"


@pytest.mark.parametrize("size", [1, 5, 7, 64, 101])
def test_a_finder_that_wants_steps_gets_them_and_finds_everything_once(size):
    data = b"..abab" * 200
    finder = Labelled()
    found = scan(finder, [(at, data[at : at + size]) for at in range(0, len(data), size)])
    assert [(match.address, match.label) for match in found] == [
        (6 * n + at, label) for n in range(200) for at, label in ((2, "short"), (2, "long"), (4, "short"))
    ]
    assert finder.calls <= len(data) / 100 + 1
