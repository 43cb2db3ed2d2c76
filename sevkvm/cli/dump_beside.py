"""What goes beside a dump: its SHA-256 in FILE.sha256, and what it is a dump of in FILE.json."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sevkvm import __version__
from sevkvm.cli.render import hexadecimal
from sevkvm.errors import UsageError

if TYPE_CHECKING:
    from sevkvm.dump import DumpOptions, Target


class Beside:
    """``target``: where the dump itself goes; all names are checked when this is made, before anything is attached.

    split: bytes of a part, or None for one file.
    """

    def __init__(
        self, output: str, *, force: bool, split: int | None, check_space: bool, sha256: bool, manifest: bool
    ) -> None:
        from sevkvm.dump import DigestTarget, SplitTarget, prepare
        from sevkvm.dump.remote import is_url

        output = output.removeprefix("file://")
        self._path = Path(output)
        self._split: SplitTarget | None = None
        self._digest: DigestTarget | None = None
        self.target: Target
        if split is not None and output != "-" and not is_url(output):
            self.target = self._split = SplitTarget(self._path, split, force=force, check_space=check_space)
        else:
            self.target = prepare(output, force=force, check_space=check_space)
        if (split is not None or sha256 or manifest) and not self.target.seekable:
            raise UsageError(
                "--split, --sha256 and --manifest need the name of a file", help="give one with -o FILE"
            )
        self._sums = prepare(f"{output}.sha256", force=force) if sha256 else None
        self._manifest = prepare(f"{output}.json", force=force) if manifest else None
        if self._sums is not None and self._split is None:
            self.target = self._digest = DigestTarget(self.target, self._path)
        self._began = _now()
        self._copied = ""

    @property
    def wants_manifest(self) -> bool:
        """Is there to be one?"""
        return self._manifest is not None

    def begin(self) -> None:
        """The guest is about to be read."""
        self._began = _now()

    def end(self) -> None:
        """It was."""
        self._copied = _now()

    def write(self, guest: dict[str, Any] | None, options: dict[str, Any], dump: dict[str, Any]) -> None:
        """The files, once the dump has its name and the guest runs again."""
        from sevkvm.dump.digest import file_digest, sha256sum_line

        paths = self._split.paths if self._split is not None else [self._path]
        digests = None
        if self._sums is not None:
            whole = self._digest
            digests = {path: whole.hexdigest() if whole is not None else file_digest(path) for path in paths}
            lines = "".join(sha256sum_line(digest, path) for path, digest in digests.items())
            _write(self._sums, lines)
        if self._manifest is None:
            return
        answer = {
            "sevkvm": __version__,
            "host": dict(zip(("system", "node", "release", "version", "machine"), os.uname(), strict=True)),
            "firmware": _firmware() if guest is not None else None,
            "started": self._began,
            "finished": self._copied,
            "files": [
                {"name": path.name, "size": path.stat().st_size, "sha256": digests[path] if digests else None}
                for path in paths
            ],
            "options": options,
            "guest": guest,
            "dump": dump,
        }
        _write(self._manifest, json.dumps(answer, indent=2) + "\n")


def options_json(options: DumpOptions) -> dict[str, Any]:
    """What was asked for, in JSON's terms."""
    return {
        "format": options.format.value,
        "compress": options.compress if options.format.value == "kdump" else None,
        "gpa": [hexadecimal(end) for end in options.gpa] if options.gpa else None,
        "gva": [hexadecimal(end) for end in options.gva] if options.gva else None,
        "cbit": options.cbit.value,
        "unmapped": options.unmapped.value,
        "virtual": options.virtual,
        "live": options.live,
        "exclude": int(options.exclude),
    }


def _firmware() -> dict[str, Any] | None:
    """This host's SEV firmware, if it may be asked: nothing needs it, so it may not fail anything."""
    from sevkvm.errors import SevKvmError
    from sevkvm.host.sevdev import SevDevice

    try:
        with SevDevice() as device:
            status = device.platform_status()
    except (SevKvmError, OSError):
        return None
    return {"api": f"{status.api_major}.{status.api_minor}", "build": status.build}


def _write(target: Target, text: str) -> None:
    data = text.encode("utf-8", "surrogateescape")
    with target.open(len(data)) as sink:
        sink.write(data)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
