"""The command line. Importing this package imports nothing heavy: every command is loaded when it is used."""

from __future__ import annotations

import sys

from sevkvm.cli.signals import Interrupted, unwinding_signals


def main() -> None:
    """Run ``sevkvm`` with the process's arguments and exit with its status."""
    try:
        with unwinding_signals():
            from sevkvm.cli.program import program

            program.main()
    except Interrupted as interruption:  # outside any command: nothing to unwind
        sys.exit(interruption.exit_status)
