"""A vCPU's registers as drgn takes them: the ``struct pt_regs`` of a task that is on a processor.

drgn unwinds tasks that sleep by what the kernel saved; of those that run it knows no registers, but it unwinds from
any ``struct pt_regs`` that it is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from drgn import Object

from sevkvm import errors

if TYPE_CHECKING:
    from collections.abc import Callable

    import drgn

    from sevkvm.drgnprog.memory import ProgramMemory
    from sevkvm.guest import Guest

# by the kernel's names (arch/x86/include/asm/ptrace.h, v6.1); orig_ax is -1 where there was no system call
_GENERAL: Final = (
    *(
        ("ax", "rax"),
        ("bx", "rbx"),
        ("cx", "rcx"),
        ("dx", "rdx"),
        ("si", "rsi"),
        ("di", "rdi"),
        ("bp", "rbp"),
    ),
    *((f"r{number}", f"r{number}") for number in range(8, 16)),
    *(("sp", "rsp"), ("ip", "rip"), ("flags", "rflags")),
)


def vcpu_regs(program: drgn.Program, guest: Guest, memory: ProgramMemory) -> Callable[[int], drgn.Object]:
    """The function of that name: for ``prog.stack_trace(vcpu_regs(0))``."""

    def vcpu_regs(vcpu: int = 0) -> drgn.Object:
        """A vCPU's registers as a struct pt_regs; needs debug symbols. It may run on meanwhile, unless it is held."""
        with memory.working():
            state = next((state for state in guest.registers() if state.index == vcpu), None)
        if state is None:
            raise errors.UsageError(
                f"no vCPU {vcpu}: this guest has {', '.join(map(str, guest.vcpu_indexes))}"
            )
        values = {name: getattr(state.regs, ours) for name, ours in _GENERAL}
        values |= {"orig_ax": (1 << 64) - 1, "cs": state.sregs.cs.selector, "ss": state.sregs.ss.selector}
        return Object(program, "struct pt_regs", value=values)

    return vcpu_regs
