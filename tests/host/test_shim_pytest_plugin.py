"""The pytest plugin as other projects use it: pytest in a process of its own, outside this project."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sevkvm.shim.supervisor import SevHost
from tests.support.build import ROOT
from tests.support.sevhost import require_notification

pytestmark = pytest.mark.host

EXAMPLE = ROOT / "docs" / "examples"
_TIMEOUT = 60.0
_PLUGIN = "sevkvm.shim.pytest_plugin"
# where sevkvm is installed the plugin is there by itself, and pytest minds a second name for it
_INSTALLED = _PLUGIN in {each.value for each in importlib.metadata.entry_points(group="pytest11")}
_PYTEST = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider"]
_PYTEST += [] if _INSTALLED else ["-p", _PLUGIN]


@pytest.fixture(autouse=True)
def _notification() -> None:
    require_notification()


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")} | {
        "PYTHONPATH": str(ROOT)
    }


def outcomes(out: str) -> dict[str, int]:
    last = out.strip().splitlines()[-1]
    return {
        word.rstrip("s"): int(count) for count, word in re.findall(r"(\d+) (\w+)", last.partition(" in ")[0])
    }


def run(directory: Path, text: str, *options: str) -> str:
    (directory / "test_it.py").write_text(textwrap.dedent(text))
    command = [*_PYTEST, "--strict-markers", *options, "test_it.py"]
    done = subprocess.run(
        command, cwd=directory, env=environment(), capture_output=True, text=True, timeout=_TIMEOUT
    )
    return done.stdout + done.stderr


def test_the_example_project_passes(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    for file in EXAMPLE.iterdir():
        if file.suffix in (".py", ".c"):
            shutil.copy(file, tmp_path)
    command = [*_PYTEST, "--strict-markers", "-W", "error", "test_my_vmm.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=_TIMEOUT
    )
    assert outcomes(done.stdout) == {"passed": 7}, done.stdout + done.stderr


def test_nothing_is_imported_for_those_who_do_not_use_it() -> None:
    text = """
    import sys
    import pytest
    before = set(sys.modules)
    import sevkvm.shim.pytest_plugin
    print(*sorted(set(sys.modules) - before))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["sevkvm", "sevkvm._version", "sevkvm.shim", "sevkvm.shim.pytest_plugin"]


def test_each_test_has_a_host_of_its_own_with_the_nearest_options(tmp_path: Path) -> None:
    out = run(
        tmp_path,
        """
        import pytest
        pytestmark = pytest.mark.sev_host(kvm="standin", generation="old")

        def test_module(sev_host):
            assert (sev_host.standin, sev_host.kernel.generation) == (True, "old")
            assert sev_host.popen(["head", "-c0", "/dev/sev"]).wait(10) == 0

        @pytest.mark.sev_host(generation="new", latency=0.001)
        def test_function(sev_host):
            assert (sev_host.standin, sev_host.kernel.generation) == (True, "new")
            assert not sev_host.busy
        """,
    )
    assert outcomes(out) == {"passed": 2}, out


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("kernel='old'", "does not know kernel"),
        ("'old'", "keyword arguments only"),
        ("faults=['dbg_decript:errno=EIO']", "no firmware command is called"),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, options: str, complaint: str) -> None:
    out = run(
        tmp_path,
        f"""
        import pytest
        @pytest.mark.sev_host({options})
        def test_it(sev_host):
            raise AssertionError("it ran")
        """,
    )
    assert complaint in out
    assert outcomes(out) == {"error": 1}, out


def test_it_skips_with_the_reason_where_no_host_can_be_had(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(sev_host):\n    raise AssertionError('it ran')\n")
    with SevHost(kvm="standin") as host:
        process = host.popen(
            [*_PYTEST, "test_it.py"], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
        )
        out, _ = process.communicate(timeout=_TIMEOUT)
    assert outcomes(out) == {"skipped": 1}, out
    assert "sev_host: a seccomp supervisor is installed already" in out
