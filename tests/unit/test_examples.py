"""The examples of docs/examples/hardware, as far as they can be judged without the laboratory."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest

from tests.support.build import ROOT

yaml = pytest.importorskip("yaml")

EXAMPLES = ROOT / "docs" / "examples" / "hardware"


def load(name: str) -> Any:
    return yaml.safe_load((EXAMPLES / name).read_text())


@pytest.fixture(scope="module")
def options() -> set[str]:
    """That scripts/hil knows."""
    argv = [sys.executable, ROOT / "scripts" / "hil", "--help"]
    told = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
    return set(re.findall(r"--[a-z-]+", told))


def test_the_labgrid_environment_names_a_host_and_options_that_exist(options: set[str]) -> None:
    environment = load("labgrid.yaml")
    (target,) = environment["targets"].values()
    (resource,) = target["resources"]
    assert resource["NetworkService"].keys() == {"name", "address", "username"}
    assert set(re.findall(r"--[a-z-]+", environment["options"]["hil"])) <= options


def test_the_workflow_runs_hil_with_options_that_exist(options: set[str]) -> None:
    workflow = load("self-hosted-runner.yml")
    # YAML 1.1 takes the key "on" for true
    assert set(workflow[True]) == {"workflow_dispatch", "schedule"}
    (job,) = workflow["jobs"].values()
    assert "self-hosted" in job["runs-on"]
    (command,) = [step["run"] for step in job["steps"] if "scripts/hil" in step.get("run", "")]
    assert set(re.findall(r"--[a-z-]+", command + job["steps"][2]["env"]["WRITE"])) <= options


def test_they_say_that_they_were_not_run() -> None:
    assert "Not run here" in (EXAMPLES / "README.md").read_text()
    (EXAMPLES / "labgrid_hil.py").stat()
