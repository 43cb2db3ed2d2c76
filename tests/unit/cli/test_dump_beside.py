"""FILE.sha256, FILE.json and parts, by the command line."""

from __future__ import annotations

import hashlib
import json
import subprocess

import pytest

import sevkvm
from tests.unit.cli.conftest import LOW_NBYTES
from tests.unit.cli.test_json_documented import documented, keys


def test_the_manifest_tells_what_is_in_the_file(attached, run, tmp_path):
    out = tmp_path / "core"
    result = run("dump", "-o", str(out), "--gpa", f"0:{LOW_NBYTES}", "--sha256", "--manifest", "--live")
    assert result.exit_code == 0, result.stderr
    told = json.loads((tmp_path / "core.json").read_text())
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    assert told["files"] == [{"name": "core", "size": LOW_NBYTES, "sha256": digest}]
    assert told["sevkvm"] == sevkvm.__version__
    assert told["started"] <= told["finished"]
    assert told["options"]["gpa"] == ["0x0", hex(LOW_NBYTES)]
    assert told["options"]["live"] is told["dump"]["live"] is True
    assert told["guest"]["sev"] == "sev"
    assert told["guest"]["slots"]
    assert told["dump"]["complete"] is True
    known = documented("dump --manifest") | documented("dump") | documented("status") | documented("list")
    assert keys(told) - known == set()
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_parts_have_a_checksum_each(attached, run, tmp_path):
    out = tmp_path / "core"
    result = run(
        "dump", "-o", str(out), "--gpa", f"0:{LOW_NBYTES}", "--split", "20K", "--sha256", "--manifest"
    )
    assert result.exit_code == 0, result.stderr
    done = subprocess.run(["sha256sum", "-c", "core.sha256"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    parts = sorted(tmp_path.glob("core.[0-9]*"))
    assert done.stdout.splitlines() == [f"{path.name}: OK" for path in parts]
    assert len(parts) == -(-LOW_NBYTES // 20480)
    told = json.loads((tmp_path / "core.json").read_text())
    assert [file["name"] for file in told["files"]] == [path.name for path in parts]
    assert sum(file["size"] for file in told["files"]) == LOW_NBYTES
    assert told["options"]["split"] == 20480


@pytest.mark.parametrize("option", [("--sha256",), ("--manifest",), ("--split", "1M")])
def test_a_pipe_has_nothing_beside_it(attached, run, option):
    result = run("dump", "-o", "-", *option)
    assert result.exit_code == 2
    assert "need the name of a file" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("name", ["core.sha256", "core.json"])
def test_what_exists_beside_it_is_refused_before_the_dump(attached, run, tmp_path, name):
    (tmp_path / name).write_text("precious")
    arguments = ("dump", "-o", str(tmp_path / "core"), "--gpa", "0:8K", "--sha256", "--manifest")
    assert run(*arguments).exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "precious"
    assert run(*arguments, "--force").exit_code == 0
    assert (tmp_path / name).read_text() != "precious"
