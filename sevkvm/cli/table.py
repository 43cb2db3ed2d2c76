"""Every command: where it lives, what it does in one line, which section of the help it belongs to.

A plain table, so that ``sevkvm --help`` imports no command. Each module has a click command named ``command``.
"""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """One command: ``module`` under ``sevkvm.cli``, one line of help, a heading."""

    module: str
    help: str
    section: str


GUESTS = "Guests on this host"
MEMORY = "Registers and memory of a guest"
FILES = "Files"
PRACTICE = "Practice without SEV hardware"
SHELL = "Shell"

COMMANDS = {
    "list": Entry("list", "the KVM guests of this host, and which may be debugged", GUESTS),
    "status": Entry("status", "what protects a guest; its policy, state, C-bit, memory slots", GUESTS),
    "verify": Entry("verify", "prove that memory is encrypted, for a CI pipeline to gate on", GUESTS),
    "audit": Entry("audit", "what its page tables and registers leave open, with evidence; SARIF", GUESTS),
    "policy": Entry("policy", "explain the bits of a guest policy, or make one", GUESTS),
    "doctor": Entry("doctor", "can this host and this guest be looked into; what to do if not", GUESTS),
    "regs": Entry("regs", "registers of its vCPUs", MEMORY),
    "translate": Entry("translate", "where virtual addresses go, by its page tables", MEMORY),
    "tlb": Entry("tlb", "every page that its page tables map, as QEMU's info tlb", MEMORY),
    "mem": Entry("mem", "what they map as runs, as QEMU's info mem", MEMORY),
    "monitor": Entry("monitor", "the commands of QEMU's monitor: a console, or for scripts", MEMORY),
    "x": Entry("x", "print virtual memory, as QEMU's monitor does", MEMORY),
    "xp": Entry("xp", "print physical memory, as QEMU's monitor does", MEMORY),
    "symbols": Entry("symbols", "the names of its kernel's functions and variables; for gdb", MEMORY),
    "write": Entry("write", "change its memory, and print what was there", MEMORY),
    "gdbserver": Entry("gdbserver", "serve it to gdb: registers, virtual memory, stop and go", MEMORY),
    "drgn": Entry("drgn", "debug its Linux with drgn: a prompt, or scripts", MEMORY),
    "search": Entry("search", "find strings, bytes or regular expressions in its memory", MEMORY),
    "pages": Entry("pages", "which of its pages are private, shared, never touched", MEMORY),
    "dump": Entry("dump", "write its memory to a file", FILES),
    "lab": Entry("lab", "start a small guest whose every byte is known", PRACTICE),
    "shim": Entry("shim", "run any program on a pretend SEV host", PRACTICE),
    "completion": Entry("completion", "print the completion script of a shell", SHELL),
}
