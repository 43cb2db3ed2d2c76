"""What a list of processes costs drgn: the section ``drgn`` of scripts/bench. Ratios hold within one run only.

The time of the list alone, measured inside drgn; starting it and reading debug symbols are a row of their own. All
ways look at the same Linux, at the first list of a new process (cold) and at the second.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.bench_paging import Report

if TYPE_CHECKING:
    from sevkvm.lab.sealed import SealedLinux
    from sevkvm.shim.supervisor import SevHost
    from tests.support.qemu import QemuVmm

_LIST = """
import json, time
from drgn.helpers.linux import for_each_task
def listed():
    began = time.perf_counter()
    names = [(task.pid.value_(), task.comm.string_()) for task in for_each_task(prog)]
    return (time.perf_counter() - began) * 1e3, len(names)
print(json.dumps([listed(), listed()]))
"""
_HOOK = """
from drgn import ProgramFlags
def drgn_prog_set(prog):
    if not prog.flags & ProgramFlags.IS_LINUX_KERNEL:
        prog.set_linux_kernel_custom({note!r}, True)
"""
_XP_RUNS = 2


class DrgnBench:
    """The measurements, each a method that adds rows."""

    def __init__(self, report: Report, runs: int, directory: Path) -> None:
        self.report = report
        self.runs = max(runs, 5)
        self.directory = directory
        self._direct = self._xp = (0.0, 0.0)

    @property
    def parts(self) -> tuple[Callable[[], None], ...]:
        """All of them; each may fail on its own."""
        return self.dump_file, self.plain, self.encrypted

    def dump_file(self) -> None:
        """drgn on a dump of the guest: its memory mapped into drgn itself."""
        from tests.support.readers.dumps import Dumps

        core = Dumps(self.directory).dump((4, 51, "strip"))
        self._direct = self._list(
            "drgn -c on a dump: direct memory", [*_drgn(), "-c", str(core), *self._rest()]
        )

    def plain(self) -> None:
        """A QEMU that is not encrypted: drgn's own ways, and ours."""
        from tests.support.qemu_sealed import sealed_qemu

        with sealed_qemu(self._linux.plain) as vmm:
            theirs = ["env", f"DRGN_PLUGINS=bench={self._hook(vmm)}", *_drgn(), "--qemu"]
            self._list("drgn --qemu, plain: direct memory of the VMM", [*theirs, vmm.qmp_path, *self._rest()])
            with _over_tcp(vmm.qmp_path) as address:
                argv = [*theirs, address, *self._rest()]
                self._xp = self._list("drgn --qemu over TCP, plain: xp", argv, _XP_RUNS)
            ours = [*_sevkvm("drgn", vmm), *self._rest()]
            self._judge(self._list("sevkvm drgn, plain", ours))
            self._through_monitor("drgn --qemu on sevkvm monitor, plain", vmm)

    def encrypted(self) -> None:
        """The same Linux on the pretend SEV host."""
        from sevkvm.shim.supervisor import SevHost
        from tests.support.qemu_sealed import sealed_qemu

        with SevHost() as host, sealed_qemu(self._linux, popen=host.popen, sev_policy=0) as vmm:
            where = ["--cbit-pos", str(self._linux.seal.cbit_pos)]
            ours = [*_sevkvm("drgn", vmm), *where, "--hold", "60", *self._rest()]
            self._judge(self._list("sevkvm drgn, encrypted", ours))
            self._decryptions(host, vmm)
            self._through_monitor("drgn --qemu on sevkvm monitor, encrypted", vmm, *where)

    def _decryptions(self, host: SevHost, vmm: QemuVmm) -> None:
        """What the pretend host takes for the pages of one list: an EPYC's firmware has a price of its own."""
        from drgn.helpers.linux import for_each_task

        from sevkvm.attach import AttachOptions, open_guest
        from sevkvm.drgnprog.program import kernel_note, make_program, program_memory

        counts = host.kernel.firmware.counts
        where = AttachOptions(pid=vmm.pid, qmp=vmm.qmp_path, cbit_pos=self._linux.seal.cbit_pos)
        with open_guest(where) as guest:
            memory = program_memory(guest, note := kernel_note(guest), 0)
            program = make_program(guest, note, memory)
            program.load_debug_info([self._rest()[1]])
            with guest.held():
                memory.still = True
                before = counts["DBG_DECRYPT"]
                for task in for_each_task(program):
                    task.comm.string_()
                npages = counts["DBG_DECRYPT"] - before
                samples = []
                for _ in range(self.runs):
                    guest.memory.invalidate()
                    began = time.perf_counter()
                    for number in range(npages):  # pages that do not touch
                        guest.memory.read(0x100000 + 0x2000 * number, 0x1000)
                    samples.append((time.perf_counter() - began) * 1e3)
        self.report("  distinct pages of the list, each one firmware command", [npages], "")
        self.report("  as many pages decrypted one by one, and no more", samples, "ms")

    # ---- helpers

    @property
    def _linux(self) -> SealedLinux:
        from tests.support.readers.dumps import sealed

        return sealed(4, 51)

    def _rest(self) -> list[str]:
        from tests.support.readers.symbols import require_vmlinux
        from tests.support.readers.told import told_by

        return ["-s", str(require_vmlinux(told_by(self._linux).release)), "-e", _LIST]

    def _hook(self, vmm: QemuVmm) -> Path:
        """A plug-in that tells drgn the VMCOREINFO, without which it does not know a Linux; memory is drgn's affair."""
        from sevkvm.attach import AttachOptions, open_guest

        path = self.directory / "hook.py"
        with open_guest(AttachOptions(pid=vmm.pid, qmp=vmm.qmp_path)) as guest:
            found = guest.vmcoreinfo()
            assert found
            path.write_text(_HOOK.format(note=found.text))
        return path

    def _list(self, what: str, argv: Sequence[str], runs: int | None = None) -> tuple[float, float]:
        """Rows for one way; the least of its first and of its second lists, in ms: the machine may be busy.

        Each run is another process. Slow ways are not warmed up.
        """
        first, second, whole = [], [], []
        counts = set()
        for turn in range(runs or self.runs + 1):
            began = time.perf_counter()
            said = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=300
            )
            took = time.perf_counter() - began
            (cold, count), (warm, again) = json.loads(said.stdout)
            counts |= {count, again}
            if turn or runs:  # the first one warms up
                first.append(cold)
                second.append(warm)
                whole.append(took * 1e3)
        self.report(what, first, "ms", f"{'/'.join(map(str, sorted(counts)))} processes")
        self.report("  the list once more", second, "ms")
        self.report("  all of it, with start and symbols", whole, "ms")
        return min(first), min(second)

    def _judge(self, ours: tuple[float, float]) -> None:
        for which, mine, direct, xp in zip(("first", "second"), ours, self._direct, self._xp, strict=True):
            if direct:
                self.report(
                    f"  {which} list: its time against direct memory", [mine / direct], "x", "goal: <= 1"
                )
            if xp:
                self.report(f"  {which} list: faster than xp", [xp / mine], "x", "goal: >= 50")

    def _through_monitor(self, what: str, vmm: QemuVmm, *where: str) -> None:
        from tests.support.monitorprocess import listening_monitor

        path = self.directory / "monitor"
        with listening_monitor(vmm, path, *where):
            self._list(what, [*_drgn(), "--qemu", str(path), *self._rest()], _XP_RUNS)


def _drgn() -> list[str]:
    return [str(Path(sys.executable).with_name("drgn")), "-q"]


def _sevkvm(command: str, vmm: QemuVmm) -> list[str]:
    where = ["--pid", str(vmm.pid), "--vm-fd", str(vmm.vm_fd), "--qmp", vmm.qmp_path]
    return [sys.executable, "-m", "sevkvm", command, *where]


@contextmanager
def _over_tcp(path: str) -> Iterator[str]:
    """A QMP socket as a TCP address: drgn then knows no process whose memory it could read, and asks xp."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    with client, socket.socket(socket.AF_UNIX) as monitor:
                        monitor.connect(path)
                        back = threading.Thread(target=_copy, args=(monitor, client), daemon=True)
                        back.start()
                        _copy(client, monitor)
                        back.join()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
