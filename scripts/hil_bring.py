"""What scripts/hil brings to a host: the wheel, the tests, the conformance program, wheels of what is needed."""

from __future__ import annotations

import importlib.util
import io
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = "shim,dump,disasm"
NEEDS = ("pytest>=8", "pytest-timeout>=2", "pyelftools>=0.30")
_BUILD_SECONDS, _DOWNLOAD_SECONDS = 300, 900
_SOURCES = ("csrc", "sevkvm", "setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")
_TESTS = ("tests", "scripts", "csrc", "docs", "pyproject.toml", "README.md")
_LITTER = shutil.ignore_patterns(".*", "build", "*.so", "*.o", "*.egg-info", "__pycache__", "native.gen.c")
_PLATFORMS = ("linux_x86_64", "manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64")


class CannotBring(Exception):
    """Something could not be made here; the message says what."""


def _run(argv: list[str], seconds: float, cwd: Path = ROOT) -> None:
    try:
        done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotBring(f"{' '.join(argv[:5])}: {error}") from error
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise CannotBring(f"{' '.join(argv[:5])} failed:\n{said}")


def build_wheel(scratch: Path) -> Path:
    """The wheel of this work tree, built from a copy of it."""
    source = scratch / "source"
    source.mkdir()
    for name in _SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=_LITTER)
        else:
            shutil.copy(path, source)
    argv = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps"]
    if all(importlib.util.find_spec(name) for name in ("setuptools", "wheel", "cffi")):
        argv.append("--no-build-isolation")
    _run([*argv, "-w", str(scratch), str(source)], _BUILD_SECONDS, source)
    (wheel,) = scratch.glob("sevkvm-*.whl")
    return wheel


def build_conformance(scratch: Path) -> Path:
    """The conformance program, linked statically where that can be: the host needs no compiler then."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise CannotBring("no C compiler (cc, gcc) for the conformance program")
    program = scratch / "sev_conformance"
    sources = [ROOT / "tests/csrc/sev_conformance.c", *sorted((ROOT / "tests/csrc/conformance").glob("*.c"))]
    argv = [compiler, "-std=gnu11", "-pthread", "-o", str(program), *map(str, sources)]
    try:
        _run([*argv, "-static"], _BUILD_SECONDS)
    except CannotBring:
        _run(argv, _BUILD_SECONDS)
    return program


def fill_wheelhouse(house: Path, wheel: Path, far_python: str) -> None:
    """Download into ``house`` what the wheel and the tests need on a Python of that version ("3.12")."""
    house.mkdir(parents=True, exist_ok=True)
    wanted = [f"{wheel}[{EXTRAS}]", *NEEDS]
    pip = [sys.executable, "-m", "pip"]
    quiet = ["-q", "--disable-pip-version-check", "--no-input"]
    if far_python == f"{sys.version_info[0]}.{sys.version_info[1]}":
        _run([*pip, "wheel", *quiet, "-w", str(house), *wanted], _DOWNLOAD_SECONDS)
        return
    argv = [*pip, "download", *quiet, "--only-binary", ":all:", "--python-version", far_python]
    for platform in _PLATFORMS:
        argv += ["--platform", platform]
    _run([*argv, "-d", str(house), *wanted], _DOWNLOAD_SECONDS)


def _ours(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    litter = (".so", ".o", ".pyc", "/__pycache__", ".egg-info")
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return None if member.name.endswith(litter) or "/." in member.name else member


def payload(wheel: Path, conformance: Path, house: Path | None) -> bytes:
    """A tar of all of it, compressed."""
    room = io.BytesIO()
    with tarfile.open(fileobj=room, mode="w:gz", compresslevel=3) as archive:
        for name in _TESTS:
            archive.add(ROOT / name, name, filter=_ours)
        for path in (wheel, conformance):
            archive.add(path, path.name, filter=_ours)
        for path in sorted(house.glob("*.whl")) if house else ():
            if not path.name.startswith("sevkvm-"):
                archive.add(path, f"wheelhouse/{path.name}", filter=_ours)
    return room.getvalue()
