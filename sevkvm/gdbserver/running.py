"""Run control and threads: ? ! c C s S D k H T and the v packets.

Source: "Debugging with GDB", appendix E.2 (packets).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sevkvm.gdbserver.fields import OK, Malformed, number
from sevkvm.gdbserver.target import Refused

if TYPE_CHECKING:
    from sevkvm.gdbserver.session import Answer, Handler, Session

_ONE_RUNS: Final = "vCPUs run and stop together: set scheduler-locking off"
_ELSEWHERE: Final = "registers are not changed on the way: give no address"
_NO_KILL: Final = "a guest is not killed from here: detach instead"


def thread_number(session: Session, text: bytes) -> int | None:
    """A thread of the target; None for any (0) or all (-1) of them."""
    if text in (b"0", b"-1"):
        return None
    thread = number(text)
    if thread not in session.target.threads:
        raise Malformed("no such thread")
    return thread


def _why_stopped(session: Session, rest: bytes) -> Answer:
    return session.stopped()


def _extended(session: Session, rest: bytes) -> Answer:
    session.extended = True
    return OK


def _select(session: Session, rest: bytes) -> Answer:
    """Hg picks the thread; what Hc picks is said again by vCont."""
    thread = thread_number(session, rest[1:])
    if rest[:1] == b"g":
        session.thread = thread or session.thread
    elif rest[:1] != b"c":
        raise Malformed("neither Hg nor Hc")
    return OK


def _alive(session: Session, rest: bytes) -> Answer:
    thread_number(session, rest)
    return OK


def _continue(session: Session, rest: bytes) -> Answer:
    if rest:
        raise Refused(_ELSEWHERE)
    _resume(session)
    return None


def _continue_with_signal(session: Session, rest: bytes) -> Answer:
    """A vCPU knows no signals: as QEMU does, the number is not looked at."""
    signal, _, address = rest.partition(b";")
    number(signal)
    return _continue(session, address)


def _step(session: Session, rest: bytes) -> Answer:
    if rest:
        raise Refused(_ELSEWHERE)
    return _step_one(session, session.thread)


def _step_with_signal(session: Session, rest: bytes) -> Answer:
    signal, _, address = rest.partition(b";")
    number(signal)
    return _step(session, address)


def _which_actions(session: Session, rest: bytes) -> Answer:
    return b"vCont;c;C;s;S"


def _act(session: Session, rest: bytes) -> Answer:
    """vCont: for each thread the first action that names it, or that names none."""
    wanted: dict[int, bytes] = {}
    for word in rest.split(b";")[: len(session.target.threads) + 1]:
        action, _, where = word.partition(b":")
        letter = action[:1]
        if letter in (b"C", b"S"):
            number(action[1:])
        elif action not in (b"c", b"s"):
            raise Malformed("not an action of vCont?")
        thread = thread_number(session, where) if where else None
        for each in session.target.threads if thread is None else (thread,):
            wanted.setdefault(each, letter.lower())
    stepping = [thread for thread, letter in wanted.items() if letter == b"s"]
    if stepping:
        return _step_one(session, stepping[0])
    if len(wanted) < len(session.target.threads):
        raise Refused(_ONE_RUNS)
    _resume(session)
    return None


def _resume(session: Session) -> None:
    session.target.resume()
    session.running = True


def _step_one(session: Session, thread: int) -> bytes:
    session.target.step(thread)
    session.thread = thread
    return session.stopped()


def _detach(session: Session, rest: bytes) -> Answer:
    session.target.let_go()
    session.detached = True
    session.ended = not session.extended
    return OK


def _attach(session: Session, rest: bytes) -> Answer:
    session.target.stop()
    session.detached = False
    return session.stopped()


def _kill_refused(session: Session, rest: bytes) -> Answer:
    raise Refused(_NO_KILL)


def _hang_up(session: Session, rest: bytes) -> Answer:
    """The old kill, which has no answer: the connection ends, the guest lives."""
    session.close()
    return None


LETTERS: Final[dict[bytes, Handler]] = {
    b"?": _why_stopped,
    b"!": _extended,
    b"H": _select,
    b"T": _alive,
    b"c": _continue,
    b"C": _continue_with_signal,
    b"s": _step,
    b"S": _step_with_signal,
    b"D": _detach,
    b"k": _hang_up,
}
NAMED: Final[dict[bytes, Handler]] = {
    b"vCont?": _which_actions,
    b"vCont;": _act,
    b"vAttach;": _attach,
    b"vKill": _kill_refused,
}
