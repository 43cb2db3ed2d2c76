"""Debian's gdb on an unmodified QEMU through `sevkvm gdbserver`: the guest's own count tells when it runs."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sevkvm.abi import kvm
from sevkvm.gdbserver.packet import frame
from sevkvm.host.deputy import Deputy
from tests.support.build import ROOT
from tests.support.counting import COUNT_GPA, LOOP, CountingGuest, counting_guest
from tests.support.gdb import GdbServer, gdb, gdb_argv, gdbserver, require_gdb
from tests.support.gdbclient import Client
from tests.support.killing import settle, shape
from tests.support.qemu import require_kvm_qemu

pytestmark = pytest.mark.kvm

RESET_CODE = "0xfffffff0"  # the ROM is there, too


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CountingGuest]:
    require_kvm_qemu()
    require_gdb()
    with counting_guest(tmp_path_factory.mktemp("counting"), cpus=2, sandbox=True) as guest:
        yield guest


def options(guest: CountingGuest) -> list[str]:
    return ["--pid", str(guest.vmm.pid), "--qmp", guest.vmm.qmp_path]


@pytest.fixture
def server(guest: CountingGuest, tmp_path: Path) -> Iterator[GdbServer]:
    before = settle(guest.vmm.pid, shape(guest.vmm.pid))
    with gdbserver(*options(guest), directory=tmp_path) as server:
        yield server
    assert settle(guest.vmm.pid, before) == before, "something of ours stayed in the VMM"
    assert guest.moves()
    assert "VM status: running" in guest.vmm.hmp("info status")


def test_the_guest_stands_while_gdb_looks_and_runs_on(guest: CountingGuest, server: GdbServer) -> None:
    assert guest.moves()
    show = f"x/2xw {COUNT_GPA:#x}"
    text = gdb(server.target, show, "info registers", "info threads", show, "detach")
    words = re.findall(rf"^{COUNT_GPA:#x}:\s+(0x[0-9a-f]+)", text, re.M)
    assert len(words) == 2, text
    assert words[0] == words[1]
    assert int(words[0], 16) <= guest.count
    registers = dict(re.findall(r"^(\w+) +(0x[0-9a-f]+)", text, re.M))
    assert int(registers["rip"], 16) in LOOP
    assert int(registers["cs"], 16) == 0
    assert "Thread 2 (vCPU 1)" in text
    assert "detached" in text
    assert guest.moves()


def test_continue_and_ctrl_c(guest: CountingGuest, server: GdbServer, tmp_path: Path) -> None:
    show = f"x/xw {COUNT_GPA:#x}"
    said = tmp_path / "said"
    argv = gdb_argv(server.target, show, "continue", show, "detach")
    with (
        said.open("wb") as out,
        subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out) as process,
    ):
        try:
            shown = wait_for(said, r"^0x500:\s+(0x[0-9a-f]+)")
            first = int(shown[1], 16)
            assert guest.moves()
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
        finally:
            process.kill()
    text = said.read_text()
    assert "SIGINT" in text
    counts = [int(word, 16) for word in re.findall(r"^0x500:\s+(0x[0-9a-f]+)", text, re.M)]
    assert len(counts) == 2, text
    assert counts[0] == first < counts[1]
    assert guest.moves()


def wait_for(path: Path, pattern: str) -> re.Match[str]:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        match = re.search(pattern, path.read_text(errors="replace"), re.M)
        if match:
            return match
        time.sleep(0.02)
    raise AssertionError(path.read_text(errors="replace"))


def test_what_is_refused_is_refused_in_words(guest: CountingGuest, server: GdbServer) -> None:
    text = gdb(
        server.target, "stepi", "set var $rax = 1", "set var *(int *)0x500 = 0", "hbreak *0x9000", "continue"
    )
    assert "the VMM would take the debug exit of a step for the guest's own" in text
    assert "registers are read-only" in text
    assert "Cannot access memory at address 0x500" in text
    assert "Cannot insert hardware breakpoint" in text or "Could not insert hardware breakpoint" in text
    assert guest.moves()
    assert "debug exit of a breakpoint" in server.stderr()
    assert "memory is read-only" in server.stderr()


def test_the_guest_acts_on_what_gdb_writes(guest: CountingGuest, tmp_path: Path) -> None:
    with gdbserver(*options(guest), "--write", directory=tmp_path) as server:
        gdb(server.target, "set var *(int *)0x500 = 0x70000000", "detach")
        assert guest.moves()
        assert 0x70000000 < guest.count < 0x7F000000
        text = gdb(
            server.target, "set var *(int *)0x500 = 7", f"set var *(int *){RESET_CODE} = 0", "x/xw 0x500"
        )
        assert re.search(r"^0x500:\s+0x00000007$", text, re.M), text
        assert f"Cannot access memory at address {RESET_CODE}" in text


def test_floating_point_and_vectors(guest: CountingGuest, server: GdbServer) -> None:
    text = gdb(server.target, "print/x $fctrl", "print $mxcsr", "print $xmm0.uint128", "print $st0")
    told = re.search(r"FCW=([0-9a-f]{4})", guest.vmm.hmp("info registers"))
    assert told
    assert f"$1 = {int(told[1], 16):#x}\n" in text
    assert "$2 = [ IM DM ZM OM UM PM ]" in text
    assert "$3 = 0\n$4 = 0" in text


def test_the_reason_for_that_is_still_true(tmp_path: Path) -> None:
    """A vCPU that steps unasked is given an exception after each step, and gets nowhere, ever after."""
    require_kvm_qemu()
    with counting_guest(tmp_path) as guest:
        fd = guest.vmm.vcpu_fd(0)
        with Deputy(guest.vmm.pid) as deputy:
            deputy.hold()
            enable_and_step = struct.pack("<II64x", 3, 0)  # struct kvm_guest_debug
            deputy.write(deputy.args_hva, enable_and_step)
            deputy.ioctl(fd, kvm.KVM_SET_GUEST_DEBUG, deputy.args_hva)
            deputy.release()
            assert guest.stands()


def test_physical_memory_and_the_monitor(guest: CountingGuest, server: GdbServer) -> None:
    text = gdb(
        server.target,
        "maint packet Qqemu.PhyMemMode:1",
        f"x/4xb {RESET_CODE}",
        f"monitor xp /4xb {RESET_CODE}",
        "monitor nonsense",
        "thread 2",
        "monitor info registers",
    )
    assert 'received: "OK"' in text
    assert re.search(rf"^{RESET_CODE}:\s+0xea\s+0x00\s+0x06\s+0x00", text, re.M), text
    assert "00000000fffffff0: 0xea 0x00 0x06 0x00" in text
    assert "unknown command: 'nonsense'" in text
    assert "CPU#1" in text


def test_connections_come_and_go(guest: CountingGuest, server: GdbServer) -> None:
    for _ in range(3):
        with Client(server) as client:
            assert client.ask(b"?") == b"T05thread:1;"
            assert guest.stands()
        assert guest.moves()


def test_a_bare_connection_stops_nothing_and_junk_is_hung_up_on(
    guest: CountingGuest, server: GdbServer
) -> None:
    with Client(server) as client:
        assert guest.moves()
        client.socket.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n$?#3f")
        assert client.hung_up()
    for hostile in (b"$" + b"a" * (1 << 17), b"$g#00" * 100):
        with Client(server) as client:
            client.socket.sendall(hostile)
            assert client.hung_up()
    assert guest.moves()
    with Client(server) as client:
        assert client.ask(b"?") == b"T05thread:1;"


def test_what_hostile_clients_cost_is_bounded(guest: CountingGuest, server: GdbServer) -> None:
    """Streams without an end, lengths without a bound, and half packets leave the server as large as it was."""

    def peak_nbytes() -> int:
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) << 10

    with Client(server) as client:
        for packet in (b"m0,ffff", b"qXfer:features:read:target.xml:0,ffff", b"qRcmd,68656c70"):
            client.ask(packet)
    before = peak_nbytes()
    for stream in (b"$", b"$m0,", b"+$", b"$}", b"$?#00", b"a"):
        with Client(server) as client:
            sent = 0
            with suppress(OSError):
                while sent < 1 << 28:
                    sent += client.socket.send(stream * 10_000)
            assert sent < 1 << 24, f"{stream!r}: {sent} bytes were taken"
            assert client.hung_up()
    end = b"f" * 16
    with Client(server) as client:
        for packet in (
            *(b"m0," + end, b"x0," + end, b"m" + end + b"," + end, b"m0,-1", b"m" + b"0" * 60_000 + b",1"),
            *(b"M0," + end + b":00", b"X0," + end + b":", b"Z0," + end + b"," + end),
            *(
                b"qXfer:features:read:target.xml:0," + end,
                b"qXfer:features:read:target.xml:" + end + b"," + end,
            ),
            *(b"vCont;" + b"c:9;" * 15_000, b"G" + b"x" * 60_000, b"H" + b"g" * 60_000, b"T" + b"f" * 60_000),
            b"qRcmd," + b"78" * 30_000,
        ):
            assert len(client.ask(packet)) <= 1 << 16
    assert peak_nbytes() - before < 4 << 20
    assert guest.moves()


@pytest.mark.parametrize("setting", ["on", "off"])
def test_with_acknowledgements_and_without(guest: CountingGuest, server: GdbServer, setting: str) -> None:
    argv = gdb_argv(server.target, f"x/4xb {RESET_CODE}", "x/2xw 0x600", "detach")
    argv[1:1] = ["-iex", f"set remote noack-packet {setting}", "-iex", "set debug remote 1"]
    text = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert ("Sending packet: $QStartNoAckMode#b0" in text.stderr) == (setting == "on")
    assert re.search(r"^0x600:\s+0xd88ec031\s+0x0006ff66$", text.stdout, re.M), text.stdout
    assert "detached" in text.stdout


def test_a_gdb_that_is_killed_lets_the_guest_run(guest: CountingGuest, server: GdbServer) -> None:
    for _ in range(2):
        text = gdb(server.target, f"x/xw {COUNT_GPA:#x}", "shell kill -9 $PPID", "detach")
        assert re.search(r"^0x500:\s+0x", text, re.M), text
        assert "detached" not in text
        assert guest.moves()


def test_half_a_packet_and_then_nothing(guest: CountingGuest, server: GdbServer) -> None:
    with Client(server) as client:
        client.ask(b"?")
        client.socket.sendall(b"$m500,")
        assert guest.stands()
    assert guest.moves()


def test_a_bad_checksum_is_asked_for_again(guest: CountingGuest, server: GdbServer) -> None:
    with Client(server) as client:
        client.socket.sendall(b"$?#00")
        assert client.socket.recv(1) == b"-"
        assert guest.moves()
        assert client.ask(b"?") == b"T05thread:1;"
        client.socket.sendall(b"-")
        assert client.answer() == b"T05thread:1;"


def test_a_stop_has_an_end(guest: CountingGuest, tmp_path: Path) -> None:
    with (
        gdbserver(*options(guest), "--max-stop", "0.5", directory=tmp_path) as server,
        Client(server) as client,
    ):
        assert client.ask(b"?") == b"T05thread:1;"
        assert client.hung_up()
        assert guest.moves()
    assert "--max-stop" in server.stderr()


def test_once_and_the_socket_is_gone(guest: CountingGuest, tmp_path: Path) -> None:
    with gdbserver(*options(guest), "--once", directory=tmp_path) as server:
        mode = Path(server.target).stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        with Client(server) as client:
            client.ask(b"D")
        assert server.process.wait(20) == 0
        assert not Path(server.target).exists()


def test_killed_while_the_guest_stands(guest: CountingGuest, tmp_path: Path) -> None:
    before = settle(guest.vmm.pid, shape(guest.vmm.pid))
    for turn in range(3):
        with gdbserver(*options(guest), directory=tmp_path) as server, Client(server) as client:
            client.ask(b"?")
            assert guest.stands()
            server.process.kill()
            server.process.wait(10)
            assert guest.moves(), f"turn {turn}"
        assert "VM status: running" in guest.vmm.hmp("info status")
    with gdbserver(*options(guest), directory=tmp_path) as server:  # over the socket that was left behind
        assert "= 0x6" in gdb(server.target, "print/x $rip")
    assert settle(guest.vmm.pid, before) == before


def test_the_vmm_ends_while_gdb_waits(tmp_path: Path) -> None:
    require_kvm_qemu()
    require_gdb()
    with counting_guest(tmp_path) as guest, gdbserver(*options(guest), directory=tmp_path) as server:
        with Client(server) as client:
            client.ask(b"?")
            client.socket.sendall(frame(b"c"))
            assert guest.moves()
            os.kill(guest.vmm.pid, signal.SIGKILL)
            assert client.answer() == b"W00"
        assert server.process.wait(20) == 1
        assert "the VMM ended" in server.stderr()


def test_tcp_on_a_free_port(guest: CountingGuest, tmp_path: Path) -> None:
    with gdbserver(*options(guest), directory=tmp_path, listen="tcp:127.0.0.1:0") as server:
        assert re.fullmatch(r"tcp:127\.0\.0\.1:[1-9]\d*", server.address)
        assert "= 0x6" in gdb(server.target, "print/x $rip")


def test_a_dump_is_served_too(guest: CountingGuest, tmp_path: Path) -> None:
    core = tmp_path / "core"
    argv = [sys.executable, "-m", "sevkvm", "dump", *options(guest), "--format", "elf", "-o", str(core)]
    subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, timeout=60)
    argv = [sys.executable, "-m", "sevkvm", "regs", "--file", str(core), "--json"]
    told = json.loads(subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, timeout=60).stdout)
    with gdbserver("--file", str(core), directory=tmp_path) as server:
        text = gdb(server.target, "info registers", f"x/2xw {COUNT_GPA:#x}", "info threads", "continue")
    assert f"rip            {told[0]['rip']} " in text
    assert re.search(r"^0x500:\s+0x[0-9a-f]{8}\s+0x00000000", text, re.M)
    assert "Thread 2 (vCPU 1)" in text
    assert "a dump does not run" in text
