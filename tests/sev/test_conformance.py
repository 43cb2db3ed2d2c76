"""The conformance suite (tests/csrc/sev_conformance.c): on the pretend host in all its forms, and on a real one."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sevkvm.shim import hardware
from sevkvm.shim.faults import Faults, parse_fault
from sevkvm.shim.generation import Generation
from sevkvm.shim.supervisor import KvmMode, SevHost
from tests.support import conformance
from tests.support.conformance import Verdict
from tests.support.sevhost import require_kvm_mode

pytestmark = pytest.mark.sev

# What pretend hosts do not have, and what nobody can bring about with ioctls. No other row may be skipped there.
NOT_ON_A_PRETEND_HOST = {
    "order.snp",
    "firmware.inactive",
    "firmware.not-initialised",
    "firmware.bad-range",
    "firmware.snp-buffers",
    "device.no-processor",
    "device.old-firmware",
}

# Rows for a secure processor that fails, and how it is made to.
BROKEN = {
    "timeout": "psp-timeout:after=30",
    "dead": "psp-dead:after=30",
    "absent": "guest_status:errno=ENODEV",
    "third-page": "dbg_decrypt:after=2:count=1:status=HWSEV_RET_PLATFORM",
}

Results = Callable[[KvmMode, Generation], dict[str, Verdict]]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return conformance.build(tmp_path_factory.mktemp("conformance"))


@pytest.fixture(scope="session")
def results(program: Path) -> Results:
    """One run for each form of the pretend host."""
    known: dict[tuple[KvmMode, Generation], dict[str, Verdict]] = {}

    def results(kvm: KvmMode, generation: Generation) -> dict[str, Verdict]:
        require_kvm_mode(kvm)
        if (kvm, generation) not in known:
            with SevHost(kvm=kvm, generation=generation) as host:
                # the harm that rows may do is confined to the pretend host
                known[kvm, generation] = conformance.run(program, "--destructive", popen=host.popen)
        return known[kvm, generation]

    def of_hardware(kvm: KvmMode, generation: Generation) -> dict[str, Verdict]:
        require_kvm_mode(kvm)
        found = conformance.generation(program)
        if found != generation:
            pytest.skip(f"this kernel's debug commands are of the {found} generation")
        if (kvm, generation) not in known:
            known[kvm, generation] = conformance.run(program)
        return known[kvm, generation]

    if hardware.wanted():
        return of_hardware

    return results


def rows(generation: Generation) -> list[str]:
    return [name for name in conformance.rows(generation) if not name.startswith("broken.")]


@pytest.mark.parametrize("row", rows("new"))
@pytest.mark.parametrize("kvm", ["real", "standin"])
def test_new(kvm: KvmMode, row: str, results: Results) -> None:
    judge(results(kvm, "new")[row], row)


@pytest.mark.parametrize("row", rows("old"))
@pytest.mark.parametrize("kvm", ["real", "standin"])
def test_old(kvm: KvmMode, row: str, results: Results) -> None:
    judge(results(kvm, "old")[row], row)


def judge(verdict: Verdict, row: str) -> None:
    assert verdict.ok, verdict.told
    if verdict.skipped is not None:
        assert hardware.wanted() or row in NOT_ON_A_PRETEND_HOST, verdict.skipped
        pytest.skip(verdict.skipped)


@pytest.mark.parametrize("generation", ["new", "old"])
@pytest.mark.parametrize("how", BROKEN)
def test_broken(how: str, generation: Generation, program: Path) -> None:
    require_kvm_mode("standin")
    faults = Faults([parse_fault(BROKEN[how])])
    row = f"broken.{how}"
    with SevHost(kvm="standin", generation=generation, faults=faults) as host:
        verdicts = conformance.run(
            program, "--generation", generation, "--only", row, "--broken", how, popen=host.popen
        )
    assert verdicts == {row: Verdict(True, None, "")}


@pytest.mark.parametrize("generation", ["new", "old"])
def test_the_program_lists_the_rows_that_are_tested_here(program: Path, generation: str) -> None:
    listed = subprocess.run(
        [program, "--list", "--generation", generation],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=30,
    )
    names = [line.split()[0] for line in listed.stdout.splitlines()]
    assert sorted(names) == sorted(conformance.rows(generation))
    assert len(set(names)) == len(names)


def test_one_row_by_itself_and_an_unknown_one(program: Path) -> None:
    require_kvm_mode("standin")
    with SevHost(kvm="standin") as host:
        verdicts = conformance.run(program, "--only", "order.null", popen=host.popen)
    assert verdicts == {"order.null": Verdict(True, None, "")}
    assert (
        subprocess.run([program, "--only", "no.such"], stderr=subprocess.DEVNULL, timeout=30).returncode == 2
    )


def test_where_there_is_no_sev_it_gives_up_and_says_why(program: Path) -> None:
    done = subprocess.run(
        [program, "--sev", "/nowhere/sev"], stdout=subprocess.PIPE, text=True, check=False, timeout=30
    )
    assert done.returncode == 1
    assert done.stdout.startswith("Bail out! ")
