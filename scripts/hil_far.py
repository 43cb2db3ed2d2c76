"""The far half of scripts/hil: sent through ssh, run there, gone afterwards. Standard library only.

Standard input brings an order (JSON) and a tar, each after its length in ten digits, and then stays open and gives
signs of life: its end, or minutes of silence, mean that whoever asked has gone, as Ctrl-C there makes it. Standard
output takes a mark and two records back: a tar of reports, and what could not be removed. Whatever happens, every
process that was started is ended and the directory removed before that.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from pathlib import Path
from typing import IO, Any

MARK = b"\nsevkvm-hil-report\n"
LENGTH_DIGITS = 10
_PR_SET_CHILD_SUBREAPER = 36  # include/uapi/linux/prctl.h
_PATIENCE_SECONDS = 20.0  # for a step that was asked to end
_SETUP_SECONDS = 900.0
_SILENCE_SECONDS = 300.0  # a sign of life comes every ten
_KMSG = "/dev/kmsg"
_FACTS = (
    "import json, sys, sevkvm, pytest, pytest_timeout, elftools, cryptography; from sevkvm import native;"
    "print(json.dumps([sevkvm.__version__, sevkvm.__file__, sys.version.split()[0]]))"
)


class Ended(Exception):
    """The run is over before its time; the message says why."""


def read_record(stream: IO[bytes]) -> bytes:
    nbytes = int(stream.read(LENGTH_DIGITS) or -1)
    data = stream.read(nbytes) if nbytes >= 0 else b""
    if len(data) < nbytes or nbytes < 0:
        sys.exit("hil: the connection ended before all was here")
    return data


def say(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        sys.stderr.write(f"hil: {text}\n")
        sys.stderr.flush()


class KernelLog:
    """What the kernel says from now on, through /dev/kmsg; ``why_not`` if it may not be read."""

    def __init__(self) -> None:
        self.why_not: str | None = None
        self._fd = -1
        try:
            self._fd = os.open(_KMSG, os.O_RDONLY | os.O_NONBLOCK)
            os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            self.why_not = f"{_KMSG}: {os.strerror(error.errno or 0)}"

    def lines(self) -> list[str]:
        """``[seconds since boot] message``; a line that says so where messages were lost."""
        found: list[str] = []
        while self._fd >= 0:
            try:
                record = os.read(self._fd, 8192).decode(errors="replace")
            except BrokenPipeError:
                found.append("(messages were lost here)")
                continue
            except OSError:
                break
            head, _, text = record.partition(";")
            found.append(f"[{int(head.split(',')[2]) / 1e6:12.6f}] {text.splitlines()[0] if text else ''}")
        return found


class Run:
    """One run in a directory of its own."""

    def __init__(self, order: dict[str, Any], work: Path) -> None:
        self.order, self.work = order, work
        self.report = work / "report"
        self.source = work / "s"
        self.steps: list[dict[str, Any]] = []
        self._gone, self._heard = False, time.monotonic()
        self.python = sys.executable
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "SEVKVM_"))
        }
        # short: sockets are made below it
        for name in ("report", "s", "t", "cache"):
            (work / name).mkdir()
        self.environment |= {"TMPDIR": str(work / "t"), "XDG_CACHE_HOME": str(work / "cache")}
        self.environment |= {"PIP_NO_CACHE_DIR": "1", "PYTHONNOUSERSITE": "1"}

    def watch(self, stream: IO[bytes]) -> None:
        """Until the end of what brought the order; each byte meanwhile is a sign of life."""
        while stream.read(1):
            self._heard = time.monotonic()
        self._gone = True

    @property
    def gone(self) -> bool:
        """Has whoever asked for it gone, or fallen silent?"""
        return self._gone or time.monotonic() - self._heard > _SILENCE_SECONDS

    def step(self, name: str, argv: list[str], seconds: float, out: str | None = None) -> int:
        """Run it to its end; its status. ``out``: the report that its stdout is, beside NAME.log."""
        say(name)
        began = time.monotonic()
        with contextlib.ExitStack() as files:
            log = files.enter_context((self.report / f"{name}.log").open("ab"))
            told = files.enter_context((self.report / out).open("wb")) if out else log
            process = subprocess.Popen(
                argv,
                cwd=self.source,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=told,
                stderr=log,
                start_new_session=True,
            )
            why = self._wait(process, began + seconds)
        took = round(time.monotonic() - began, 1)
        self.steps.append({"name": name, "status": process.returncode, "seconds": took, "ended": why})
        if self.gone:
            raise Ended("whoever asked for it has gone")
        return process.returncode

    def _wait(self, process: subprocess.Popen[bytes], deadline: float) -> str | None:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
                return None
            late = time.monotonic() > deadline
            if late or self.gone:
                # the program alone: under the shim it is passed on, and twice would be once too often
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_PATIENCE_SECONDS)
                    return "took too long" if late else "was interrupted"
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return "was killed"

    # ---- what is run

    def set_up(self) -> None:
        """The wheel and what it needs, in an environment of its own."""
        (wheel,) = self.source.glob("*.whl")
        if self.order["far_packages"]:
            zipfile.ZipFile(wheel).extractall(self.source)
            self.environment["PYTHONPATH"] = str(self.source)
            return
        self._set_up_step([sys.executable, "-m", "venv", str(self.work / "venv")])
        self.python = str(self.work / "venv" / "bin" / "python")
        argv = [
            self.python,
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--no-input",
            "--no-compile",
        ]
        house = self.source / "wheelhouse"
        argv += ["--no-index", "--find-links", str(house)] if house.is_dir() else []
        self._set_up_step([*argv, f"{wheel}[{self.order['extras']}]", *self.order["needs"]])

    def _set_up_step(self, argv: list[str]) -> None:
        if self.step("set-up", argv, _SETUP_SECONDS):
            tail = (self.report / "set-up.log").read_text(errors="replace").strip().splitlines()[-3:]
            raise Ended("; ".join([f"{' '.join(argv[:4])} failed", *tail]))

    def facts(self) -> dict[str, Any]:
        argv = [self.python, "-c", _FACTS]
        done = subprocess.run(
            argv, cwd=self.source, env=self.environment, capture_output=True, text=True, timeout=60
        )
        if done.returncode:
            raise Ended(
                f"what was brought does not work there: {(done.stderr.strip().splitlines() or ['?'])[-1]}"
            )
        version, where, python = json.loads(done.stdout)
        if not Path(where).resolve().is_relative_to(self.work.resolve()):
            raise Ended(f"another sevkvm is in the way: {where}")
        uname = platform.uname()
        return {"sevkvm": version, "python": python, "host": uname.node, "kernel": uname.release}

    def all(self) -> None:
        shim = [self.python, "-m", "sevkvm", "shim", "--"] if self.order["shim"] else []
        seconds = float(self.order["seconds"])
        self.step("doctor", [*shim, self.python, "-m", "sevkvm", "doctor", "--json"], seconds, "doctor.json")
        argv = [
            self.python,
            "-m",
            "pytest",
            "--hardware",
            "-p",
            "no:cacheprovider",
            "-o",
            "junit_family=xunit2",
        ]
        argv += [f"--junitxml={self.report / 'junit.xml'}", *self.order["pytest"]]
        self.step("pytest", [*shim, *argv], seconds)
        self.step("conformance", [*shim, str(self.source / "sev_conformance")], seconds, "conformance.tap")
        if self.order["bench"] is not None:
            with self._memory() as scratch:
                argv = [self.python, "scripts/bench", "--hardware", "--json", "--scratch", scratch]
                self.step("bench", [*shim, *argv, *self.order["bench"]], seconds, "bench.json")

    @contextlib.contextmanager
    def _memory(self) -> Any:
        """A directory in memory where there is one: a disk would be all that is measured."""
        shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else self.environment["TMPDIR"]
        with tempfile.TemporaryDirectory(prefix="sevkvm-hil-", dir=shm) as name:
            yield name


def end_everything() -> int:
    """Kill whatever still runs below us, orphans too; how many there were."""
    ended: set[int] = set()
    for _ in range(200):
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        told = [path.read_text() for path in Path("/proc/self/task").glob("*/children")]
        living = {int(child) for text in told for child in text.split()}
        if not living:
            break
        for pid in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        ended |= living
        time.sleep(0.05)
    return len(ended)


def packed(directory: Path) -> bytes:
    room = io.BytesIO()
    with tarfile.open(fileobj=room, mode="w:gz") as archive:
        archive.add(directory, ".")
    return room.getvalue()


def interrupted(*_: object) -> None:
    raise Ended("a signal came")


def main() -> None:
    os.umask(0o077)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, interrupted)
    stdin = sys.stdin.buffer
    result: dict[str, Any] = {"ended": None, "left_over_processes": 0, "steps": []}
    order = json.loads(read_record(stdin))
    payload = read_record(stdin)
    if sys.version_info < (3, 10):  # noqa: UP036  # any Python may be there
        sys.exit(
            f"hil: Python {platform.python_version()} there is too old: 3.10 or newer is needed (--python)"
        )
    try:
        work = Path(tempfile.mkdtemp(prefix="sevkvm-hil-", dir=order["far_dir"]))
    except OSError as error:
        sys.exit(f"hil: no directory to work in there: {error} (--far-dir)")
    say(f"at work in {work}")
    reports = b""
    try:
        run = Run(order, work)
        result["steps"] = run.steps
        with tarfile.open(fileobj=io.BytesIO(payload)) as archive:
            archive.extractall(run.source)
        threading.Thread(target=run.watch, args=(stdin,), daemon=True).start()
        kernel_log = KernelLog()
        try:
            run.set_up()
            result["facts"] = run.facts()
            run.all()
        except Ended as error:
            result["ended"] = str(error)
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        lines = kernel_log.lines()
        result["kernel_log"] = kernel_log.why_not
        (run.report / "kernel.log").write_text("".join(f"{line}\n" for line in lines))
        result["left_over_processes"] = end_everything()
        (run.report / "result.json").write_text(json.dumps(result, indent=2))
        reports = packed(run.report)
    finally:
        end_everything()
        shutil.rmtree(work, ignore_errors=True)
    left = str(work).encode() if work.exists() else b""
    with contextlib.suppress(OSError):
        for data in (MARK, b"%010d" % len(reports), reports, b"%010d" % len(left), left):
            sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    os._exit(0)  # the thread may still read


main()
