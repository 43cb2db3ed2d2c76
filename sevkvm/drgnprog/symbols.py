"""Debug symbols: where drgn finds them by itself, and what to do where it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import drgn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sevkvm.linux.vmcoreinfo import VmcoreInfo


class SymbolOptions(NamedTuple):
    """``files``: named by the user. ``default``: look in the usual places, too."""

    files: Sequence[str] = ()
    default: bool = True


def load_symbols(
    program: drgn.Program, note: VmcoreInfo, options: SymbolOptions, warn: Callable[[str], None]
) -> None:
    """Load them; what is missing is said in a sentence, and no reason to stop."""
    try:
        program.load_debug_info(list(options.files), default=options.default, main=options.default)
    except drgn.MissingDebugInfoError as error:
        if not _knows_kernel(program):
            warn(_advice(note))
        else:
            warn(f"symbols of kernel modules are missing: {_first_line(error)}")
    else:
        if options.files and not _knows_kernel(program):
            warn(
                f"{', '.join(options.files)}: not of this guest's kernel, which is {note.osrelease}"
                + (f", build ID {note.build_id}" if note.build_id else "")
            )


def _knows_kernel(program: drgn.Program) -> bool:
    try:
        return not program.main_module().wants_debug_file()
    except LookupError:
        return False


def _advice(note: VmcoreInfo) -> str:
    build = f" (build ID {note.build_id})" if note.build_id else ""
    return (
        f"no debug symbols of the guest's Linux {note.osrelease}{build}: types, variables and stack traces need them. "
        f"Install linux-image-{note.osrelease}-dbg (Debian), linux-image-{note.osrelease}-dbgsym (Ubuntu) or "
        f"kernel-debuginfo-{note.osrelease} (Fedora, RHEL), set DEBUGINFOD_URLS, or name a vmlinux with -s"
    )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
