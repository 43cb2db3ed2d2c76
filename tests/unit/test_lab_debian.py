from __future__ import annotations

import struct
from pathlib import Path

import pytest

from sevkvm.lab.debian import LabUnavailable, find_kernel, is_static
from sevkvm.lab.keeper import Keeper


def elf(*segment_types: int) -> bytes:
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, len(segment_types), 0, 0, 0)
    return header + b"".join(struct.pack("<I", kind) + bytes(52) for kind in segment_types)


def test_an_interpreter_means_dynamic() -> None:
    assert is_static(elf(1, 1))
    assert not is_static(elf(1, 3, 1))
    assert is_static(Keeper("alpha").program())
    assert not is_static(b"#!/bin/sh\n")
    assert not is_static(b"\x7fELF\x02")


def test_without_apt_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sevkvm.lab.debian.BOOT_DIRECTORY", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabUnavailable, match="apt-cache not found") as caught:
        find_kernel(tmp_path, lambda line: None)
    assert "linux-image-cloud-amd64" in str(caught.value.help)


def test_an_installed_kernel_comes_first_then_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    boot, cache = tmp_path / "boot", tmp_path / "cache"
    boot.mkdir()
    cache.mkdir()
    monkeypatch.setattr("sevkvm.lab.debian.BOOT_DIRECTORY", boot)
    (cache / "vmlinuz-2").write_bytes(b"kernel")
    assert find_kernel(cache, lambda line: None) == cache / "vmlinuz-2"
    (boot / "vmlinuz-empty").touch()
    (boot / "vmlinuz-1").write_bytes(b"kernel")
    assert find_kernel(cache, lambda line: None) == boot / "vmlinuz-1"
