"""The options shared by every command that needs a guest, and the session they open."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

from sevkvm.cli.command import SectionOption
from sevkvm.cli.progress import search_teller
from sevkvm.cli.run import say, warn
from sevkvm.cli.signals import Deferral
from sevkvm.cli.values import ADDRESS, SECONDS, SIZE, number
from sevkvm.errors import SevKvmError
from sevkvm.paging.mode import OPTION_NAMES, PagingMode

if TYPE_CHECKING:
    from sevkvm.attach import Needs
    from sevkvm.guest import Guest

_MOST_PID = 1 << 22  # PID_MAX_LIMIT of include/linux/threads.h
_MOST_FD = (1 << 31) - 1
_MOST_VCPU = 4095
_SECTION = "Which guest, and how to reach it"

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class GuestSession:
    """What the guest options said: opens the guest, and tells what it cost.

    ``arguments`` are those of AttachOptions; ``file`` and ``file_format`` name a dump to open instead of a VM.
    ``stats`` is filled when the guest is left.
    """

    def __init__(
        self, arguments: dict[str, Any], file: str | None = None, file_format: str | None = None
    ) -> None:
        self.arguments = arguments
        self.file = file
        self.file_format = file_format
        self.stats: dict[str, int] | None = None

    @contextmanager
    def open(
        self,
        *,
        need_debug: bool = True,
        needs: Needs | None = None,
        reach: tuple[int, int] | None = None,
    ) -> Iterator[Guest]:
        """Attach and yield the Guest. Render after leaving: a slow reader must not hold up the VMM.

        ``needs`` None: everything. ``reach``: just these guest-physical addresses (half-open).
        """
        opened = self._dump() if self.file is not None else self._vm(need_debug, needs, reach)
        deferral = Deferral()
        with ExitStack() as stack:  # left from the bottom up
            stack.callback(deferral.end)
            guest = stack.enter_context(opened)
            stack.callback(self._count, guest)
            stack.callback(deferral.start)
            yield guest

    def _vm(
        self, need_debug: bool, needs: Needs | None, reach: tuple[int, int] | None
    ) -> AbstractContextManager[Guest]:
        from sevkvm import attach

        options = attach.AttachOptions(**self.arguments)
        return attach.open_guest(
            options,
            warn=warn,
            searching=search_teller(say),
            need_debug=need_debug,
            needs=needs or attach.Needs.ALL,
            reach=reach,
        )

    def _dump(self) -> AbstractContextManager[Guest]:
        """The file; click.UsageError for options that only a VMM has a use for."""
        from sevkvm import attach

        context = click.get_current_context()
        for name in _VMM_ONLY:
            if self.arguments.get(name) is not None:
                option = name.replace("_", "-")
                raise click.UsageError(
                    f"--file and --{option} exclude each other: a dump has no VMM", context
                )
        assert self.file is not None
        told = {name: value for name, value in self.arguments.items() if name not in (*_VMM_ONLY, "timeout")}
        options = attach.DumpOptions(self.file, self.file_format, **told)
        return attach.open_dump(options, warn=warn, searching=search_teller(say))

    def _count(self, guest: Guest) -> None:
        with suppress(SevKvmError):  # a VMM that is gone: the first error is the one to tell
            self.stats = guest.stats()

    def tell_stats(self, *, as_json: bool) -> None:
        """Print the counts, if there are any, as one line on stderr: NAME=NUMBER each, or a JSON object."""
        if self.stats is None:
            return
        if as_json:
            import json

            click.echo(json.dumps({"stats": self.stats}), err=True)
        else:
            say("stats: " + " ".join(f"{name}={value}" for name, value in self.stats.items()))


def _guest_option(*names: str, **settings: Any) -> Decorator:
    return click.option(*names, cls=SectionOption, section=_SECTION, **settings)


def _timeout(**settings: Any) -> Decorator:
    return click.option(
        "--timeout",
        type=SECONDS,
        default=5.0,
        show_default=True,
        metavar="SECONDS",
        help="Longest wait for the VMM or its monitor.",
        **settings,
    )


def complete_pid(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Processes that hold a KVM VM, for the shell's completion."""
    from sevkvm.cli.complete import vmm_pids

    return [pid for pid in vmm_pids() if pid.startswith(incomplete)]


def _paging_mode(ctx: click.Context, param: click.Parameter, name: str | None) -> PagingMode | None:
    return None if name is None else PagingMode(OPTION_NAMES.index(name))


_VIA: dict[str, Any] = {
    "type": click.Choice(["auto", "deputy", "mirror", "local"]),
    "show_default": "auto",
    "help": "The way in. deputy: a thread added to the VMM. mirror: a VM of our own, while the VMM is left alone.",
}

_OPTIONS = (
    _guest_option(
        "--pid",
        type=number(1, _MOST_PID),
        metavar="PID",
        shell_complete=complete_pid,
        help="The VMM's process.",
    ),
    _guest_option(
        "--vm-fd",
        type=number(0, _MOST_FD),
        metavar="N",
        help="The VM's descriptor there; without --pid, one this process inherited, or the only VM's here.",
    ),
    _guest_option(
        "--file", metavar="DUMP", type=click.Path(), help="A dump of a guest, instead of a running one."
    ),
    _guest_option(
        "--file-format",
        "opened_format",  # file_format is what `dump` writes
        type=click.Choice(["elf", "kdump", "kdump-flattened", "lime", "raw"]),
        help="Its format, instead of what its first bytes say.",
    ),
    _guest_option("--qmp", metavar="SOCKET", type=click.Path(), help="The VMM's QMP monitor (UNIX socket)."),
    _guest_option("--libvirt", metavar="DOMAIN", help="Ask the monitor through virsh."),
    _guest_option("--via", **_VIA),
    _guest_option(
        "--slot",
        "slots",
        multiple=True,
        metavar="GPA:SIZE:HVA[:ro]",
        help="Guest RAM (:ro, ROM) in the VMM's memory, or at offset HVA of a raw --file; repeatable.",
    ),
    _guest_option(
        "--cbit-pos", type=number(32, 51), metavar="N", help="The C-bit's position in page-table entries."
    ),
    _guest_option(
        "--cr3", type=ADDRESS, metavar="ADDR", help="Root of the page tables, instead of a vCPU's CR3."
    ),
    _guest_option(
        "--paging",
        type=click.Choice(OPTION_NAMES),
        callback=_paging_mode,
        help="How the page tables are read, whatever the vCPU says.",
    ),
    _guest_option("--vcpu", type=number(0, _MOST_VCPU), metavar="N", help="Use this vCPU's registers."),
    _guest_option(
        "--search-limit",
        type=SIZE,
        default=4 << 30,
        show_default="4G",
        metavar="SIZE",
        help="Most guest memory to read in search of Linux's own tables, where registers are unknown.",
    ),
    _timeout(cls=SectionOption, section=_SECTION),
    _guest_option("--stats", "with_stats", is_flag=True, help="Tell on stderr what it cost."),
)
_VMM_ONLY = ("pid", "vm_fd", "qmp", "libvirt", "via", "mmio")
_NAMES = (
    *("pid", "vm_fd", "qmp", "libvirt", "via", "slots", "cbit_pos"),
    *("cr3", "paging", "vcpu", "search_limit", "timeout"),
)


def guest_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the guest options; it gets them as its argument ``session``."""

    @functools.wraps(function)
    def wrapper(**settings: Any) -> Any:
        arguments = {name: settings.pop(name) for name in _NAMES}
        session = GuestSession(arguments, settings.pop("file"), settings.pop("opened_format"))
        if settings.pop("mmio", False):
            session.arguments["mmio"] = True
        if session.file is None and session.file_format is not None:
            raise click.UsageError("--file-format needs --file", click.get_current_context())
        if settings.pop("with_stats"):
            # also when the command fails: the counts then say how far it came
            tell = functools.partial(session.tell_stats, as_json=settings.get("as_json", False))
            click.get_current_context().call_on_close(tell)
        return function(session=session, **settings)

    decorated: Callable[..., Any] = wrapper
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


mmio_option = click.option(
    "--mmio",
    is_flag=True,
    help="Let the VMM's monitor read what is no RAM: a device, which that can change.",
)
"""For commands that show memory; ``guest_options`` takes it."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON (docs/json.md).")

timeout_option = _timeout()
via_option = click.option("--via", **_VIA)
