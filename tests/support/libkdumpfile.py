"""Pages of a dump as libkdumpfile reads them, through Debian's Python binding for the system's Python.

As a program (/usr/bin/python3 libkdumpfile.py FILE): JSON of what the file says of itself and a digest of each page;
null for one that it does not have.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PYTHON = "/usr/bin/python3"
PAGE = 4096


def read_kdump(path: Path) -> dict[str, Any]:
    """``pages``: digests by pfn up to the highest; ``release``, ``cpus``; a skip where the library is missing."""
    import pytest

    try:
        found = subprocess.run([PYTHON, "-c", "import kdumpfile"], capture_output=True, timeout=60)
    except FileNotFoundError:
        pytest.skip(f"no {PYTHON}")
    if found.returncode:
        pytest.skip("no libkdumpfile (Debian: python3-libkdumpfile)")
    done = subprocess.run([PYTHON, __file__, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def digests(ram: bytes | memoryview) -> list[str]:
    """What ``pages`` is if the guest's memory from gpa 0 is ``ram``."""
    return [digest(ram[at : at + PAGE]) for at in range(0, len(ram), PAGE)]


def digest(page: bytes | memoryview) -> str:
    return hashlib.blake2b(page, digest_size=8).hexdigest()


def main(path: str) -> None:
    sys.path.remove(str(Path(__file__).parent))  # it has a kdumpfile of its own
    import kdumpfile

    file = kdumpfile.kdumpfile(path)

    def page(pfn: int) -> str | None:
        try:
            return digest(file.read(kdumpfile.KDUMP_MACHPHYSADDR, pfn * PAGE, PAGE))
        except Exception as error:
            if (
                "excluded" in str(error)
                or "Page not" in str(error)
                or type(error).__name__ == "NoDataException"
            ):
                return None
            raise

    attributes = file.attr
    print(
        json.dumps(
            {
                "pages": [page(pfn) for pfn in range(attributes["max_pfn"])],
                "release": attributes["linux.uts.release"],
                "node": attributes["linux.uts.nodename"],
                "cpus": attributes["cpu.number"],
                "format": attributes["file.format"],
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])
