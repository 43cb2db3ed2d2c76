"""A conversation in front of the VMM's own stub: run control and registers are its, every byte of memory is ours.

The stub of QEMU reads an encrypted guest's memory as ciphertext, and sets software breakpoints by writing there. So
it never sees a memory packet, and software breakpoints become hardware ones: those are KVM's affair.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Final

from sevkvm import errors
from sevkvm.gdbserver.fields import OK, UNKNOWN, Malformed, hex_bytes, numbers
from sevkvm.gdbserver.packet import escape
from sevkvm.gdbserver.session import Answer, Monitor, Say, Session
from sevkvm.gdbserver.stub import MOST_REQUEST, Stub
from sevkvm.gdbserver.target import Refused

if TYPE_CHECKING:
    import socket

    from sevkvm.gdbserver.target import Target

_OWN: Final = re.compile(
    rb"[mxMXk]|vKill|qSupported|QStartNoAckMode|qRcmd,|[qQ]qemu\.PhyMemMode", re.DOTALL
)  # what does not go to the stub as it is
_RESUMING: Final = re.compile(rb"[cCsS]|vCont;")
_THREAD: Final = re.compile(rb"T..(?:.*;)?thread:([0-9a-fA-F]{1,8});")
_RIP: Final = b"p10"  # the 17th register of the description that QEMU sends for x86-64
_HEX_QUAD: Final = re.compile(rb"[0-9a-fA-F]{16}")
_MOST_CONSOLE: Final = 100  # packets of console output before a stop that we asked for
_USED_UP: Final = (
    "no more hardware breakpoints: the processor has four for breakpoints and watchpoints together"
)
_NO_HARDWARE: Final = "the VMM's gdb stub has no hardware breakpoints"


class UpstreamSession(Session):
    """See :class:`Session`. ``connect`` is called for the first packet: the stub stops the guest when it answers.

    ``uninterrupted``: entered around what must not be cut short, or the guest would stand still for ever.
    """

    def __init__(
        self,
        target: Target,
        monitor: Monitor | None,
        connect: Callable[[], Stub],
        say: Say = lambda text: None,
        uninterrupted: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        super().__init__(target, monitor, say)
        self._uninterrupted = uninterrupted
        self._connect = connect
        self._stub: Stub | None = None
        self._breakpoints: Counter[int] = Counter()
        self._watchpoints: set[bytes] = set()
        self._tells_kind = False

    @property
    def background(self) -> socket.socket | None:
        """Readable when the stub has something to say while the guest runs."""
        return self._stub.socket if self._stub is not None and self.running else None

    def arrived(self) -> Iterator[bytes]:
        """What the stub said: console output, and in the end that the guest stopped."""
        assert self._stub is not None
        for data in self._stub.arrived():
            console = data[:1] == b"O" and data != OK
            if not console:
                self.running = False
                self.target.stop()
            yield escape(data if console else self._stopped(data))

    def interrupt(self) -> Iterator[bytes]:
        """Ctrl-C is passed on; the stub answers it."""
        if self.running and self._stub is not None:
            self._stub.interrupt()
        return iter(())

    def close(self) -> None:
        """The client is gone: what it set is taken away, and the guest runs."""
        super().close()
        with self._uninterrupted():
            stub, self._stub = self._stub, None
            if stub is None:
                return
            try:
                if not self.detached:
                    self._leave(stub)
            except errors.SevKvmError as error:
                self.tell(
                    f"the guest may stand still, with breakpoints set ({error}): see `info status`, `cont`"
                )
            finally:
                stub.close()

    def _prepare(self) -> None:
        if self._stub is None:
            self._tell_of_earlier_stop()
            with self._uninterrupted():
                self._stub = self._greeted(self._connect())
        self.target.stop()

    def _greeted(self, stub: Stub) -> Stub:
        try:
            self._greet(stub)
        except BaseException:
            with suppress(errors.SevKvmError):
                stub.send(b"D")  # if it is one after all, it has stopped the guest
            stub.close()
            raise
        return stub

    def _tell_of_earlier_stop(self) -> None:
        """A guest that stands still before we stop it: maybe a debugger was killed, and its breakpoints are set."""
        status = ""
        if self.monitor is not None:
            with suppress(errors.SevKvmError):
                status = "".join(self.monitor("info status", self.thread))
        if "paused" in status:
            self.tell(
                "the guest stood still already: if a debugger was killed, its breakpoints are forgotten now; "
                "the guest runs when gdb detaches"
            )

    def _greet(self, stub: Stub) -> None:
        """Thread numbers are plain, since multiprocess is not asked for."""
        answer = stub.request(b"qSupported:xmlRegisters=i386")
        if answer[:1] == b"T":  # QEMU tells that the guest stopped, which nobody had asked
            answer = stub.answer()
        if b"PacketSize=" not in answer:
            raise errors.ProtocolError("what --upstream names does not speak as a gdb stub does")
        stub.request(b"?")  # QEMU forgets breakpoints that somebody left behind

    def _handle(self, packet: bytes) -> Answer:
        if packet.startswith(b"qSupported"):
            self._tells_kind = b"swbreak+" in packet
            answer = super()._handle(packet)
            assert isinstance(answer, bytes)
            return answer + b";swbreak+;hwbreak+" * self._tells_kind
        if _OWN.match(packet):
            return super()._handle(packet)
        if packet[:1] in (b"Z", b"z"):
            return self._set_breakpoint(packet)
        return self._forward(packet)

    def _forward(self, packet: bytes) -> Answer:
        assert self._stub is not None
        if len(packet) > MOST_REQUEST:
            raise Malformed("longer than the VMM's stub takes")
        if _RESUMING.match(packet):
            self._stub.send(packet)
            self.running = True
            self.target.let_go()
            return None
        answer = self._stub.request(packet)
        if packet[:2] == b"Hg" and answer == OK:
            self._select(packet[2:])
        elif packet[:1] in (b"G", b"P"):
            self.target.let_go()  # it may have been CR3
        elif packet[:1] == b"D" and answer == OK:
            self._breakpoints.clear()
            self._watchpoints.clear()
            self.detached = True
            self.ended = True
        return escape(answer)

    def _select(self, text: bytes) -> None:
        """The thread that memory is read for; 0 and -1 leave it to the stub, and to us."""
        try:
            (thread,) = numbers(text, 1)
        except Malformed:
            return
        if thread in self.target.threads:
            self.thread = thread

    def _set_breakpoint(self, packet: bytes) -> bytes:
        kind, address, length = numbers(packet[1:].partition(b";")[0], 3)
        insert = packet[:1] == b"Z"
        if kind > 4:
            return UNKNOWN
        if kind > 1:
            where = b"%x,%x,%x" % (kind, address, length)
            self._ask_breakpoint(insert, where)
            (self._watchpoints.add if insert else self._watchpoints.discard)(where)
            return OK
        # several of gdb's breakpoints at one place are one of the processor's
        count = self._breakpoints[address]
        if insert or count:
            if count == (0 if insert else 1):
                self._ask_breakpoint(insert, b"1,%x,1" % address)
            self._breakpoints[address] += 1 if insert else -1
        return OK

    def _ask_breakpoint(self, insert: bool, where: bytes) -> None:
        assert self._stub is not None
        answer = self._stub.request((b"Z" if insert else b"z") + where)
        if answer == UNKNOWN:
            raise Refused(_NO_HARDWARE)
        if answer != OK and insert:
            raise Refused(_USED_UP)

    def _stopped(self, data: bytes) -> bytes:
        """A stop, with what gdb needs to leave the program counter alone: it is at the breakpoint, not behind it."""
        assert self._stub is not None
        found = _THREAD.match(data)
        if found is None:
            return data
        self._select(found[1])
        if self._tells_kind and b"watch:" not in data and self._breakpoints:
            rip = self._stub.request(_RIP)
            if not _HEX_QUAD.fullmatch(rip):
                return data  # another architecture's stub, or an error
            if self._breakpoints[int.from_bytes(hex_bytes(rip), "little")]:
                return data + b"swbreak:;"
        return data

    def _leave(self, stub: Stub) -> None:
        if self.running:
            if not +self._breakpoints and not self._watchpoints:
                return  # it runs as it should
            stub.interrupt()
            if all(stub.answer()[:1] == b"O" for _ in range(_MOST_CONSOLE)):
                raise errors.ProtocolError("the VMM's gdb stub prints for ever")
        for address in +self._breakpoints:
            stub.request(b"z1,%x,1" % address)
        for where in self._watchpoints:
            stub.request(b"z" + where)
        stub.request(b"D")
