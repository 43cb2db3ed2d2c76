"""What scripts/hil makes of reports, and what it takes from the far side. Over ssh: tests/sev/test_hil_ssh.py."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hil_bring import payload
from hil_report import read_tap, verdict, write_report
from tests.support.build import ROOT

SCRIPTS = ROOT / "scripts"

GOOD_XML = '<testsuites><testsuite><testcase classname="tests.sev.test_x" name="a"/></testsuite></testsuites>'
GOOD_TAP = "# generation: new\nok 1 - order.null\nok 2 - order.snp # SKIP no SNP\n1..2\n"
STEP = {"name": "pytest", "status": 0, "seconds": 1.0, "ended": None}


@pytest.fixture(scope="module")
def hil() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("hil_program", str(SCRIPTS / "hil"))
    spec = importlib.util.spec_from_loader("hil_program", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def reports(out: Path, *, xml: str | None = GOOD_XML, tap: str | None = GOOD_TAP, **result: Any) -> Path:
    for name, text in (("junit.xml", xml), ("conformance.tap", tap)):
        if text is not None:
            (out / name).write_text(text)
    told = {"facts": {"kernel": "6.18"}, "ended": None, "steps": [STEP], "kernel_log": None} | result
    (out / "result.json").write_text(json.dumps(told))
    return out


def test_all_well(tmp_path: Path) -> None:
    assert verdict(reports(tmp_path)) == 0
    write_report(tmp_path, "epyc", shim=False, write=True)
    page = (tmp_path / "report.md").read_text()
    assert "Ran on the hardware of that host; with --write." in page
    assert "1 passed, 1 skipped" in page
    assert "- 1: no SNP" in page


FAILURE = '<testcase classname="t" name="b"><failure message="assert 1 == 2&#10;more"/></testcase>'
SKIP = '<testcase classname="t" name="c"><skipped message="no /dev/sev"/></testcase>'


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"xml": GOOD_XML.replace("<testsuite>", f"<testsuite>{FAILURE}")}, "- **t::b**: assert 1 == 2\n"),
        ({"xml": f"<testsuites>{SKIP}</testsuites>"}, "1 skipped"),
        ({"xml": "<testsuites"}, "none ran"),
        ({"xml": None}, "none ran"),
        ({"tap": GOOD_TAP.replace("ok 1", "not ok 1", 1)}, "**order.null**"),
        ({"tap": GOOD_TAP.rpartition("1..")[0]}, "it did not come to its end"),
        ({"tap": "Bail out! no /dev/sev\n"}, "Bail out! no /dev/sev"),
        ({"tap": None}, "none ran"),
        ({"steps": [STEP | {"ended": "took too long"}]}, "took too long"),
        ({"ended": "whoever asked for it has gone"}, "**It ended before its time"),
    ],
)
def test_what_is_no_success(tmp_path: Path, changed: dict[str, Any], told: str) -> None:
    assert verdict(reports(tmp_path, **changed)) == 1
    write_report(tmp_path, "epyc", shim=False, write=False)
    assert told in (tmp_path / "report.md").read_text()


def test_a_host_that_could_not_be_set_up(tmp_path: Path) -> None:
    result = {"ended": "python3 -m venv failed; apt install python3-venv", "steps": [], "kernel_log": "no"}
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert verdict(tmp_path) == 3
    write_report(tmp_path, "epyc", shim=True, write=False)
    page = (tmp_path / "report.md").read_text()
    assert "could not be set up" in page
    assert "apt install python3-venv" in page
    assert "Not readable by that user: no." in page


def test_a_failed_row_says_what_was_wrong(tmp_path: Path) -> None:
    (tmp_path / "tap").write_text("not ok 1 - fd.mode\n# what it is\n# 5 instead of 0\n1..1\n")
    assert read_tap(tmp_path / "tap").failures == [("fd.mode", "what it is 5 instead of 0")]


def test_the_far_side_cannot_write_elsewhere(hil: ModuleType, tmp_path: Path) -> None:
    room = io.BytesIO()
    with tarfile.open(fileobj=room, mode="w:gz") as archive:
        for name in ("./junit.xml", "../evil.txt", "./../evil.txt", "/tmp/evil.txt", "a/b.txt", "report"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    out = tmp_path / "out"
    out.mkdir()
    hil.unpack(room.getvalue(), out)
    assert [path.name for path in out.iterdir()] == ["junit.xml"]
    assert list(tmp_path.iterdir()) == [out]


def test_what_is_brought(tmp_path: Path) -> None:
    for name in ("sevkvm-1-py3-none-any.whl", "sev_conformance", "click-8-py3-none-any.whl"):
        (tmp_path / name).touch()
    data = payload(tmp_path / "sevkvm-1-py3-none-any.whl", tmp_path / "sev_conformance", tmp_path)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        names = set(archive.getnames())
    wanted = {"sevkvm-1-py3-none-any.whl", "sev_conformance", "wheelhouse/click-8-py3-none-any.whl"}
    wanted |= {"tests/conftest.py", "pyproject.toml", "scripts/bench", "csrc/sk_walk.h"}
    assert wanted <= names
    # the package itself comes out of the wheel only
    assert not [name for name in names if name.startswith(("sevkvm/", ".", "wheelhouse/sevkvm"))]
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["--help"], 0, "scripts/hil root@epyc --write"),
        ([], 2, "required"),
        (["-oProxyCommand=x"], 2, "required"),
        (["host", "--wheelhouse", "a", "--far-packages"], 2, "not allowed with"),
    ],
)
def test_its_command_line(words: list[str], status: int, told: str) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPTS / "hil", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert (done.returncode, told in done.stdout) == (status, True), done.stdout


def test_a_directory_that_is_not_empty_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    argv = [sys.executable, SCRIPTS / "hil", "host.invalid", "--output", tmp_path]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "name another --output" in done.stderr
