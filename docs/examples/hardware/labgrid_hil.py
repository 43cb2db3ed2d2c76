"""Run scripts/hil on the host that a labgrid environment names: labgrid_hil.py [ENVIRONMENT [TARGET]]."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from labgrid import Environment

HERE = Path(__file__).resolve().parent
HIL = HERE.parents[2] / "scripts" / "hil"


def main() -> int:
    path, name = (*sys.argv[1:3], *(str(HERE / "labgrid.yaml"), "epyc")[len(sys.argv) - 1 :])
    environment = Environment(path)
    target = environment.get_target(name)
    host = target.get_resource("NetworkService")
    words = [f"{host.username}@{host.address}", "--port", str(host.port)]
    words += shlex.split(environment.config.get_option("hil", ""))
    return subprocess.run([HIL, *words], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
