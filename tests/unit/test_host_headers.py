"""Our numbers and struct layouts against this machine's kernel headers, through a small C program."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from sevkvm.abi import kvm, sev
from tests.support.layouts import LAYOUTS

SOURCE = Path(__file__).parents[1] / "csrc" / "abi_check.c"
HEADERS = [Path("/usr/include/linux/kvm.h"), Path("/usr/include/linux/psp-sev.h")]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the headers say: name or ``struct.field`` to number, size or offset."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    missing = [str(header) for header in HEADERS if not header.exists()]
    if missing:
        pytest.skip(f"no kernel headers: {', '.join(missing)} (Debian: linux-libc-dev)")
    program = tmp_path_factory.mktemp("abi") / "abi_check"
    build = [compiler, "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-o", str(program), str(SOURCE)]
    subprocess.run(build, check=True, timeout=60)
    output = subprocess.run([str(program)], check=True, capture_output=True, text=True, timeout=10).stdout
    return {name: int(value) for name, value in (line.split() for line in output.splitlines())}


def test_every_ioctl_number(host: dict[str, int]) -> None:
    ours = {name: number for number, name in kvm.REQUEST_NAMES.items()}
    ours |= {"SEV_ISSUE_CMD": sev.SEV_ISSUE_CMD, "KVM_MEM_READONLY": kvm.KVM_MEM_READONLY}
    assert {name: host.get(name) for name in ours} == ours
    assert host.get("KVM_CAP_VM_TYPES", 235) == kvm.KVM_CAP_VM_TYPES


def test_every_struct_layout(host: dict[str, int]) -> None:
    layouts = [each for each in LAYOUTS if not each.newer_than_headers or each.kernel_name in host]
    ours = {layout.kernel_name: layout.nbytes for layout in layouts}
    for layout in layouts:
        for field in layout.offsets:
            ours[f"{layout.kernel_name}.{field}"] = layout.measured_offset(field)
    assert {name: host.get(name) for name in ours} == ours


def test_commands_and_statuses_that_the_headers_know(host: dict[str, int]) -> None:
    pairs = [(f"KVM_SEV_{command.name}", command.value) for command in sev.SevCmd]
    pairs += [(f"SEV_{command.name}", command.value) for command in sev.PlatformCmd]
    pairs += [(f"SEV_RET_{status.name}", status.value) for status in sev.FwStatus]
    known = {name: value for name, value in pairs if name in host}
    assert known.keys() >= {"KVM_SEV_DBG_DECRYPT", "SEV_PLATFORM_STATUS", "SEV_RET_INACTIVE"}
    assert {name: host[name] for name in known} == known
