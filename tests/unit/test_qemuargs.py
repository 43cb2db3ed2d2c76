"""What QEMU's command line tells."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sevkvm.host import qemuargs
from sevkvm.host.qemuargs import QemuArgs

QEMU = "/usr/bin/qemu-system-x86_64"
MIB, GIB = 1 << 20, 1 << 30


def parse(line: str, program: str = QEMU) -> QemuArgs:
    return qemuargs.parse([program, *line.split()])


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("q35", {"type": "q35"}),
        ("type=q35,accel=kvm", {"type": "q35", "accel": "kvm"}),
        ("accel=kvm,q35", {"accel": "kvm", "q35": "on"}),
        ("a,,b,path=c,,,,d,server,nowait", {"type": "a,b", "path": "c,,d", "server": "on", "wait": "off"}),
        ("x,size=4G=,empty=", {"type": "x", "size": "4G=", "empty": ""}),
        ("", {}),
    ],
)
def test_keyval(text: str, pairs: dict[str, str]) -> None:
    assert qemuargs.keyval(text, "type") == pairs


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (QEMU, True),
        ("qemu-kvm", True),
        ("/usr/libexec/qemu-kvm", True),
        ("qemu-system-x86_64-9.1", True),
        ("/opt/qemu-system-x86_64.real", True),
        ("qemu-img", False),
        ("cloud-hypervisor", False),
        ("", False),
    ],
)
def test_is_qemu(program: str, expected: bool) -> None:
    assert qemuargs.is_qemu([program]) is expected


def test_other_programs_tell_nothing() -> None:
    assert parse("-m 4G -qmp unix:/q,server", "firecracker") == QemuArgs()
    assert qemuargs.parse([]) == QemuArgs()


@pytest.mark.parametrize(
    ("line", "nbytes"),
    [
        ("", 128 * MIB),
        ("-m 512", 512 * MIB),
        ("-m 4G", 4 * GIB),
        ("-m 4g,slots=2,maxmem=8G", 4 * GIB),
        ("-m size=1048576k", GIB),
        ("-m 1T", 1024 * GIB),
        ("-m maxmem=8G,size=2048", 2 * GIB),
        ("-m 1.5G", None),
        ("-m x", None),
        ("-m 512 -readconfig vm.cfg", None),
        ("-machine q35,memory-backend=ram0", None),
        ("-m 1G -machine q35,memory-backend=ram0", GIB),
        ("--m 1G", GIB),
    ],
)
def test_ram(line: str, nbytes: int | None) -> None:
    assert parse(line).ram_nbytes == nbytes


@pytest.mark.parametrize(
    ("line", "machine"),
    [
        ("", "pc"),
        ("-M q35", "q35"),
        ("-machine pc-q35-7.2,accel=kvm", "pc-q35-7.2"),
        ("-machine accel=kvm -machine type=q35", "q35"),
        ("-machine accel=kvm", "pc"),
        ("-readconfig vm.cfg", None),
    ],
)
def test_machine(line: str, machine: str | None) -> None:
    assert parse(line).machine == machine


def test_the_default_machine_of_a_distribution_is_not_known() -> None:
    assert parse("-m 1G", "/usr/libexec/qemu-kvm").machine is None


def test_machine_options_add_up() -> None:
    args = parse("-machine q35,smm=off -machine memory-backend=ram0 -M max-ram-below-4g=1G")
    assert args.machine == "q35"
    assert args.machine_options == {"smm": "off", "memory-backend": "ram0", "max-ram-below-4g": "1G"}


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("-name web", "web"),
        ("-name guest=web,debug-threads=on", "web"),
        ("-name debug-threads=on", None),
        ("", None),
    ],
)
def test_name(line: str, name: str | None) -> None:
    assert parse(line).name == name


@pytest.mark.parametrize(
    ("line", "paths"),
    [
        ("-qmp unix:/run/q.sock,server=on,wait=off", ["/run/q.sock"]),
        ("-qmp unix:q.sock,server,nowait", ["q.sock"]),
        ("-qmp-pretty unix:/a,server -qmp unix:/b,server", ["/b", "/a"]),
        ("-qmp unix:path=/a,,b,server=on", ["/a,b"]),
        ("-qmp unix:/client", []),
        ("-qmp unix:/a,server=off", []),
        ("-qmp tcp:localhost:4444,server", []),
        ("-qmp stdio", []),
        ("-chardev socket,id=m,path=/m,server=on -mon chardev=m,mode=control", ["/m"]),
        ("-mon m,mode=control -chardev socket,path=/m,server,id=m", ["/m"]),
        ("-chardev socket,id=m,path=/m,server=on -qmp chardev:m", ["/m"]),
        ("-chardev socket,id=m,path=/m,server=on -mon chardev=m,mode=readline", []),
        ("-chardev socket,id=m,path=/m,server=on -mon chardev=m", []),
        ("-chardev socket,id=m,fd=21,server=on -mon chardev=m,mode=control", []),
        ("-chardev socket,id=m,path=m,abstract=on,server=on -mon chardev=m,mode=control", []),
        ("-chardev socket,id=serial,path=/s,server=on", []),
        ("-mon chardev=gone,mode=control -qmp", []),
    ],
)
def test_monitor_sockets(line: str, paths: list[str]) -> None:
    assert list(parse(line).monitor_sockets) == paths


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("-m 1G", False),
        ("-m 1G,slots=2,maxmem=4G", True),
        ("-m 1G -device pc-dimm,memdev=m", True),
        ("-device virtio-mem-pci,memdev=m", True),
        ("-device virtio-net-pci", False),
    ],
)
def test_more_ram(line: str, expected: bool) -> None:
    assert parse(line).more_ram is expected


@given(
    st.lists(
        st.one_of(
            st.text(),
            st.sampled_from(["-m", "-qmp", "-mon", "-chardev", "-M", "unix:,server", "socket,id=,server"]),
        )
    )
)
def test_any_command_line_is_survived(argv: list[str]) -> None:
    args = qemuargs.parse([QEMU, *argv])
    assert args.ram_nbytes is None or args.ram_nbytes >= 0
    assert all(args.monitor_sockets)
