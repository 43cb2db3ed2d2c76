"""The initial root file system of the lab's Linux: busybox, the keepers, and what they say on the console."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sevkvm.lab import cpio
from sevkvm.lab.keeper import Keeper

READY: Final = "sevkvm-ready"
KEEPERS: Final = (Keeper("alpha"), Keeper("bravo"), Keeper("charlie"))
HOSTNAME: Final = "sevkvm-lab"

# Lines "sevkvm-fact NAME=VALUE" are for the program on the host, the rest for people.
_SCRIPT: Final = """\
#!/bin/busybox sh
b=/bin/busybox
fact() { echo "sevkvm-fact $1=$2"; }
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
$b hostname @HOSTNAME@
for name in @KEEPERS@; do
    /bin/keeper-$name > /run/$name &
    until [ -s /run/$name ]; do $b usleep 20000; done
    fact keeper.$name.pid $!
    $b cat /run/$name
done
fact version "$($b cat /proc/version)"
fact vmcoreinfo "$($b cat /sys/kernel/vmcoreinfo)"
$b awk '$3 ~ /^(linux_banner|init_task|swapper_pg_dir|init_top_pgt|page_offset_base)$/ \\
    { print "sevkvm-fact symbol." $3 "=" $1 }' /proc/kallsyms
$b grep 'System RAM' /proc/iomem
$b uname -a
$b cat /proc/meminfo | $b head -n 3
$b ps
$b dmesg | $b tail -n 20
echo @READY@
# Whoever booted us may have died: do not idle for ever.
$b sleep 900
$b poweroff -f
"""


def build(busybox: bytes, keepers: Sequence[Keeper] = KEEPERS) -> bytes:
    """The archive, not compressed: the kernel unpacks it faster."""
    script = (
        _SCRIPT.replace("@HOSTNAME@", HOSTNAME)
        .replace("@READY@", READY)
        .replace("@KEEPERS@", " ".join(keeper.name for keeper in keepers))
    )
    entries = [cpio.directory(name) for name in ("bin", "dev", "proc", "run", "sys")]
    # The kernel opens it for the first process, before anything is mounted.
    entries.append(cpio.character_device("dev/console", 5, 1))
    entries.append(cpio.program("bin/busybox", busybox))
    entries += [cpio.program(f"bin/keeper-{keeper.name}", keeper.program()) for keeper in keepers]
    entries.append(cpio.program("init", script.encode()))
    return cpio.archive(entries)
