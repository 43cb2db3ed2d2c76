from __future__ import annotations

from sevkvm.lab import cpio


def test_a_file_is_laid_out_as_the_kernel_reads_it() -> None:
    archive = cpio.archive([cpio.program("bin/a", b"hello")])
    assert archive == (
        b"070701"
        b"00000001"  # inode
        b"000081ED"  # regular file, 0755
        b"00000000" b"00000000"  # uid, gid
        b"00000001"  # links
        b"00000000"  # mtime
        b"00000005"  # size
        b"00000000" b"00000000"  # device that holds it
        b"00000000" b"00000000"  # device that it is
        b"00000006"  # name with its NUL
        b"00000000"  # checksum
        b"bin/a\0"  # header and name: 116 bytes
        b"hello\0\0\0"
        b"070701" b"00000002" b"00000000" b"00000000" b"00000000" b"00000001" b"00000000" b"00000000"
        b"00000000" b"00000000" b"00000000" b"00000000" b"0000000B" b"00000000"
        b"TRAILER!!!\0\0\0\0"
    )  # fmt: skip


def test_kinds_of_files() -> None:
    archive = cpio.archive([cpio.directory("dev"), cpio.character_device("dev/console", 5, 1)])
    directory, console = archive[:116], archive[116:]
    assert directory[14:22] == b"000041ED"
    assert directory[38:46] == b"00000002"  # a directory has two links
    assert console[14:22] == b"00002180"
    assert console[78:94] == b"0000000500000001"


def test_every_member_starts_at_a_multiple_of_four() -> None:
    names = ["x" * length for length in range(1, 9)]
    archive = cpio.archive([cpio.program(name, b"y" * index) for index, name in enumerate(names)])
    at, found = 0, []
    while at < len(archive):
        assert archive[at : at + 6] == b"070701"
        size, namesize = (int(archive[at + field : at + field + 8], 16) for field in (54, 94))
        found.append(archive[at + 110 : at + 110 + namesize - 1].decode())
        at = -(-(at + 110 + namesize) // 4) * 4
        at = -(-(at + size) // 4) * 4
    assert found == [*names, "TRAILER!!!"]
