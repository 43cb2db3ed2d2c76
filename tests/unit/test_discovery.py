"""Which VM is meant, on made-up hosts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sevkvm import errors
from sevkvm.host.discovery import VmInfo, find_vms, resolve
from tests.support.fakeproc import FakeProc

VCPU_MAPS = "7f0000000000-7f0000003000 rw-s 00000000 00:0f 12                 anon_inode:kvm-vcpu:0\n"


class Host(FakeProc):
    def find(self) -> list[VmInfo]:
        return find_vms(self.root, self.same_file)

    def resolve(self, pid: int | None = None, vm_fd: int | None = None) -> VmInfo:
        return resolve(pid, vm_fd, self.root, self.same_file)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = Host(tmp_path)
    host.process(1, comm="init")
    return host


def qemu(host: Host, pid: int, vm: str, *, vm_fd: int = 11, vcpus: int = 2, **more: object) -> None:
    fds = {vm_fd: f"vm:{vm}", **{vm_fd + 4 + index: f"vcpu:{vm}:{index}" for index in range(vcpus)}}
    argv = ["qemu-system-x86_64", "-name", f"guest={vm},debug-threads=on"]
    host.process(pid, comm="qemu-system-x86", argv=argv, fds=fds, maps=VCPU_MAPS, uid=107, **more)  # type: ignore[arg-type]


def test_an_ordinary_qemu(host: Host) -> None:
    qemu(host, 50, "web")
    assert host.find() == [
        VmInfo(
            pid=50,
            vm_fd=11,
            vm_fds=(11,),
            vcpu_fds={0: 15, 1: 16},
            vcpus_ambiguous=False,
            has_sev_device=False,
            name="web",
            comm="qemu-system-x86",
            uid=107,
        )
    ]
    assert host.resolve() == host.resolve(50) == host.resolve(50, 11) == host.find()[0]


def test_other_vmms_go_by_their_name_and_sev_shows(host: Host) -> None:
    host.process(60, comm="cloud-hyper\x1b[2J", fds={5: "vm:A", 6: "/dev/sev"})
    (vm,) = host.find()
    assert (vm.name, vm.has_sev_device, vm.vcpu_fds) == ("cloud-hyper?[2J", True, {})


def test_no_vm_at_all(host: Host) -> None:
    assert host.find() == []
    with pytest.raises(errors.VmNotFound, match="no KVM VM") as caught:
        host.resolve()
    assert caught.value.help is not None
    assert "sevkvm list" in caught.value.help
    with pytest.raises(errors.VmNotFound, match="process 1 has no KVM VM"):
        host.resolve(1)
    with pytest.raises(errors.VmNotFound, match="no process 2"):
        host.resolve(2)


def test_several_vms_must_be_chosen_from(host: Host) -> None:
    for pid in range(50, 61):
        qemu(host, pid, f"guest{pid}")
    with pytest.raises(errors.VmNotFound, match=r"11 VMs: pid 50 fd 11 \(guest50\), .* and 3 more"):
        host.resolve()
    assert host.resolve(55).name == "guest55"


def test_a_wrong_descriptor_is_told_the_right_ones(host: Host) -> None:
    qemu(host, 50, "web")
    with pytest.raises(errors.VmNotFound, match="descriptor 15 of process 50 is not a KVM VM") as caught:
        host.resolve(50, 15)
    assert caught.value.help == "its VM descriptors: 11"


def test_one_vm_open_twice_in_a_process_is_one_vm(host: Host) -> None:
    host.process(50, fds={11: "vm:A", 12: "vm:A", 20: "vcpu:A:0", 21: "vcpu:A:0"}, maps=VCPU_MAPS)
    (vm,) = host.find()
    assert (vm.vm_fd, vm.vm_fds, vm.vcpu_fds, vm.vcpus_ambiguous) == (11, (11, 12), {0: 20}, False)
    assert host.resolve(50) == vm
    assert host.resolve(50, 12).vm_fd == 12


def test_two_vms_in_a_process_make_vcpus_ambiguous(host: Host) -> None:
    host.process(50, fds={11: "vm:A", 12: "vm:B", 20: "vcpu:A:0", 21: "vcpu:B:0"}, maps=VCPU_MAPS)
    assert [(vm.vm_fd, vm.vcpus_ambiguous) for vm in host.find()] == [(11, True), (12, True)]
    with pytest.raises(errors.VmNotFound, match="has 2 VMs") as caught:
        host.resolve(50)
    assert caught.value.help == "choose one with --vm-fd; its VM descriptors: 11, 12"
    assert host.resolve(50, 12).vm_fds == (12,)


def test_vcpus_of_a_vm_that_is_closed_make_vcpus_ambiguous(host: Host) -> None:
    host.process(50, fds={11: "vm:B", 20: "vcpu:A:0", 21: "vcpu:B:0"}, maps=VCPU_MAPS)
    (vm,) = host.find()
    assert vm.vcpus_ambiguous


@pytest.mark.parametrize("child_has_vcpus", [False, True])
def test_the_parent_owns_what_its_child_inherited(host: Host, child_has_vcpus: bool) -> None:
    """A fork copies descriptors; until it executes something also the mappings."""
    qemu(host, 50, "web")
    fds = {11: "vm:web", **({15: "vcpu:web:0", 16: "vcpu:web:1"} if child_has_vcpus else {})}
    host.process(40, ppid=50, fds=fds, maps=VCPU_MAPS if child_has_vcpus else "", starttime=200)
    (vm,) = host.find()
    assert (vm.pid, vm.holders) == (50, (40,))


def test_who_maps_the_vcpus_owns_the_vm_whatever_the_family(host: Host) -> None:
    """A manager may have got the descriptor over a socket, and started the VMM."""
    host.process(40, comm="manager", fds={7: "vm:web"}, starttime=10)
    qemu(host, 50, "web", ppid=40)
    (vm,) = host.find()
    assert (vm.pid, vm.vm_fd, vm.holders) == (50, 11, (40,))


def test_processes_that_vanish_or_are_not_ours_to_see_are_skipped(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    qemu(host, 50, "web")
    (host.root / "51").mkdir()  # it has just ended
    qemu(host, 52, "secret")
    real = os.readlink

    def guarded(path: str) -> str:
        if "/52/" in path:
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "readlink", guarded)
    assert [vm.pid for vm in host.find()] == [50]
    with pytest.raises(errors.AttachError, match="process 52"):
        host.resolve(52)


def test_without_kcmp_equal_names_are_different_vms(host: Host) -> None:
    qemu(host, 50, "web")
    host.process(40, ppid=50, fds={11: "vm:web"})

    def refuse(pid1: int, fd1: int, pid2: int, fd2: int) -> bool:
        raise errors.AttachError("kcmp")

    assert [vm.pid for vm in find_vms(host.root, refuse)] == [40, 50]


def test_a_thread_id_names_its_process(host: Host) -> None:
    qemu(host, 50, "web")
    (host.root / "51").mkdir()
    (host.root / "51/status").write_text("Name:\tCPU 0/KVM\nTgid:\t50\nPid:\t51\n")
    assert host.resolve(51).pid == 50


class TestVmFdAlone:
    """``--vm-fd N`` without ``--pid``."""

    def ours(self, host: Host, ppid: int, fds: dict[int, str], maps: str = "") -> None:
        host.process(os.getpid(), comm="sevkvm", ppid=ppid, fds=fds, maps=maps, starttime=900)

    def test_an_inherited_descriptor_leads_to_its_owner(self, host: Host) -> None:
        qemu(host, 50, "web")
        qemu(host, 51, "db")
        host.process(60, comm="sh", ppid=51, fds={9: "vm:db"})
        self.ours(host, 60, {9: "vm:db", 10: "vm:web"})
        assert (host.resolve(None, 9).pid, host.resolve(None, 9).vm_fd) == (51, 11)
        assert host.resolve(None, 10).pid == 50

    def test_we_may_be_the_vmm_ourselves(self, host: Host) -> None:
        self.ours(host, 1, {9: "vm:own", 10: "vcpu:own:0"}, VCPU_MAPS)
        assert host.resolve(None, 9).pid == os.getpid()

    def test_a_vm_without_vcpus_belongs_to_our_ancestor(self, host: Host) -> None:
        host.process(50, fds={4: "vm:young"})
        self.ours(host, 50, {4: "vm:young"})
        assert host.resolve(None, 4).pid == 50

    def test_unrelated_candidates_are_listed(self, host: Host) -> None:
        host.process(50, fds={4: "vm:young"}, starttime=20)
        host.process(51, fds={5: "vm:young"}, starttime=10)
        self.ours(host, 50, {4: "vm:young"})
        with pytest.raises(errors.VmNotFound, match="may own the VM: 51, 50") as caught:
            host.resolve(None, 4)
        assert caught.value.help is not None
        assert "--pid" in caught.value.help

    def test_a_number_that_one_vm_of_the_host_has(self, host: Host) -> None:
        qemu(host, 50, "web", vm_fd=11)
        qemu(host, 51, "db", vm_fd=12)
        self.ours(host, 1, {11: "/some/file"})
        assert host.resolve(None, 12).pid == 51
        assert host.resolve(None, 11).pid == 50
        with pytest.raises(
            errors.VmNotFound, match="our own descriptor 3 is not a KVM VM, and the host has 2"
        ):
            host.resolve(None, 3)

    def test_the_only_vm_of_the_host(self, host: Host) -> None:
        qemu(host, 50, "web", vm_fd=11)
        self.ours(host, 1, {})
        assert (host.resolve(None, 3).pid, host.resolve(None, 3).vm_fd) == (50, 11)
