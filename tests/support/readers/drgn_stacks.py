"""Runs inside drgn: prints as JSON the kernel's functions on the stack of each task that sleeps, by pid.

What is beyond the kernel's entry is left out: of a dump whose virtual addresses are physical ones, drgn goes on there.
"""

# ruff: noqa: F821
import json
from itertools import takewhile

from drgn.helpers.linux import for_each_task, task_on_cpu

print(
    json.dumps(
        {
            task.pid.value_(): [
                frame.name for frame in takewhile(lambda frame: frame.pc >> 63, prog.stack_trace(task))
            ]
            for task in for_each_task(prog)
            if not task_on_cpu(task)
        }
    )
)
