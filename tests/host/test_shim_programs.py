"""Programs on a pretend SEV host, speaking raw ioctls: what they see is what a real one would show."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator

import pytest

from sevkvm.abi import sev
from sevkvm.shim.supervisor import SevHost
from tests.support.build import ROOT
from tests.support.sevhost import require_kvm_mode
from tests.support.sevprog import program, run

pytestmark = pytest.mark.host

EIO, ENOMEM, EBADF, ENOTTY = -errno.EIO, -errno.ENOMEM, -errno.EBADF, -errno.ENOTTY
UNTOUCHED = sev.SEV_RET_NO_FW_CALL


@pytest.fixture(params=["real", "standin"], scope="module")
def host(request: pytest.FixtureRequest) -> Iterator[SevHost]:
    require_kvm_mode(request.param)
    with SevHost(kvm=request.param) as host:
        yield host


def test_a_launched_guest_is_ciphertext_that_debug_decrypts(host: SevHost) -> None:
    out = run(
        host,
        """
        vm = launch()
        stored = bytes(vm.ram)
        blocks = {stored[a : a + 16] for a in range(0, RAM, 16)}
        result = vm.decrypt(vm.hva, vm.out_hva, RAM)[:2]
        say(status=vm.status(), blocks=len(blocks), plain=b"plain" in stored, result=result,
            decrypted=bytes(vm.out) == b"plain text 16 b\\n" * (RAM // 16))
        """,
    )
    assert out["status"][1:] == [0, sev.GuestState.RUNNING]
    assert out["blocks"] == 4 * 256  # no two blocks alike, though the plaintexts are
    assert not out["plain"]
    assert out["result"] == [0, 0]
    assert out["decrypted"]


def test_what_debug_encrypts_the_guest_reads(host: SevHost) -> None:
    out = run(
        host,
        """
        vm = launch()
        vm.out[:64] = b"N" * 64
        first = vm.encrypt(vm.out_hva, vm.hva + 4096 + 32, 64)[:2]
        unaligned = vm.encrypt(vm.out_hva, vm.hva + 2 * 4096 - 3, 7)[:2]
        vm.decrypt(vm.hva + 4096, vm.out_hva, 2 * 4096)
        say(first=first, unaligned=unaligned, text=vm.out[: 2 * 4096].decode())
        """,
    )
    line = "plain text 16 b\n"
    wanted = bytearray((line * 512).encode())
    wanted[32:96] = b"N" * 64
    wanted[4093:4100] = b"N" * 7
    assert out["first"] == out["unaligned"] == [0, 0]
    assert out["text"].encode() == wanted


def test_every_mapping_of_the_same_memory_agrees(host: SevHost) -> None:
    out = run(
        host,
        """
        fd = os.memfd_create("ram")
        os.ftruncate(fd, RAM)
        shared = pages(RAM, fd, mmap.MAP_SHARED)
        vm = launch(ram=shared)
        alias = pages(RAM, fd, mmap.MAP_SHARED)
        vm.decrypt(hva(alias) + 16, vm.out_hva + 16, 32)
        through_alias = vm.out[16:48].decode()
        copy = pages(RAM)
        copy[:] = shared[:]
        vm.decrypt(hva(copy), vm.out_hva, RAM)
        say(through_alias=through_alias, moved=b"plain" in bytes(vm.out))
        """,
    )
    assert out == {"through_alias": "plain text 16 b\n" * 2, "moved": False}


def test_the_vm_belongs_to_one_address_space(host: SevHost) -> None:
    out = run(
        host,
        """
        vm = launch()
        vcpu = vm.vcpu()
        def threads_view():
            say(thread=vm.status()[2])
        thread = threading.Thread(target=threads_view)
        thread.start()
        thread.join()
        child = os.fork()
        if child == 0:
            registers = bytearray(144)
            say(child=vm.status(), child_vcpu=ioctl(vcpu, 0x8090AE81, hva(registers)))
            say(child_region=ioctl(vm.fd, 0x8010AEBB, hva(bytearray(16))))
            own = Vm()
            say(own=own.op(0)[:2], still=vm.status())
            os._exit(0)
        os.waitpid(child, 0)
        say(parent=vm.status()[2])
        """,
    )
    assert out["thread"] == out["parent"] == sev.GuestState.RUNNING
    assert out["child"] == out["still"] == [EIO, UNTOUCHED]
    assert out["child_vcpu"] == out["child_region"] == EIO
    assert out["own"] == [0, UNTOUCHED]


def test_after_exec_the_same_process_has_lost_its_vm(host: SevHost) -> None:
    out = run(
        host,
        """
        vm = launch()
        for fd in (vm.fd, vm.sev):
            os.set_inheritable(fd, True)
        os.execv(sys.executable, [sys.executable, "-I", "-c", sys.argv[1], str(vm.fd)])
        """,
        program("say(result=op(int(sys.argv[1]), 16, bytes(12))[:2])"),
    )
    assert out["result"] == [EIO, UNTOUCHED]


def test_a_shared_address_space_is_enough(host: SevHost) -> None:
    out = run(
        host,
        """
        vm = launch()
        room = bytearray(12)
        cmd = bytearray(struct.pack("<I4xQII", 16, hva(room), NONE, 0))
        # a child that shares our memory but is a process of its own
        CLONE_VM, CLONE_VFORK = 0x100, 0x4000
        stack = pages(1 << 16)
        entry = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(
            lambda _: min(-ioctl(vm.fd, 0xC008AEBA, hva(cmd)), 99))
        child = libc.clone(entry, ctypes.c_void_p(hva(stack) + (1 << 16)),
                           CLONE_VM | CLONE_VFORK | signal.SIGCHLD, None)
        say(result=os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), state=struct.unpack("<III", room)[2])
        """,
    )
    assert out == {"result": 0, "state": sev.GuestState.RUNNING}


def test_memory_that_cannot_be_pinned(host: SevHost) -> None:
    out = run(
        host,
        """
        vm = launch()
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
        area = libc.mmap(None, 3 * 4096, 3, 0x22, -1, 0)
        libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        libc.munmap(area + 4096, 2 * 4096)
        frozen = libc.mmap(None, 4096, 1, 0x22, -1, 0)
        say(read_only=vm.decrypt(vm.hva, frozen, 16)[:2],
            read_only_launch=vm.op(3, struct.pack("<QI4x", frozen, 4096))[:2],
            unmapped=vm.decrypt(vm.hva, area + 4096, 16)[:2],
            partly=vm.decrypt(vm.hva, area, 2 * 4096)[:2],
            done=ctypes.string_at(area, 16).decode(),
            bad_struct=vm.op(17, b"")[:2],
            bad_command=ioctl(vm.fd, 0xC008AEBA, 0x10))
        """,
    )
    assert out["read_only"] == [ENOMEM, UNTOUCHED]
    assert out["read_only_launch"] == [ENOMEM, UNTOUCHED]
    assert out["unmapped"] == [ENOMEM, UNTOUCHED]
    assert out["partly"] == [ENOMEM, 0]  # the firmware had done the first page
    assert out["done"] == "plain text 16 b\n"
    assert out["bad_struct"] == [-errno.EFAULT, UNTOUCHED]
    assert out["bad_command"] == -errno.EFAULT


def test_the_recorded_sev_descriptor_number_counts(host: SevHost) -> None:
    out = run(
        host,
        """
        vm = launch()
        other = os.open("/dev/sev", os.O_RDONLY)
        os.close(vm.sev)
        say(closed=vm.status())
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, vm.sev)
        say(not_sev=vm.status())
        os.dup2(other, vm.sev)
        say(again=vm.status()[2], ignored=vm.op(16, bytes(12), sev_fd=12345)[0])
        before = Vm()
        before.op(0)
        say(before=before.status())
        """,
    )
    assert out["closed"] == out["not_sev"] == out["before"] == [EBADF, UNTOUCHED]
    assert out["again"] == sev.GuestState.RUNNING
    assert out["ignored"] == 0


def test_several_guests_at_once_and_handles_that_come_back(host: SevHost) -> None:
    out = run(
        host,
        """
        one, two = launch(), launch(text=b"the second one.\\n")
        guests = lambda: struct.unpack("<BBBIBI", platform(one.sev)[2])[5]
        one.decrypt(one.hva, one.out_hva, RAM)
        two.decrypt(two.hva, two.out_hva, RAM)
        say(texts=[one.out[:16].decode(), two.out[:16].decode()], handles=[one.handle, two.handle], full=guests())
        one.decrypt(two.hva, one.out_hva, RAM)
        say(wrong_key=b"second" in bytes(one.out))
        two.close()
        say(left=guests(), third=launch().handle)
        """,
    )
    assert out["texts"] == ["plain text 16 b\n", "the second one.\n"]
    assert out["handles"][1] == out["handles"][0] + 1 == out["third"]
    assert out["left"] == out["full"] - 1
    assert not out["wrong_key"]


def test_a_vm_without_sev_says_so_and_the_probe_succeeds(host: SevHost) -> None:
    out = run(
        host,
        """
        vm = Vm()
        say(probe=ioctl(vm.fd, 0xC008AEBA, 0), sign_extended=ioctl(vm.fd, 0xFFFFFFFFC008AEBA, 0),
            status=vm.op(16, bytes(12))[:2], on_vcpu=op(vm.vcpu(), 16, bytes(12))[:2])
        """,
    )
    assert out["probe"] == out["sign_extended"] == 0
    assert out["status"] == [ENOTTY, UNTOUCHED]
    assert out["on_vcpu"][0] in (ENOTTY, -errno.EINVAL)


def test_the_device_and_its_opens(host: SevHost) -> None:
    out = run(
        host,
        """
        libc.syscall.restype = ctypes.c_long
        path = ctypes.c_char_p(b"/dev/sev")
        how = bytearray(struct.pack("<QQQ", os.O_RDWR | os.O_CLOEXEC, 0, 0))
        opens = [libc.syscall(ctypes.c_long(2), path, os.O_RDONLY), libc.open(path, os.O_RDWR),
                 libc.syscall(ctypes.c_long(437), -100, path, ctypes.c_void_p(hva(how)), ctypes.c_size_t(24))]
        say(links=[os.readlink(f"/proc/self/fd/{fd}") for fd in opens],
            by_pid=os.readlink(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/fd/{opens[0]}"),
            cloexec=[os.get_inheritable(fd) for fd in opens],
            status=[platform(fd)[:2] for fd in opens],
            reset=[platform(fd, 0)[0] for fd in opens],
            other=os.path.exists("/dev/sev2"), null=os.readlink(f"/proc/self/fd/{os.open('/dev/null', 0)}"))
        """,
    )
    assert out["links"] == ["/dev/sev"] * 3
    assert out["by_pid"] == "/dev/sev"
    assert out["cloexec"] == [True, True, False]
    assert out["status"] == [[0, 0]] * 3
    assert out["reset"] == [-errno.EPERM, 0, 0]
    assert out["null"] == "/dev/null"


def test_kvm_tells_of_the_encryption_leaf(host: SevHost) -> None:
    out = run(
        host,
        """
        kvm = os.open("/dev/kvm", os.O_RDWR)
        data = bytearray(8 + 40 * 256)
        struct.pack_into("<I", data, 0, 256)
        result = ioctl(kvm, 0xC008AE05, hva(data))
        count = struct.unpack_from("<I", data)[0]
        entries = [struct.unpack_from("<7I", data, 8 + 40 * i) for i in range(count)]
        struct.pack_into("<I", data, 0, 1)
        say(result=result, leaf=[e for e in entries if e[0] == 0x8000001F], short=ioctl(kvm, 0xC008AE05, hva(data)),
            top=[e[3] for e in entries if e[0] == 0x80000000])
        """,
    )
    ((_, _, _, eax, ebx, _, _),) = out["leaf"]
    assert eax & (sev.CPUID_EAX_SEV | sev.CPUID_EAX_SEV_ES) == sev.CPUID_EAX_SEV | sev.CPUID_EAX_SEV_ES
    assert ebx & sev.CPUID_EBX_CBIT_MASK == 51
    assert out["result"] == 0
    assert out["short"] == -errno.E2BIG
    assert out["top"][0] >= 0x8000001F


def test_popen_tells_what_cannot_be_executed(host: SevHost) -> None:
    with pytest.raises(FileNotFoundError):
        host.popen(["/nonexistent/program"])
    with pytest.raises(PermissionError):
        host.popen(["/etc/passwd"])
    with pytest.raises(TypeError, match="shell"):
        host.popen(["true"], shell=True)


def test_hosts_do_not_nest(host: SevHost) -> None:
    nested = "from sevkvm.shim.supervisor import SevHost\nSevHost(kvm='standin').popen(['true'])"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = host.popen([sys.executable, "-c", nested], env=environment, stderr=-1, text=True)
    _, complaint = process.communicate(timeout=20)
    assert process.returncode != 0
    assert "AlreadySupervised" in complaint
