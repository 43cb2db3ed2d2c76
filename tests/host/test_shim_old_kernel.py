"""Old and new kernels, and what a process may lock, through the supervisor."""

from __future__ import annotations

import errno
import resource
import signal
from collections.abc import Iterator

import pytest

from sevkvm.shim.supervisor import SevHost
from tests.support.sevhost import require_kvm_mode
from tests.support.sevprog import run, start

pytestmark = pytest.mark.host


@pytest.fixture(params=["real", "standin"], scope="module")
def old_host(request: pytest.FixtureRequest) -> Iterator[SevHost]:
    require_kvm_mode(request.param)
    with SevHost(kvm=request.param, generation="old") as host:
        yield host


def test_page_overflow_in_private_and_file_mappings(old_host: SevHost) -> None:
    out = run(
        old_host,
        """
        vm = launch()
        fd = os.memfd_create("out")
        os.ftruncate(fd, RAM)
        assert vm.decrypt(vm.hva, vm.out_hva, RAM)[0] == 0
        text = vm.out[:64]
        for area in (vm.out, pages(RAM, fd, mmap.MAP_SHARED)):
            area[:] = bytes(RAM)
            say(result=vm.decrypt(vm.hva, hva(area) + 2 * 4096 - 32, 64)[0],
                right=area[2 * 4096 - 32:2 * 4096] == text[:32], missing=not any(area[2 * 4096:]),
                hit=area[:32] == text[32:])
        """,
    )
    assert out == {"result": 0, "right": True, "missing": True, "hit": True}
    assert any("page overflow" in note for record in old_host.log.records for note in record.notes)


def test_a_kernel_heap_overflow_is_not_survived(old_host: SevHost, capfd: pytest.CaptureFixture[str]) -> None:
    process = start(old_host, "vm = launch()\nvm.encrypt(vm.out_hva, vm.hva + 8, 4096)\nsay(alive=1)")
    out, _ = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGKILL
    assert out == ""
    assert "heap overflow" in capfd.readouterr().err


def test_what_an_ordinary_user_may_lock() -> None:
    require_kvm_mode("standin")
    if 0 <= resource.getrlimit(resource.RLIMIT_MEMLOCK)[1] < 7 * 4096:
        pytest.skip("this user may not lock seven pages")
    with SevHost(kvm="standin") as host:
        out = run(
            host,
            """
            import resource
            if os.geteuid() == 0:
                os.setuid(65534)
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (7 * 4096, 7 * 4096))
            vm = launch()  # four pages
            def region(nbytes):
                what = bytearray(struct.pack("<QQ", vm.hva, nbytes))
                return ioctl(vm.fd, 0x8010AEBB, hva(what))
            big = pages(8 * 4096)
            say(big=vm.op(3, struct.pack("<QI4x", hva(big), 8 * 4096))[:2], four=region(4 * 4096), more=region(RAM),
                decrypt=vm.decrypt(vm.hva, vm.out_hva, RAM)[0], two=region(2 * 4096),
                none_left=vm.decrypt(vm.hva, vm.out_hva, RAM)[:2])
            """,
        )
    assert out == {
        "big": [-errno.ENOMEM, 0xFFFFFFFF],
        "four": 0,
        "more": -errno.ENOMEM,
        "decrypt": 0,
        "two": 0,
        "none_left": [-errno.ENOMEM, 0xFFFFFFFF],
    }
