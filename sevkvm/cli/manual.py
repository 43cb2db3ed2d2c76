"""The words of ``sevkvm --help``: everything a manual page has that the command table does not know."""

from __future__ import annotations

PURPOSE = "look inside encrypted KVM guests (AMD SEV, SEV-ES) from the host"

DESCRIPTION = (
    "sevkvm attaches to a running VMM such as QEMU from outside, reads guest memory in the clear through "
    "KVM's SEV debug interface, and walks the guest's own encrypted page tables. It needs no patched QEMU, no "
    "kernel module and no agent in the guest; the guest's owner must have launched it with a policy that "
    "allows debugging. A guest that is not encrypted works the same way, minus the decryption.",
    "Everything the tool adds to the VMM is taken away again when a command ends, on Ctrl-C too. stdout "
    "carries data, stderr carries talk. `sevkvm COMMAND --help` tells the rest, with examples.",
)

LISTS: dict[str, list[tuple[str, str]]] = {
    "Options of every command that needs a guest": [
        ("--pid PID", "the VMM's process; enough when it has one VM"),
        ("--vm-fd N", "its VM descriptor; alone, one inherited from the VMM or that of the only VM here"),
        ("--file DUMP", "a dump instead of a running guest: ELF core, kdump, LiME, raw"),
        ("--qmp SOCKET", "the VMM's QMP monitor, to ask for the memory layout and the C-bit"),
        ("--libvirt DOMAIN", "ask through `virsh qemu-monitor-command` instead"),
        ("--via WAY", "deputy: a thread added to the VMM; mirror: a VM of our own; by default what serves"),
        ("--slot GPA:SIZE:HVA", "say the memory layout yourself; may be repeated"),
        ("--cbit-pos N", "position of the C-bit in page-table entries, if nobody can tell"),
        ("--cr3 ADDR, --vcpu N", "whose page tables to walk"),
        ("--paging MODE", "how to read them: none, 32, pse, pae, 4level, 5level"),
        ("--timeout SECONDS", "how long to wait for the VMM or its monitor"),
        ("--json, --stats", "results for programs; what it cost"),
    ],
    "Numbers": [
        ("addresses", "0x1000 or 4096"),
        ("sizes", "the same, or with K, M, G, T (powers of 1024)"),
        ("ranges", "START:END without END itself, or START:+SIZE"),
    ],
    "Exit status": [
        ("0", "done"),
        ("1", "failure; an address that is not mapped, a pattern that is not found"),
        ("2", "wrong usage"),
        ("3", "could not attach to the VMM"),
        ("4", "no such process or VM"),
        ("5", "the guest's policy or the platform forbids it"),
        ("6", "finished, but parts of the memory could not be read"),
        ("129, 130, 143", "stopped by SIGHUP, SIGINT, SIGTERM"),
    ],
    "Environment": [
        ("SEVKVM_DEBUG=1", "show where in sevkvm an error came from"),
        ("NO_COLOR=1", "no colours"),
        (
            "SEVKVM_DRGN=OPTIONS",
            "for drgn's own command: the guest that its plug-in is to read (docs/drgn.md)",
        ),
    ],
    "Files": [
        ("/proc/PID/", "where VMMs, their descriptors and mappings are found"),
        ("/dev/sev", "the host's SEV firmware; sevkvm itself needs no access to it"),
    ],
}

BLOCKS = {
    "Examples": """\
# which guests run here, and which may be debugged
sevkvm list
# what protects this one
sevkvm status --pid 4242
# sixteen words of its kernel's memory, as QEMU's monitor prints them
sevkvm x --pid 4242 /16xg 0xffffffff81000000
# what its page tables map, with C-bit and rights
sevkvm mem --pid 4242 --columns
# all of its memory in the clear, as an ELF core
sevkvm dump --pid 4242 --format elf -o guest.core""",
    "Shell completion": """\
eval "$(_SEVKVM_COMPLETE=bash_source sevkvm)"      # bash; put it in ~/.bashrc
eval "$(_SEVKVM_COMPLETE=zsh_source sevkvm)"       # zsh
_SEVKVM_COMPLETE=fish_source sevkvm | source       # fish""",
}
