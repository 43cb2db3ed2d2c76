"""Chromium without a screen, for tests: open a page, point, click, read what it shows.

with chromium() as browser:
    browser.open(path.as_uri())
    browser.point(100, 80)
    assert browser.evaluate("document.title") == "..."

It is driven through --remote-debugging-pipe: messages of the DevTools protocol, each ended by a zero byte.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

_TIMEOUT = 30.0
_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_ARGV = (
    *("--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu", "--hide-scrollbars"),
    *("--disable-dev-shm-usage", "--disable-extensions", "--disable-background-networking", "--no-sandbox"),
    *("--disable-component-update", "--window-size=1400,1000", "about:blank"),
)


class Browser:
    """One tab. Every wait ends after half a minute."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self._call(f"{domain}.enable")
        self._call(
            "Emulation.setDeviceMetricsOverride", width=1400, height=1000, deviceScaleFactor=1, mobile=False
        )

    def open(self, url: str) -> None:
        """Go there, and wait until it is loaded."""
        self._call("Page.navigate", url=url)
        deadline = time.monotonic() + _TIMEOUT
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive(deadline))

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def point(self, x: float, y: float) -> None:
        """Move the mouse there."""
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, x: float, y: float) -> None:
        """Press and release the left button."""
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """A key, by its name."""
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key)

    def screenshot(self) -> bytes:
        """What is to be seen, as PNG."""
        return base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"])

    def _call(self, method: str, **params: Any) -> Any:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        deadline = time.monotonic() + _TIMEOUT
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            if "method" in answer:
                self.events.append(answer)

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(self._from, 1 << 16) if ready else b""
            if not piece:
                raise RuntimeError("chromium ended" if ready else "chromium did not answer in time")
            self._buffer += piece
        text, _, self._buffer = self._buffer.partition(b"\0")
        answer = json.loads(text)
        assert isinstance(answer, dict)
        return answer


def require_chromium() -> str:
    """Where it is, or a skip."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip("no Chromium (Debian's package: chromium)")
    return found


def _pipe() -> tuple[int, int]:
    """Descriptors above those that a shell is to put in place."""
    low = os.pipe()
    read_end, write_end = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in low)
    for fd in low:
        os.close(fd)
    return read_end, write_end


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start it with a profile of its own; it and all its children are gone afterwards."""
    program = require_chromium()
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        read_end, to_browser = _pipe()
        from_browser, write_end = _pipe()
        # it takes commands from descriptor 3 and answers on 4
        argv = ["bash", "-c", f'exec "$@" 3<&{read_end} 4>&{write_end}', "bash", program]
        environment = {**os.environ, "HOME": profile}
        process = subprocess.Popen(
            [*argv, f"--user-data-dir={Path(profile) / 'profile'}", *_ARGV],
            pass_fds=(read_end, write_end),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        os.close(read_end)
        os.close(write_end)
        try:
            yield Browser(to_browser, from_browser)
        finally:
            os.close(to_browser)
            os.close(from_browser)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
