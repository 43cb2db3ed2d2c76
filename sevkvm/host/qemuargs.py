"""QEMU's command line, as far as it tells where the monitor is, how much RAM there is and how it is laid out.

Pure. Source: qemu(1); its ``key=value,...`` arguments double a comma that belongs to a value. The process may have
been started by anybody: what is not understood is left out, never guessed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

_SHIFTS = {"": 20, "B": 0, "K": 10, "M": 20, "G": 30, "T": 40}  # -m without a unit means MiB
_DEFAULT_RAM_NBYTES = 128 << 20
_RAM_DEVICES = ("pc-dimm", "nvdimm", "virtio-mem", "virtio-pmem")
_ON = ("on", "yes", "true", "y")


@dataclass(frozen=True)
class QemuArgs:
    """One QEMU command line.

    ``ram_nbytes`` and ``machine`` are None where they cannot be known. ``monitor_sockets``: paths of unix sockets on
    which QEMU listens for QMP clients, as QEMU saw them. ``more_ram``: RAM devices are there, or may be plugged in.
    """

    name: str | None = None
    ram_nbytes: int | None = None
    machine: str | None = None
    machine_options: dict[str, str] = field(default_factory=dict)
    monitor_sockets: tuple[str, ...] = ()
    more_ram: bool = False


def is_qemu(argv: Sequence[str]) -> bool:
    """Is the program named like a QEMU system emulator (or ``qemu-kvm``, ``kvm``)?"""
    return re.fullmatch(r"(qemu-system-\w+|qemu-kvm|kvm)([-.].*)?", _program(argv)) is not None


def keyval(text: str, first: str) -> dict[str, str]:
    """``value,key=value,...`` as a dict; a leading word without ``=`` is the value of the key ``first``.

    Any other word without ``=`` is a switch: ``wait`` is ``wait=on``, ``nowait`` is ``wait=off``.
    """
    pairs: dict[str, str] = {}
    for number, part in enumerate(re.findall(r"(?:[^,]|,,)+", text)):
        key, equals, value = part.replace(",,", ",").partition("=")
        if not equals and number == 0:
            key, value = first, key
        elif not equals:
            key, value = (key[2:], "off") if key in ("nowait", "noserver", "nodelay") else (key, "on")
        pairs[key] = value
    return pairs


def parse(argv: Sequence[str]) -> QemuArgs:
    """What the command line of a QEMU says; everything unknown when it is no QEMU's."""
    if not is_qemu(argv):
        return QemuArgs()
    options: defaultdict[str, list[str]] = defaultdict(list)
    for option, value in pairwise([*argv[1:], ""]):
        if option.startswith("-"):
            options[option.removeprefix("-").removeprefix("-")].append(value)
    machine_options: dict[str, str] = {}
    for value in [*options["machine"], *options["M"]]:
        machine_options.update(keyval(value, "type"))
    name = {key: value for text in options["name"] for key, value in keyval(text, "guest").items()}
    memory = {key: value for text in options["m"] for key, value in keyval(text, "size").items()}
    ram_devices = any(value.startswith(_RAM_DEVICES) for value in options["device"])
    configured_elsewhere = "readconfig" in options
    machine = machine_options.pop("type", _default_machine(argv))
    return QemuArgs(
        name=name.get("guest"),
        ram_nbytes=None if configured_elsewhere else _ram_nbytes(memory, machine_options),
        machine=None if configured_elsewhere else machine,
        machine_options=machine_options,
        monitor_sockets=tuple(_monitor_sockets(options)),
        more_ram=ram_devices or "maxmem" in memory,
    )


def _program(argv: Sequence[str]) -> str:
    return argv[0].rpartition("/")[2] if argv else ""


def _default_machine(argv: Sequence[str]) -> str | None:
    # distributions give their qemu-kvm defaults of their own
    return "pc" if _program(argv).startswith("qemu-system-x86_64") else None


def _ram_nbytes(memory: dict[str, str], machine_options: dict[str, str]) -> int | None:
    if "size" not in memory:
        # since 5.0 the size of a memory backend stands in for -m
        return None if "memory-backend" in machine_options else _DEFAULT_RAM_NBYTES
    match = re.fullmatch(r"(\d{1,15})([BKMGT]?)", memory["size"], re.IGNORECASE)
    return int(match[1]) << _SHIFTS[match[2].upper()] if match else None


def _monitor_sockets(options: dict[str, list[str]]) -> Iterator[str]:
    chardevs: dict[str, dict[str, str]] = {}
    for text in options.get("chardev", ()):
        chardev = keyval(text, "backend")
        if chardev.get("backend") == "socket" and "id" in chardev:
            chardevs[chardev["id"]] = chardev
    for text in [*options.get("qmp", ()), *options.get("qmp-pretty", ())]:
        kind, _, rest = text.partition(":")
        if kind == "unix":
            yield from _listening(keyval(rest, "path"))
        elif kind == "chardev":
            yield from _listening(chardevs.get(rest, {}))
    for text in options.get("mon", ()):
        monitor = keyval(text, "chardev")
        if monitor.get("mode") == "control":
            yield from _listening(chardevs.get(monitor.get("chardev", ""), {}))


def _listening(chardev: dict[str, str]) -> Iterator[str]:
    """The path, if QEMU is the server there and the address is in the file system."""
    if chardev.get("server") in _ON and chardev.get("abstract") not in _ON and chardev.get("path"):
        yield chardev["path"]
