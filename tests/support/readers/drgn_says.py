"""Runs inside drgn, ``prog`` being the dump: prints as JSON what it finds there."""

# ruff: noqa: F821
import json

from drgn.helpers.linux import cmdline, for_each_task, get_dmesg
from drgn.helpers.linux.mm import access_process_vm

SECRET_GVA = 0x5_EC4E_7000
tasks = {task.pid.value_(): task for task in for_each_task(prog)}
name = prog["init_uts_ns"].name
keepers = [task for task in tasks.values() if task.comm.string_().startswith(b"keeper-")]
print(
    json.dumps(
        {
            "processes": {pid: task.comm.string_().decode() for pid, task in tasks.items()},
            "log": get_dmesg(prog).decode(),
            "release": name.release.string_().decode(),
            "version": name.version.string_().decode(),
            "nodename": name.nodename.string_().decode(),
            "secrets": {
                task.comm.string_().decode(): access_process_vm(task, SECRET_GVA, 64).decode()
                for task in keepers
            },
            "commands": [b" ".join(cmdline(task)).decode() for task in keepers],
            "threads": len(list(prog.threads())),
        }
    )
)
