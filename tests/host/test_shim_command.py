"""``sevkvm shim``: exit status, signals, the log, and an ordinary user."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.build import ROOT
from tests.support.sevhost import require_notification
from tests.support.sevprog import program

pytestmark = pytest.mark.host

NOBODY = 65534
_TIMEOUT = 30.0


@pytest.fixture(autouse=True)
def _notification() -> None:
    require_notification()


def shim(*words: str) -> list[str]:
    boot = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from sevkvm.cli import main; main()"
    return [sys.executable, "-I", "-c", boot, "shim", "--kvm", "standin", *words]


def run(*words: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(shim(*words), capture_output=True, text=True, timeout=_TIMEOUT, **settings)


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -KILL $$"], 137),
        (["/nonexistent/program"], 127),
        (["/etc/passwd"], 126),
    ],
)
def test_the_exit_status_is_the_program_s(command: list[str], status: int) -> None:
    done = run("--", *command)
    assert done.returncode == status
    assert done.stdout == ""
    assert bool(done.stderr) == (status in (126, 127))


def test_streams_arguments_and_directory_are_the_program_s(tmp_path: Path) -> None:
    done = run("--", "sh", "-c", 'cat; pwd; echo "$1" >&2', "sh", "--kvm", cwd=tmp_path, input="in\n")
    assert done.stdout == f"in\n{tmp_path}\n"
    assert done.stderr == "--kvm\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_reach_the_program(number: signal.Signals) -> None:
    script = f"trap 'echo got; exit 3' {number.name[3:]}; echo up; while :; do sleep 0.05; done"
    with subprocess.Popen(shim("--", "sh", "-c", script), stdout=-1, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        assert process.stdout.readline() == "got\n"
        assert process.wait(_TIMEOUT) == 3


def test_the_program_starts_with_the_signals_that_we_were_started_with() -> None:
    script = "grep -E '^Sig(Blk|Ign)' /proc/self/status"
    done, plain = run("--", "sh", "-c", script), subprocess.check_output(["sh", "-c", script], text=True)
    assert done.stdout == plain


def test_what_is_left_in_the_background_is_served_to_its_end(tmp_path: Path) -> None:
    late = tmp_path / "late"
    body = f"(sleep 0.5; cat /dev/null; echo done > {late}) >/dev/null 2>&1 & exit 5"
    assert run("--", "sh", "-c", body).returncode == 5
    assert late.read_text() == "done\n"


def test_the_log_has_a_line_for_each_command_and_counts_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    body = program("vm = launch()\nvm.decrypt(vm.hva, vm.out_hva, RAM)\nvm.decrypt(vm.hva, 0x1000, 16)")
    done = run("--log", str(path), "--", sys.executable, "-I", "-c", body)
    assert done.returncode == 0, done.stderr
    *lines, counts = [json.loads(line) for line in path.read_text().splitlines()]
    commands = ["INIT", "LAUNCH_START", "LAUNCH_UPDATE_DATA", "LAUNCH_MEASURE", "LAUNCH_FINISH"]
    assert [line["command"] for line in lines] == [*commands, "DBG_DECRYPT", "DBG_DECRYPT"]
    assert [(line["errno"], line["status"], line["pages"]) for line in lines[-2:]] == [
        ("", "SUCCESS", 4),
        ("ENOMEM", "", 0),
    ]
    assert {line["pid"] for line in lines} == {lines[0]["pid"]}
    assert all(lines[i]["time"] <= lines[i + 1]["time"] for i in range(len(lines) - 1))
    assert counts["counts"]["DBG_DECRYPT"] == 2
    assert counts["firmware_counts"]["DBG_DECRYPT"] == 4


def test_shims_do_not_nest() -> None:
    done = run("--", *shim("--", "true"))
    assert done.returncode == 1
    assert "already" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_ordinary_user_needs_no_rights() -> None:
    body = program(
        """
        vm = launch()
        result = vm.decrypt(vm.hva, vm.out_hva, RAM)[0]
        say(uid=os.getuid(), result=result, text=vm.out[:16].decode(), state=vm.status()[2])
        """
    )
    uid, words = os.getuid(), []
    if uid == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("no setpriv to become an ordinary user with")
        # an ordinary user who may still read root's files: the interpreter and the package may be there
        uid, keep = NOBODY, "+dac_read_search"
        words = [
            "setpriv",
            f"--reuid={uid}",
            f"--regid={uid}",
            "--clear-groups",
            "--bounding-set=-all," + keep,
        ]
        words += [f"--inh-caps=-all,{keep}", f"--ambient-caps={keep}"]
    argv = [*words, *shim("--", sys.executable, "-I", "-c", body)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=_TIMEOUT, cwd="/")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"uid": uid, "result": 0, "text": "plain text 16 b\n", "state": 3}
