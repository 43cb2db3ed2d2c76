"""Guest RAM in every kind of mapping, and what happens to mappings while a guest lives in them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sevkvm.shim.supervisor import SevHost
from tests.support.sevhost import require_kvm_mode
from tests.support.sevprog import run

pytestmark = pytest.mark.host

KINDS = {
    "anonymous": "pages(RAM)",
    "shared-anonymous": "pages(RAM, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)",
    "memfd": "pages(RAM, sized(os.memfd_create('ram')), mmap.MAP_SHARED)",
    "file": "pages(RAM, sized(os.open('/tmp', os.O_TMPFILE | os.O_RDWR)), mmap.MAP_SHARED)",
    "private-file": "pages(RAM, sized(os.open('/tmp', os.O_TMPFILE | os.O_RDWR)), mmap.MAP_PRIVATE)",
}
SIZED = """
def sized(fd):
    os.ftruncate(fd, RAM)
    return fd
"""


@pytest.fixture(params=["real", "standin"], scope="module")
def host(request: pytest.FixtureRequest) -> Iterator[SevHost]:
    require_kvm_mode(request.param)
    with SevHost(kvm=request.param) as host:
        yield host


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_guest_in_it_survives_a_fork(host: SevHost, kind: str) -> None:
    out = run(
        host,
        f"""
        {SIZED.replace(chr(10), chr(10) + "        ")}
        vm = launch(ram={kind})
        def check(what):
            results = [vm.decrypt(vm.hva, vm.out_hva, RAM)[0]]
            results.append(vm.out[:RAM] == wanted)
            vm.out[:16] = what
            results.append(vm.encrypt(vm.out_hva, vm.hva + 4096, 16)[0])
            wanted[4096 : 4096 + 16] = what
            return results
        wanted = bytearray(b"plain text 16 b\\n" * (RAM // 16))
        before = check(b"before the fork.")
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(reader, 1)
            os._exit(0)
        during = check(b"while it lives..")
        os.write(writer, b"x")
        os.waitpid(child, 0)
        say(before=before, during=during, after=check(b"after its end..."), last=check(b"and once more..."))
        """,
    )
    assert out == {key: [0, True, 0] for key in ("before", "during", "after", "last")}


def test_two_processes_see_the_same_ciphertext_in_shared_memory(host: SevHost) -> None:
    out = run(
        host,
        f"""
        {SIZED.replace(chr(10), chr(10) + "        ")}
        fd = sized(os.memfd_create("ram"))
        vm = launch(ram=pages(RAM, fd, mmap.MAP_SHARED))
        child = os.fork()
        if child == 0:
            theirs = pages(RAM, fd, mmap.MAP_SHARED)
            same = theirs[:] == vm.ram[:]
            theirs[64:128] = theirs[0:64]  # a VMM that moves ciphertext about
            os._exit(0 if same else 1)
        status = os.waitpid(child, 0)[1]
        vm.decrypt(vm.hva, vm.out_hva, RAM)
        say(status=status, whole=vm.out[:64].decode(), moved=b"plain" in vm.out[64:128])
        """,
    )
    assert out == {"status": 0, "whole": "plain text 16 b\n" * 4, "moved": False}


def test_a_new_guest_at_the_same_addresses_has_a_new_key(host: SevHost) -> None:
    out = run(
        host,
        """
        ram = pages(RAM)
        first = launch(ram=ram)
        old = bytes(ram)
        first.close()
        second = launch(ram=ram)
        new = bytes(ram)
        ram[:] = old
        second.decrypt(second.hva, second.out_hva, RAM)
        say(same=old == new, readable=b"plain" in second.out[:])
        """,
    )
    assert out == {"same": False, "readable": False}
