"""Debian's gdb through `sevkvm gdbserver --upstream` in front of QEMU's own stub: it runs the guest, we read memory."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevkvm.gdbserver.packet import frame
from sevkvm.memory.source import Slot
from sevkvm.paging.mode import PagingMode
from tests.support.counting import CODE_GPA, COUNT_GPA, JUMP_GPA, LOOP_GPA, CountingGuest, counting_guest
from tests.support.emulatedgdb import serving
from tests.support.gdb import GdbServer, gdb, gdb_argv, gdbserver, require_gdb
from tests.support.gdbclient import Client
from tests.support.killing import settle, shape
from tests.support.qemu import require_kvm_qemu, require_qemu

pytestmark = pytest.mark.kvm


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CountingGuest]:
    require_kvm_qemu()
    require_gdb()
    with counting_guest(tmp_path_factory.mktemp("upstream"), cpus=2) as guest:
        yield guest


@pytest.fixture(scope="module")
def stub(guest: CountingGuest) -> str:
    path = guest.vmm.directory / "stub"
    assert "Waiting" in guest.vmm.hmp(f"gdbserver unix:{path},server=on,wait=off")
    return f"unix:{path}"


def options(guest: CountingGuest, stub: str) -> list[str]:
    return ["--pid", str(guest.vmm.pid), "--qmp", guest.vmm.qmp_path, "--upstream", stub]


@pytest.fixture
def server(guest: CountingGuest, stub: str, tmp_path: Path) -> Iterator[GdbServer]:
    before = settle(guest.vmm.pid, shape(guest.vmm.pid))
    with gdbserver(*options(guest, stub), "--write", directory=tmp_path) as server:
        yield server
    assert settle(guest.vmm.pid, before) == before
    assert guest.moves()
    assert "VM status: running" in guest.vmm.hmp("info status")


def test_look(guest: CountingGuest, server: GdbServer) -> None:
    text = gdb(
        server.target, f"x/xw {COUNT_GPA:#x}", "info registers rip cs", "info threads", f"x/xw {COUNT_GPA:#x}"
    )
    counts = re.findall(r"^0x500:\s+(0x[0-9a-f]+)", text, re.M)
    assert len(counts) == 2
    assert counts[0] == counts[1]


def test_a_break_becomes_a_hardware_one_and_is_hit(guest: CountingGuest, server: GdbServer) -> None:
    show = f"x/xw {COUNT_GPA:#x}"
    commands = [f"break *{LOOP_GPA:#x}", "continue", show, "continue", show, "stepi", show, "stepi", show]
    text = gdb(server.target, *commands, "print/x $rip", "delete", "detach")
    assert text.count("Breakpoint 1, ") >= 2, text
    counts = [int(word, 16) for word in re.findall(r"^0x500:\s+(0x[0-9a-f]+)", text, re.M)]
    assert [count - counts[0] for count in counts] == [0, 1, 2, 2], text
    assert f"$1 = {LOOP_GPA:#x}" in text


def test_gdb_writes_memory_through_us_and_registers_through_the_stub(
    guest: CountingGuest, server: GdbServer
) -> None:
    text = gdb(
        server.target,
        f"set var *(int *){COUNT_GPA:#x} = 0x70000000",
        "set var $rbx = 0x55aa",
        f"break *{JUMP_GPA:#x}",
        "continue",
        "print/x $rbx",
        f"x/xw {COUNT_GPA:#x}",
    )
    assert "$1 = 0x55aa" in text, text
    assert re.search(r"^0x500:\s+0x70000001$", text, re.M)


def test_ctrl_c(guest: CountingGuest, server: GdbServer, tmp_path: Path) -> None:
    with Client(server) as client:
        client.ask(b"?")
        for _ in range(3):
            client.socket.sendall(frame(b"vCont;c"))
            assert guest.moves()
            client.socket.sendall(b"\x03")
            assert client.answer().startswith(b"T02thread:")
            assert guest.stands()
            assert client.ask(b"m500,4") == guest.count.to_bytes(4, "little").hex().encode()


def test_several_breakpoints_at_one_place_are_one(guest: CountingGuest, server: GdbServer) -> None:
    with Client(server) as client:
        client.ask(b"?")
        where = b"%x" % LOOP_GPA
        assert client.ask(b"Z0," + where + b",1") == client.ask(b"Z1," + where + b",1") == b"OK"
        assert client.ask(b"z0," + where + b",1") == b"OK"
        client.socket.sendall(frame(b"c"))
        assert client.answer().startswith(b"T05")  # the other one is still there
        assert client.ask(b"z1," + where + b",1") == b"OK"
        assert client.ask(b"z1," + where + b",1") == b"OK"
        client.socket.sendall(frame(b"c"))
        assert guest.moves()


def test_there_are_four(guest: CountingGuest, server: GdbServer) -> None:
    with Client(server) as client:
        client.ask(b"?")
        for number in range(4):
            assert client.ask(b"Z0,%x,1" % (0x9000 + number)) == b"OK"
        assert client.ask(b"Z0,9004,1").startswith(b"E.no more hardware breakpoints")
        assert client.ask(b"z0,9000,1") == b"OK"
        assert client.ask(b"Z0,9004,1") == b"OK"


@pytest.mark.parametrize("runs", [True, False])
def test_a_client_that_dies_leaves_no_breakpoint(guest: CountingGuest, server: GdbServer, runs: bool) -> None:
    code = guest.memory(LOOP_GPA, 8)
    with Client(server) as client:
        client.ask(b"?")
        assert client.ask(b"Z0,9000,1") == client.ask(b"Z2,9100,4") == b"OK"
        assert client.ask(b"Z0,%x,1" % LOOP_GPA) == b"OK"
        assert guest.memory(LOOP_GPA, 8) == code
        if runs:
            client.ask(b"z0,%x,1" % LOOP_GPA)
            client.socket.sendall(frame(b"c"))
            assert guest.moves()
    assert guest.moves()


def test_a_gdb_that_is_killed_leaves_no_breakpoint(guest: CountingGuest, server: GdbServer) -> None:
    for _ in range(2):
        text = gdb(
            server.target,
            "set breakpoint always-inserted on",
            f"break *{LOOP_GPA:#x}",
            f"hbreak *{JUMP_GPA:#x}",
            "continue",
            "stepi",
            "shell kill -9 $PPID",
            "detach",
        )
        assert "Breakpoint " in text
        assert "detached" not in text
        assert guest.moves()


def test_killing_is_not_passed_on(guest: CountingGuest, server: GdbServer) -> None:
    with Client(server) as client:
        client.ask(b"?")
        assert client.ask(b"vKill;1").startswith(b"E.")
        client.socket.sendall(frame(b"k"))
        assert client.hung_up()
    assert guest.vmm.process.poll() is None


@pytest.mark.parametrize("leaves", [True, False])
def test_terminated_while_the_guest_stands(
    guest: CountingGuest, stub: str, tmp_path: Path, leaves: bool
) -> None:
    """Also when the signal comes while it takes breakpoints away, since the client has just left."""
    for _ in range(2):
        with gdbserver(*options(guest, stub), directory=tmp_path) as server, Client(server) as client:
            client.ask(b"?")
            assert client.ask(b"Z0,%x,1" % LOOP_GPA) == client.ask(b"Z2,9100,4") == b"OK"
            if leaves:
                client.socket.close()
            server.process.terminate()
            assert server.process.wait(20) == 143
        assert guest.moves()


def appears(path: Path) -> bool:
    """gdb has come as far as to make this file, within a generous time."""
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return path.exists()


@pytest.mark.parametrize("runs", [False, True])
def test_killed_with_breakpoints_of_a_real_gdb(
    guest: CountingGuest, stub: str, tmp_path: Path, runs: bool
) -> None:
    """Guest memory is as it was throughout; the next attach says that the guest stood, and frees it of them."""
    code = guest.memory(CODE_GPA, 32)
    where = 0x9000 if runs else JUMP_GPA  # never hit, or each time round
    breaks = [f"break *{where:#x}", f"hbreak *{where + 0x100:#x}", f"watch *(int *){COUNT_GPA + 64:#x}"]
    ready, hit = tmp_path / "ready", tmp_path / "hit"
    with gdbserver(*options(guest, stub), "--write", directory=tmp_path) as server:
        steps = [*breaks, f"shell touch {ready}", "continue", f"shell touch {hit}; sleep 60"]
        argv = gdb_argv(server.target, *steps)
        with subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True) as process:
            try:
                assert appears(ready if runs else hit)
                if runs:  # it stood, and moves when gdb has set them and said `continue`
                    assert guest.moves()
                assert guest.memory(CODE_GPA, 32) == code
                server.process.kill()
                server.process.wait(10)
            finally:
                os.killpg(process.pid, signal.SIGKILL)  # its shell, too
    assert guest.memory(CODE_GPA, 32) == code
    if not runs:
        assert "paused" in guest.vmm.hmp("info status")
    with gdbserver(*options(guest, stub), directory=tmp_path) as server:
        text = gdb(server.target, f"x/2xb {JUMP_GPA:#x}", "detach")
        assert re.search(r"^0x609:\s+0xeb\s+0xf9", text, re.M), text
        assert guest.moves()
        assert ("the guest stood still already" in server.stderr()) == (not runs)
    assert guest.memory(CODE_GPA, 32) == code


def test_a_stop_has_an_end(guest: CountingGuest, stub: str, tmp_path: Path) -> None:
    with gdbserver(*options(guest, stub), "--max-stop", "0.5", directory=tmp_path) as server:
        with Client(server) as client:
            client.ask(b"?")
            client.ask(b"Z0,%x,1" % LOOP_GPA)
            assert client.hung_up()
        assert guest.moves()


def test_no_stub_there(guest: CountingGuest, tmp_path: Path) -> None:
    with (
        gdbserver(*options(guest, "unix:/nowhere/stub"), directory=tmp_path) as server,
        Client(server) as client,
    ):
        assert b"cannot be reached" in client.ask(b"?")
    assert guest.moves()


# ---- an emulated guest: KVM here fires no watchpoints, whoever asks for them


@pytest.fixture
def emulated(tmp_path: Path) -> Iterator[str]:
    """Where gdb finds an emulated counting guest."""
    require_qemu()
    require_gdb()
    with counting_guest(tmp_path, accel="tcg") as counting:
        slots = [Slot(0, 0xA0000, counting.ram_hva, "ram")]
        parts = {"no_registers": "it is emulated", "paging": PagingMode.OFF}
        with serving(counting.vmm, slots, tmp_path, **parts) as target:
            yield target
            assert counting.moves()


def test_watchpoints_of_an_emulated_guest(emulated: str) -> None:
    watch = f"watch *(int *){COUNT_GPA:#x}"
    text = gdb(
        emulated, watch, "continue", "print/x $rip", "delete", f"a{watch}", "continue", f"x/2xb {LOOP_GPA:#x}"
    )
    values = re.search(r"Old value = (\d+)\nNew value = (\d+)", text)
    assert values, text
    assert int(values[2]) == int(values[1]) + 1
    assert f"$1 = {JUMP_GPA:#x}" in text
    assert "Hardware access (read/write) watchpoint 2" in text
    assert text.count("New value = ") == 2, text
    assert re.search(r"^0x604:\s+0x66\s+0xff", text, re.M), text


def test_neighbouring_breakpoints_do_not_move_the_program_counter(emulated: str) -> None:
    """gdb takes a stop one byte behind a software breakpoint for that one, unless it is told otherwise."""
    text = gdb(emulated, f"break *{JUMP_GPA - 1:#x}", f"break *{JUMP_GPA:#x}", "continue", "print/x $rip")
    assert f"$1 = {JUMP_GPA:#x}" in text, text
    assert "Breakpoint 2, " in text
