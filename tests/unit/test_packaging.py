"""What users install: an sdist that builds by itself into one abi3 wheel, which imports from anywhere."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import sevkvm

ROOT = Path(__file__).parents[2]
NEEDED = {"build": 1, "setuptools": 68, "wheel": 0, "cffi": 1}  # least major versions


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def installed(name: str, major: int) -> bool:
    try:
        return int(importlib.metadata.version(name).partition(".")[0]) >= major
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(sdist, wheel): the wheel is built from the unpacked sdist, so a file missing there fails here."""
    missing = [f"{name}>={major}" for name, major in NEEDED.items() if not installed(name, major)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if not (shutil.which("cc") or shutil.which("gcc")):
        pytest.skip("no C compiler")
    source = tmp_path_factory.mktemp("source") / "sevkvm"
    litter = shutil.ignore_patterns(
        ".git", ".venv", ".cache", "build", "dist", "*.so", "*.egg-info", "__pycache__"
    )
    shutil.copytree(ROOT, source, ignore=litter)
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), ".", cwd=source)
    (sdist,) = out.glob("*.tar.gz")
    (wheel,) = out.glob("*.whl")
    return sdist, wheel


def test_the_wheel_serves_every_python_from_3_10_on(built: tuple[Path, Path]) -> None:
    assert built[1].name.startswith(f"sevkvm-{sevkvm.__version__}-cp310-abi3-linux_")


def test_the_wheel_has_the_package_and_nothing_else(built: tuple[Path, Path]) -> None:
    names = zipfile.ZipFile(built[1]).namelist()
    assert {name.split("/")[0] for name in names} == {"sevkvm", f"sevkvm-{sevkvm.__version__}.dist-info"}
    assert {"sevkvm/py.typed", "sevkvm/_native.abi3.so", "sevkvm/_native.pyi"} <= set(names)
    assert any(name.endswith("/LICENSE") for name in names)
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "sevkvm").rglob("*.py")}
    assert ours <= set(names)


def test_the_wheel_brings_its_command_and_its_plugins(built: tuple[Path, Path]) -> None:
    (name,) = [each for each in zipfile.ZipFile(built[1]).namelist() if each.endswith("/entry_points.txt")]
    told = configparser.ConfigParser()
    told.read_string(zipfile.ZipFile(built[1]).read(name).decode())
    assert dict(told["console_scripts"]) == {"sevkvm": "sevkvm.cli:main"}
    assert dict(told["pytest11"]) == {"sevkvm": "sevkvm.shim.pytest_plugin"}
    assert dict(told["drgn.plugins"]) == {"sevkvm": "sevkvm.cli.drgn_plugin"}


def test_the_sdist_has_what_a_developer_needs(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "scripts/test",
        "scripts/check",
        ".ci/run",
    }
    wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("*.[ch]")} - {"csrc/native.gen.c"}
    assert wanted <= names


def test_the_installed_wheel_imports_from_anywhere(built: tuple[Path, Path], tmp_path: Path) -> None:
    zipfile.ZipFile(built[1]).extractall(tmp_path / "site")
    program = "import sys; sys.path.insert(0, 'site'); from sevkvm import native; print(native.__file__)"
    where = run(sys.executable, "-c", program, cwd=tmp_path).strip()
    assert where == "site/sevkvm/native.py" or where == str(tmp_path / "site/sevkvm/native.py")


def test_version_is_told_without_importing_anything() -> None:
    tree = ast.parse((ROOT / "sevkvm" / "_version.py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert f"## [{sevkvm.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_licence_is_apache() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
