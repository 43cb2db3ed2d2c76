"""What ``sevkvm x`` and ``sevkvm xp`` have in common: ``[/FMT] ADDRESS`` in, QEMU's lines or JSON out."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple

import click

from sevkvm.cli.render import hexadecimal, print_json, size
from sevkvm.cli.values import parse_address
from sevkvm.errors import EXIT_HOLES, SevKvmError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sevkvm.attach import Needs
    from sevkvm.cli.options import GuestSession
    from sevkvm.guest import Guest
    from sevkvm.monitor.examine import ExamineFormat
    from sevkvm.monitor.places import Places

_JSON_NBYTES = 16 << 20
_PAGE = 4096


class Question(NamedTuple):
    """What was asked; ``space`` is ``gva`` or ``gpa``."""

    space: str
    address: int
    format: ExamineFormat


def parse_question(space: str, words: tuple[str, ...]) -> Question:
    """``[/FMT] ADDRESS``; click.UsageError or UsageError for anything else."""
    from sevkvm.monitor.examine import parse_format

    context = click.get_current_context()
    if len(words) > 2 or (len(words) == 2 and not words[0].startswith("/")):
        raise click.UsageError("give one address, and before it a format such as /16xg", context)
    fmt = parse_format(words[0] if len(words) == 2 else "/")
    try:
        return Question(space, parse_address(words[-1]), fmt)
    except ValueError as error:
        raise click.UsageError(str(error), context) from None


def answer(
    session: GuestSession,
    question: Question,
    reading: Callable[[Guest], Callable[[int, int], bytes]],
    *,
    as_json: bool,
    need_debug: bool = True,
) -> None:
    """Read and print; exit with 6 when the answer ends early.

    ``reading`` picks how the guest is read: a function of (address, nbytes) that gives all of it or raises
    MemoryFault. Up to 1 MiB is read in one go while the guest stands still, if it can be held gently, and printed when
    it runs again; more is printed as it is read, from a guest that runs on. Devices (``--mmio``) are read then, too:
    the VMM answers only when its vCPUs run.
    """
    from sevkvm.monitor.examine import examine
    from sevkvm.monitor.places import HELD_NBYTES, Places

    nbytes = question.format.nbytes
    if as_json and nbytes > _JSON_NBYTES:
        raise UsageError(
            f"{size(nbytes)} are too much for JSON", help="`sevkvm dump` writes memory to a file"
        )
    at_once = nbytes <= HELD_NBYTES
    needs, reach = _needs(question), _reach(question)
    with session.open(need_debug=need_debug, needs=needs, reach=reach) as guest:
        with guest.held(needed=False) if at_once else nullcontext():
            places = Places(guest, reading(guest))
            places.keep(question.address, nbytes)
        waits = at_once and not guest.reads_devices
        examination = examine(places.memory, question.format, question.address, places.register)
        if as_json:
            data = _collect(places, question)
        elif waits:
            lines = list(examination)
        else:
            for line in examination:
                sys.stdout.write(line + "\n")
                if guest.reads_devices:
                    sys.stdout.flush()  # whatever comes after it: the device may not tell it again
        complete = len(data) == nbytes if as_json else examination.failed_at is None
        if not complete:
            guest.explain(places.fault)
    if as_json:
        print_json(_as_json(question, data, places.accesses))
    elif waits:
        click.echo("".join(line + "\n" for line in lines), nl=False)
    if not complete:
        click.get_current_context().exit(EXIT_HOLES)


def _needs(question: Question) -> Needs:
    """What lies in one page is read at one moment anyway, and much is read from a guest that runs."""
    from sevkvm.attach import Needs
    from sevkvm.monitor.places import HELD_NBYTES

    nbytes = question.format.nbytes
    moment = question.address % _PAGE + nbytes <= _PAGE or nbytes > HELD_NBYTES
    return Needs.MEMORY if question.space == "gpa" and moment else Needs.ALL


def _reach(question: Question) -> tuple[int, int] | None:
    return None if question.space == "gva" else (question.address, question.address + question.format.nbytes)


def _collect(places: Places, question: Question) -> bytes:
    """All that can be read. What there is already is printed if an error ends it: a device may not tell it again."""
    data = bytearray()
    try:
        for piece in _pieces(places, question):
            data += piece
    except SevKvmError:
        if places.accesses:
            print_json(_as_json(question, data, places.accesses))
        raise
    return bytes(data)


def _pieces(places: Places, question: Question) -> Iterator[bytes]:
    """The readable bytes from the address on, up to the first that is not, in pieces within a page."""
    unit = question.format.unit_nbytes
    address = question.address
    end = min(address + question.format.nbytes, 1 << 64)
    while address < end:
        data = places.memory(address, min(_PAGE - address % _PAGE, end - address))
        if not data and not (address - question.address) % unit:
            data = places.register(address, unit)
        if not data:
            return
        yield data
        address += len(data)


def _as_json(question: Question, data: bytes | bytearray, accesses: int) -> dict[str, object]:
    complete = len(data) == question.format.nbytes
    return {
        "address_space": question.space,
        "address": hexadecimal(question.address),
        "size": len(data),
        "bytes": data.hex(),
        "complete": complete,
        "device_reads": accesses,
        "failed_at": None if complete else hexadecimal(question.address + len(data)),
    }
