"""``scripts/hil`` over a real ssh to an sshd of our own, where the shim plays the hardware; its reports, read."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hil_bring import build_wheel
from tests.support.build import ROOT, require_compiler
from tests.support.pytestrun import read_junit
from tests.support.sevhost import require_kvm_mode
from tests.support.sshd import Sshd, sshd

pytestmark = [pytest.mark.sev, pytest.mark.pretended("it is what starts a run on hardware")]

SECONDS = 240.0
TESTS = ("tests/sev/test_host_sev.py", "tests/sev/test_lab_encrypted.py")
CHOSEN = "counts_guests or of_this_host or registers_of_the_image"


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    require_kvm_mode("real")
    with sshd(tmp_path_factory.mktemp("sshd")) as far:
        yield far


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_compiler()
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def hil(far: Sshd, wheel: Path, directory: Path, *words: str) -> list[str]:
    """The far side works below ``directory``/far with this Python's packages, and the wheel in front of them."""
    (directory / "far").mkdir()
    argv = [sys.executable, str(ROOT / "scripts" / "hil"), "localhost", "--shim", "--port", str(far.port)]
    for setting in far.settings:
        argv += ["--ssh-option", setting]
    argv += ["--far-packages", "--python", sys.executable, "--far-dir", str(directory / "far")]
    return [*argv, "--wheel", str(wheel), "--output", str(directory / "reports"), *words]


@pytest.fixture(scope="module")
def reports(far: Sshd, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hil")
    chosen = [word for path in TESTS for word in ("--only", path)] + ["-k", CHOSEN]
    argv = hil(
        far, wheel, directory, *chosen, "--bench", "encrypted", "--bench-size", "8", "--bench-runs", "1"
    )
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing of ours is left on localhost" in done.stderr
    assert list((directory / "far").iterdir()) == []
    assert processes_in(directory / "far") == []
    assert done.stdout.startswith("# sevkvm on localhost\n")
    return directory / "reports"


def processes_in(directory: Path) -> list[int]:
    """Processes that work below it, or were told to."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "environ").read_bytes() + os.fsencode((process / "cwd").readlink())
        except OSError:
            continue  # it has ended, or it is a kernel thread
        if os.fsencode(f"{directory}/sevkvm-hil-") in told:
            found.append(int(process.name))
    return found


def test_the_same_cases_ran_on_the_far_side(reports: Path) -> None:
    found = read_junit(reports / "junit.xml")
    assert found.failed == []
    assert set(found.passed) == {
        "test_host_sev::test_platform_status_counts_guests[real]",
        "test_host_sev::test_platform_status_of_this_host",
        "test_lab_encrypted::test_the_vcpu_has_the_registers_of_the_image[real-51-True]",
    }
    assert "C-bit of this host is 51" in str(found.skipped)
    suite = ElementTree.parse(reports / "junit.xml").getroot().find("testsuite")
    assert suite is not None
    assert int(suite.get("tests", "0")) == len(found.passed) + len(found.skipped)


def test_what_else_it_brings_back(reports: Path) -> None:
    doctor = json.loads((reports / "doctor.json").read_text())
    devices = next(check for check in doctor["checks"] if check["name"] == "/dev/sev")
    assert devices["result"] in ("pass", "warn")
    rows = {row["what"].strip(): row for row in json.loads((reports / "bench.json").read_text())}
    assert rows["sevkvm dump of an encrypted guest"]["median"] > 0
    assert not [name for name in rows if "cipher" in name or "not measured" in name]
    tap = (reports / "conformance.tap").read_text().splitlines()
    assert tap[0] == "# generation: new"
    assert tap[-1] == f"1..{len(tap) - 2}"
    assert sum(line.startswith("ok ") and "# SKIP" not in line for line in tap) > 100
    result = json.loads((reports / "result.json").read_text())
    assert (result["ended"], result["left_over_processes"]) == (None, 0)
    assert [step["name"] for step in result["steps"]] == ["doctor", "pytest", "conformance", "bench"]
    assert result["facts"]["kernel"] == os.uname().release
    log = (reports / "kernel.log").read_text()
    assert log.startswith("[") if result["kernel_log"] is None and log else log == ""
    assert stat.S_IMODE(reports.stat().st_mode) == 0o700


def test_the_page_to_read(reports: Path) -> None:
    page = (reports / "report.md").read_text()
    assert "this says nothing about hardware" in page
    assert "without --write" in page
    assert "3 passed, " in page
    assert "| sevkvm dump of an encrypted guest | " in page
    assert "- warn: processor, SEV" in page
    assert "The directory there was removed." in page


def running(
    far: Sshd, wheel: Path, directory: Path, until: str
) -> tuple[subprocess.Popen[str], Callable[[], list[Any]]]:
    """A run that has come to a step; and what is left on the far side."""
    argv = hil(far, wheel, directory, "--only", "tests/sev/test_lab_encrypted.py", "--no-bench")
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    said = ""
    for line in process.stderr:
        said += line
        if line == f"hil: {until}\n":
            break
    else:
        pytest.fail(said)
    return process, lambda: [*(directory / "far").iterdir(), *processes_in(directory / "far")]


def wait_until_clean(left: Callable[[], list[Any]]) -> None:
    deadline = time.monotonic() + SECONDS
    while left():
        assert time.monotonic() < deadline, left()
        time.sleep(0.1)


def test_ctrl_c_leaves_nothing_and_brings_what_there_is(far: Sshd, wheel: Path, tmp_path: Path) -> None:
    process, left = running(far, wheel, tmp_path, "pytest")
    assert left()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, said
    assert "nothing of ours is left on localhost" in said
    assert left() == []
    assert json.loads((tmp_path / "reports" / "result.json").read_text())["ended"]
    assert "It ended before its time" in (tmp_path / "reports" / "report.md").read_text()
    assert json.loads((tmp_path / "reports" / "doctor.json").read_text())["checks"]


def test_killed_here_it_cleans_up_there(far: Sshd, wheel: Path, tmp_path: Path) -> None:
    process, left = running(far, wheel, tmp_path, "pytest")
    process.kill()
    process.wait(20)
    wait_until_clean(left)


def test_a_host_that_cannot_be_reached(tmp_path: Path, wheel: Path) -> None:
    nowhere = Sshd(1, ("BatchMode=yes",))
    argv = hil(nowhere, wheel, tmp_path)
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 3
    assert "sent no report (ssh ended with status 255)" in done.stderr
    assert not (tmp_path / "reports").exists()
