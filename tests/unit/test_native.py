"""The C core's face: statuses become exceptions; memory is copied with exact counts."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sevkvm import errors, native
from sevkvm._native import lib
from sevkvm.native import NativeFailure, Status

PAGE = mmap.PAGESIZE

EXPECTED = {
    Status.OS: errors.SevKvmError,
    Status.NO_PROCESS: errors.TargetGone,
    Status.PERMISSION: errors.AttachError,
    Status.TRACED: errors.AttachError,
    Status.TIMEOUT: errors.TargetTimeout,
    Status.NO_GADGET: errors.AttachError,
    Status.UNSUPPORTED: errors.AttachError,
    Status.WRONG_THREAD: errors.SevKvmError,
    Status.BUSY: errors.SevKvmError,
    Status.LOST: errors.TargetGone,
    Status.FAULT: errors.MemoryFault,
    Status.INVALID: errors.SevKvmError,
    Status.SANDBOX: errors.AttachError,
}


def test_python_and_c_know_the_same_statuses() -> None:
    assert len(Status) == lib.SK_STATUS_COUNT
    for status in Status:
        prefix = "SK_" if status is Status.OK else "SK_ERR_"
        assert native.status_name(status) == prefix + status.name


def test_a_status_past_the_last_one_has_no_name() -> None:
    assert native.status_name(len(Status)) == "?"


def test_every_failure_has_an_expected_exception() -> None:
    assert EXPECTED.keys() == set(Status) - {Status.OK}


@pytest.mark.parametrize(("status", "kind"), EXPECTED.items(), ids=lambda each: getattr(each, "name", ""))
def test_a_status_becomes_its_exception(status: Status, kind: type[errors.SevKvmError]) -> None:
    failure = NativeFailure(status, errno.EIO, 0x7F0000001000, "poke it")
    error = native.exception_for(failure, pid=42)
    assert type(error) is kind
    assert "poke it" in str(error)
    assert getattr(error, "pid", 42) == 42
    if isinstance(error, errors.MemoryFault):
        assert (error.space, error.address) == ("hva", 0x7F0000001000)
    else:
        assert os.strerror(errno.EIO) in str(error)


def test_only_statuses_a_user_can_act_on_carry_help() -> None:
    silent = {
        status for status in EXPECTED if native.exception_for(NativeFailure(status, 0, 0, "x")).help is None
    }
    assert silent == {Status.OS, Status.WRONG_THREAD, Status.BUSY, Status.FAULT, Status.INVALID}


@pytest.fixture
def two_pages() -> mmap.mmap:
    """Two pages of our own, filled with 0xa5."""
    area = mmap.mmap(-1, 2 * PAGE)
    area[:] = b"\xa5" * (2 * PAGE)
    return area


def unreadable_after(nbytes: int) -> tuple[mmap.mmap, int]:
    """A mapping of ours whose bytes from ``nbytes`` on raise SIGBUS or EFAULT: a file shorter than its map."""
    fd = os.memfd_create("short")
    os.ftruncate(fd, 4 * PAGE)
    area = mmap.mmap(fd, 4 * PAGE)
    area[:nbytes] = b"\xa5" * nbytes
    os.ftruncate(fd, nbytes)
    os.close(fd)
    return area, native.address_of(area)


def test_read_returns_our_own_bytes(two_pages: mmap.mmap) -> None:
    two_pages[100:105] = b"hello"
    assert native.read(os.getpid(), native.address_of(two_pages) + 100, 5) == b"hello"


def test_read_into_counts_up_to_the_first_unreadable_byte() -> None:
    area, hva = unreadable_after(2 * PAGE)
    buffer = bytearray(4 * PAGE)
    assert native.read_into(os.getpid(), hva + 10, buffer) == 2 * PAGE - 10
    assert buffer == b"\xa5" * (2 * PAGE - 10) + bytes(2 * PAGE + 10)
    area.close()


def test_read_into_of_nothing_readable_is_zero() -> None:
    area, hva = unreadable_after(PAGE)
    assert native.read_into(os.getpid(), hva + PAGE, bytearray(16)) == 0
    area.close()


def test_read_into_part_of_a_buffer_leaves_the_rest(two_pages: mmap.mmap) -> None:
    buffer = bytearray(48)
    assert native.read_into(os.getpid(), native.address_of(two_pages), memoryview(buffer)[16:32]) == 16
    assert buffer == bytes(16) + b"\xa5" * 16 + bytes(16)


def test_read_into_an_empty_buffer(two_pages: mmap.mmap) -> None:
    assert native.read_into(os.getpid(), native.address_of(two_pages), bytearray()) == 0


@pytest.mark.parametrize("function", ["sk_read", "sk_write"])
def test_a_signal_in_a_copy_leaves_no_buffer_borrowed(monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    """Its traceback may live until the interpreter ends, which crashes on a memoryview that is still borrowed."""

    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(native, "lib", SimpleNamespace(**{function: interrupted}))
    view = memoryview(bytearray(PAGE))
    copy = native.read_into if function == "sk_read" else native.write
    with pytest.raises(KeyboardInterrupt) as caught:
        copy(os.getpid(), 0, view)
    assert caught.tb is not None
    view.release()  # BufferError if the frames of the traceback have an export of it


def test_a_short_exact_read_names_the_first_unreadable_byte() -> None:
    area, hva = unreadable_after(PAGE)
    with pytest.raises(errors.MemoryFault) as caught:
        native.read(os.getpid(), hva, 2 * PAGE)
    assert caught.value.address == hva + PAGE
    area.close()


def test_pages_come_in_the_order_asked_for_and_none_for_those_that_cannot_be_read() -> None:
    area, hva = unreadable_after(2 * PAGE)
    area[PAGE : 2 * PAGE] = b"\x5a" * PAGE
    pages = native.read_pages(os.getpid(), [hva + PAGE, 0, hva, hva + 2 * PAGE, hva + PAGE])
    assert pages == [b"\x5a" * PAGE, None, b"\xa5" * PAGE, None, b"\x5a" * PAGE]
    assert native.read_pages(os.getpid(), []) == []
    area.close()


def test_write_changes_memory(two_pages: mmap.mmap) -> None:
    native.write(os.getpid(), native.address_of(two_pages) + PAGE - 2, b"span")
    assert two_pages[PAGE - 2 : PAGE + 2] == b"span"


def test_write_respects_page_protection() -> None:
    area = mmap.mmap(-1, PAGE, prot=mmap.PROT_READ)
    hva = native.address_of(area)
    with pytest.raises(errors.MemoryFault) as caught:
        native.write(os.getpid(), hva, b"x")
    assert caught.value.address == hva
    assert area[0] == 0


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait(timeout=30)
    return child.pid


def test_memory_of_a_process_that_ended_is_gone() -> None:
    pid = dead_pid()
    with pytest.raises(errors.TargetGone) as caught:
        native.read_into(pid, 0x1000, bytearray(1))
    assert caught.value.pid == pid


def test_same_file_tells_equal_files_from_equal_names(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    with open(path) as first, open(path) as second:
        copy = os.dup(first.fileno())
        pid = os.getpid()
        try:
            assert native.same_file(pid, first.fileno(), pid, copy)
            assert not native.same_file(pid, first.fileno(), pid, second.fileno())
        finally:
            os.close(copy)


def test_same_file_of_a_closed_descriptor_fails() -> None:
    with pytest.raises(errors.SevKvmError, match="Bad file descriptor"):
        native.same_file(os.getpid(), 1 << 20, os.getpid(), 1 << 20)


def test_same_memory_is_a_thread_but_not_a_child() -> None:
    assert native.same_memory(os.getpid(), os.getpid())
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert not native.same_memory(os.getpid(), child.pid)
    finally:
        child.communicate(b"\n", timeout=30)


def test_cpuid_names_a_known_vendor() -> None:
    highest, ebx, ecx, edx = native.cpuid(0)
    vendor = b"".join(part.to_bytes(4, "little") for part in (ebx, edx, ecx))
    assert highest >= 1
    assert vendor.decode() in Path("/proc/cpuinfo").read_text()


def test_cpuid_of_a_leaf_that_does_not_exist_is_zero() -> None:
    assert native.cpuid(0x8FFFFFFF) == (0, 0, 0, 0)


def test_ioctl_gives_the_kernels_answer_or_minus_errno() -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, b"12345")
        answer = mmap.mmap(-1, PAGE)
        fionread = 0x541B
        assert native.ioctl(reader, fionread, native.address_of(answer)) == 0
        assert answer[0] == 5
        assert native.ioctl(reader, fionread, 0x10) == -errno.EFAULT
        assert native.ioctl(1 << 20, fionread) == -errno.EBADF
    finally:
        os.close(reader)
        os.close(writer)


@given(st.integers(0, 4095), st.integers(1, 255))
def test_page_digests_know_equal_pages_and_no_others(at: int, change: int) -> None:
    key = bytes(range(256)) * (native.PAGE_DIGEST_KEY_NBYTES // 256) + bytes(
        native.PAGE_DIGEST_KEY_NBYTES % 256
    )
    page, other = bytes(range(256)) * 16, bytearray(range(256)) * 16
    other[at] ^= change
    digests = native.page_digests(key, page + bytes(other) + page)
    first, second, third = (digests[16 * n : 16 * n + 16] for n in range(3))
    assert first == third != second


def test_page_digests_refuse_parts_of_pages_and_other_keys() -> None:
    key = bytes(native.PAGE_DIGEST_KEY_NBYTES)
    assert native.page_digests(key, b"") == b""
    for bad_key, pages in ((key, bytes(4095)), (key[1:], bytes(4096)), (key + b"x", bytes(4096))):
        with pytest.raises(ValueError, match="not whole pages"):
            native.page_digests(bad_key, pages)


def test_zero_runs_leave_a_part_of_a_page_alone() -> None:
    data, zero = b"\0" * 4095 + b"\1", bytes(4096)
    assert native.zero_runs(data * 2 + zero * 3 + data + b"rest") == [2, 3, 1]
    assert native.zero_runs(zero) == [0, 1]
    assert native.zero_runs(memoryview(bytearray(5000))[1:]) == [0, 1]
    assert native.zero_runs(b"") == native.zero_runs(bytes(4095)) == []
