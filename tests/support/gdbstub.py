"""A small client of QEMU's gdb stub: registers by name, over a Unix socket, every wait bounded."""

from __future__ import annotations

import re
import socket


class StubError(Exception):
    """The stub refused, or said nothing that can be understood."""


class GdbStub:
    """Registers of CPU 0, by the names and sizes of the stub's own target description."""

    def __init__(self, path: str, timeout: float = 20.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(path)
            self._stream = self._socket.makefile("rb")
            self._nbytes = self._describe()
        except BaseException:
            self._socket.close()
            raise
        self._numbers = {name: number for number, name in enumerate(self._nbytes)}

    def request(self, packet: str) -> str:
        """The answer to one packet; StubError if it is none."""
        data = packet.encode()
        self._socket.sendall(b"$%s#%02x" % (data, sum(data) % 256))
        if self._stream.read(1) != b"+":
            raise StubError(f"{packet}: no acknowledgement")
        answer = bytearray()
        while not answer.endswith(b"#"):
            byte = self._stream.read(1)
            if not byte or len(answer) > 1 << 16:
                raise StubError(f"{packet}: the answer has no end")
            answer += byte
        self._stream.read(2)  # the checksum: a Unix socket loses nothing
        self._socket.sendall(b"+")
        return answer[1:-1].decode("latin-1")

    def get(self, name: str) -> int:
        """A register's value."""
        answer = self.request(f"p{self._numbers[name]:x}")
        return int.from_bytes(bytes.fromhex(answer), "little")

    def set(self, name: str, value: int) -> None:
        """Write a register; StubError if the stub does not take it. Control registers may keep less of it."""
        data = value.to_bytes(self._nbytes[name], "little").hex()
        answer = self.request(f"P{self._numbers[name]:x}={data}")
        if answer != "OK":
            raise StubError(f"{name} = 0x{value:x}: {answer!r}")

    def close(self) -> None:
        """Hang up; the VM stays as it is."""
        self._stream.close()
        self._socket.close()

    def _describe(self) -> dict[str, int]:
        """Size in bytes of each register, in the order of their numbers."""
        self.request("qSupported:xmlRegisters=i386")
        found: dict[str, int] = {}
        for name in re.findall(r'<xi:include href="([^"]+)"', self._document("target.xml")):
            text = re.sub(r"<!--.*?-->", "", self._document(name), flags=re.DOTALL)
            for line in re.findall(r"<reg [^>]*>", text):
                fields = dict(re.findall(r'(\w+)="([^"]*)"', line))
                assert "regnum" not in fields or int(fields["regnum"]) == len(found), line
                found[fields["name"]] = int(fields["bitsize"]) // 8
        return found

    def _document(self, name: str) -> str:
        text = ""
        for _ in range(1000):
            answer = self.request(f"qXfer:features:read:{name}:{len(text):x},800")
            text += answer[1:]
            if answer[:1] == "l":
                return text
            if answer[:1] != "m":
                raise StubError(f"{name}: {answer!r}")
        raise StubError(f"{name} has no end")
