"""`info mtree -f`, in QEMU 7.2's words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sevkvm import errors
from sevkvm.host import mtree
from sevkvm.host.mtree import FlatRange

# q35, -m 5G, with flash; a view of I/O ports and one of a bus master around it
TEXT = """\
FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan
  0000000000000010-000000000000001f (prio 0, i/o): io @0000000000000010

FlatView #1
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-00000000000bffff (prio 0, ram): pc.ram KVM
  00000000000c0000-00000000000dffff (prio 1, rom): pc.rom KVM
  00000000000e0000-00000000000fffff (prio 1, rom): isa-bios KVM
  0000000000100000-000000007fffffff (prio 0, ram): pc.ram @0000000000100000 KVM
  00000000e0000000-00000000e0000fff (prio 1, ramd): 0000:01:00.0 BAR 0 mmaps[0] KVM
  00000000fec00000-00000000fec00fff (prio 0, i/o): kvm-ioapic
  00000000fee00000-00000000feefffff (prio 4096, i/o): kvm-apic-msi
  00000000ffc00000-00000000ffffffff (prio 0, romd): system.flash0 KVM
  0000000100000000-00000001bfffffff (prio 0, ram): pc.ram @0000000080000000 KVM
  00000001c0000000-00000001c0000fff (prio -1, nv-ram): nv dimm @9 @0000000000003000 KVM
  00000001c0001000-00000001c0001fff (prio 0, ram): not-for-kvm

FlatView #2
 AS "mch", root: bus master container
 Root memory region: (none)
  No rendered FlatView

"""


def view(*lines: str, space: str = "memory") -> str:
    return "\n".join(
        ["FlatView #3", f' AS "{space}", root: system', " Root memory region: system", *lines, ""]
    )


def test_ranges_of_the_view_of_memory() -> None:
    assert mtree.parse(TEXT) == [
        FlatRange(0, 0xC0000, "pc.ram", 0, False),
        FlatRange(0xC0000, 0x20000, "pc.rom", 0, True),
        FlatRange(0xE0000, 0x20000, "isa-bios", 0, True),
        FlatRange(0x100000, 0x7FF00000, "pc.ram", 0x100000, False),
        FlatRange(0xFFC00000, 0x400000, "system.flash0", 0, True),
        FlatRange(0x100000000, 0xC0000000, "pc.ram", 0x80000000, False),
        FlatRange(0x1C0000000, 0x1000, "nv dimm @9", 0x3000, False),
    ]


def test_the_view_need_not_come_first_nor_the_name_be_alone() -> None:
    text = view("  0000000000001000-0000000000001fff (prio 0, ram): ram0 @0000000000002000 owner:{obj} KVM")
    assert mtree.parse(view(space="I/O") + text) == [FlatRange(0x1000, 0x1000, "ram0", 0x2000, False)]


def test_part_pages_are_left_out() -> None:
    text = view(
        "  0000000000000800-00000000000027ff (prio 0, ram): a @0000000000000010 KVM",
        "  0000000000003000-00000000000037ff (prio 0, ram): b KVM",
    )
    assert mtree.parse(text) == [FlatRange(0x1000, 0x1000, "a", 0x810, False)]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "0 views"),
        ("unknown command: 'info mtree'\n", "0 views"),
        (view(space="memory-2"), "0 views"),
        (TEXT + TEXT, "2 views"),
        (view(), "no guest memory"),
        (view("  0000000000000000-0000000000000fff (prio 0, ram): emulated"), "no guest memory"),
        (
            view(
                "  0000000000002000-0000000000002fff (prio 0, ram): a KVM",
                "  0000000000001000-0000000000001fff (prio 0, ram): b KVM",
            ),
            "out of order",
        ),
        (
            view(
                "  0000000000001000-0000000000002fff (prio 0, ram): a KVM",
                "  0000000000002000-0000000000003fff (prio 0, ram): b KVM",
            ),
            "out of order",
        ),
        (view("  0000000000000000-ffffffffffffffff (prio 0, ram): a KVM"), "impossible"),
        (
            view(*(f"  {i:013x}000-{i:013x}fff (prio 0, ram): a KVM" for i in range(mtree.MAX_RANGES + 1))),
            "out of order",
        ),
    ],
)
def test_refused(text: str, complaint: str) -> None:
    with pytest.raises(errors.ProtocolError, match=complaint):
        mtree.parse(text)


@given(st.lists(st.sampled_from([*TEXT.splitlines(), " KVM", "  ", "(prio 0, ram): x", "\0", "@" * 600])))
def test_a_list_of_ranges_or_a_protocol_error(lines: list[str]) -> None:
    try:
        ranges = mtree.parse("\n".join(lines))
    except errors.ProtocolError:
        return
    ends = [each.gpa + each.nbytes for each in ranges]
    assert all(end <= each.gpa for end, each in zip(ends, ranges[1:], strict=False))


def test_megabytes_of_nonsense_are_refused_quickly() -> None:
    """Nothing here may take time that grows faster than the text does (the test's own timeout would show it)."""
    for nonsense in (
        " " * (4 << 20),
        "\n" * (4 << 20),
        " owner:x" * (1 << 19),
        "FlatView #" + "1" * (4 << 20),
    ):
        with pytest.raises(errors.ProtocolError):
            mtree.parse("FlatView #0\n" + nonsense)
