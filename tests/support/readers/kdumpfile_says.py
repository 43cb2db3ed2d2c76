"""Runs under Debian's Python: prints as JSON what libkdumpfile finds in a dump. Members' offsets are told to it.

kdumpfile_says.py DUMP '{"tasks": 2200, "pid": ..., "comm": ...}' INIT_TASK_GVA
"""

import json
import sys

import kdumpfile

MAX_TASKS = 4096
dump = kdumpfile.kdumpfile(sys.argv[1])
offsets = json.loads(sys.argv[2])
init_task = int(sys.argv[3], 16)
dump.attr["addrxlat.ostype"] = "linux"


def read(gva, nbytes):
    return bytes(dump.read(kdumpfile.KDUMP_KVADDR, gva, nbytes))


def word(gva):
    return int.from_bytes(read(gva, 8), "little")


processes = {}
task = init_task
for _ in range(MAX_TASKS if offsets else 0):
    task = word(task + offsets["tasks"]) - offsets["tasks"]
    if task == init_task:
        break
    pid = int.from_bytes(read(task + offsets["pid"], 4), "little")
    processes[pid] = read(task + offsets["comm"], 16).split(b"\0")[0].decode()

uts = read(int(dump.attr["linux.vmcoreinfo.SYMBOL.init_uts_ns"]), 390)
fields = [uts[at : at + 65].split(b"\0")[0].decode() for at in range(0, 390, 65)]
print(
    json.dumps(
        {
            "format": dump.attr["file.format"],
            "release_of_file": dump.attr["linux.uts.release"],
            "processes": processes,
            "nodename": fields[1],
            "release": fields[2],
            "version": fields[3],
        }
    )
)
