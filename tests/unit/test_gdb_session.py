"""What gdb's packets are answered with, without a socket: the lab's guest on the pretend host in our own process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sevkvm import errors
from sevkvm.abi.kvmstate import Fpu
from sevkvm.gdbserver.alone import NO_BREAKPOINT, NO_STEP, AloneTarget
from sevkvm.gdbserver.description import target_xml
from sevkvm.gdbserver.packet import PACKET_NBYTES, Decoder, Packet, frame
from sevkvm.gdbserver.registers import REGISTERS, values
from sevkvm.gdbserver.session import Session
from tests.support.fakeguest import vcpu_state
from tests.support.gdbguest import IMAGE, Holder, landmark, make_guest, plain


@pytest.fixture
def holder() -> Holder:
    return Holder()


@pytest.fixture
def session(holder: Holder) -> Session:
    return Session(AloneTarget(make_guest(holder)), say=holder.told.append)


def ask(session: Session, packet: bytes | str) -> bytes:
    """The one answer to a packet."""
    (answer,) = session.answer(packet.encode() if isinstance(packet, str) else packet)
    return answer


def test_nothing_stops_the_guest_before_the_first_packet(session: Session, holder: Holder) -> None:
    assert not holder.held
    assert b"PacketSize=10000" in ask(session, "qSupported:multiprocess+")
    assert holder.held
    assert ask(session, "?") == b"T05thread:1;"
    assert holder.holds == 1


def test_the_description_fits_the_registers(session: Session) -> None:
    document, offset = b"", 0
    while True:
        piece = ask(session, f"qXfer:features:read:target.xml:{offset:x},100")
        document, offset = document + piece[1:], offset + 0x100
        if piece[:1] == b"l":
            break
        assert piece[:1] == b"m"
    assert document.decode() == target_xml()
    described = [
        (each.get("name"), each.get("bitsize")) for each in ElementTree.fromstring(document).iter("reg")
    ]
    assert described == [(register.name, str(register.nbits)) for register in REGISTERS]
    assert len(ask(session, "g")) == sum(2 * register.nbytes for register in REGISTERS)
    assert ask(session, "qXfer:features:read:other.xml:0,100") == b"E00"


def test_registers_of_each_vcpu(session: Session) -> None:
    names = [register.name for register in REGISTERS]
    for index, init in enumerate(IMAGE.vcpus):
        assert ask(session, f"Hg{index + 1}") == b"OK"
        for name, value in (("rax", init.regs.rax), ("rip", init.regs.rip), ("cr3", init.sregs.cr3)):
            assert ask(session, f"p{names.index(name):x}") == value.to_bytes(8, "little").hex().encode()
        assert ask(session, f"p{names.index('fioff'):x}") == b"x" * 8
        assert ask(session, "g").startswith(init.regs.rax.to_bytes(8, "little").hex().encode())
    assert ask(session, "qC") == b"QC2"
    assert ask(session, "Hg0") == ask(session, "Hg-1") == b"OK"
    assert ask(session, "qC") == b"QC2"
    for bad in ("Hg3", "Hgp1.1", "Hq1", "H", "T3", f"p{len(REGISTERS):x}", "p", "pzz"):
        assert ask(session, bad).startswith(b"E."), bad


def test_fpu_registers() -> None:
    fpr = ((1 << 63, 0x3FFF), (0, 0), (1 << 63, 0x7FFF), (1, 0), (1, 0x8001), (5, 5), (6, 6), (7, 7))
    xmm = tuple((number, number + 100) for number in range(16))
    fpu = Fpu(fpr, fcw=0x37F, fsw=3 << 11, ftwx=0b11111000, mxcsr=0x1F80, xmm=xmm, ymm_high=xmm)
    told = values(vcpu_state(0), fpu)
    assert told["st0"] == 0x3FFF << 64 | 1 << 63
    assert told["xmm7"] == 107 << 64 | 7
    # st0 is physical register 3: valid, zero, special (infinity, denormal, pseudo), and three that are empty
    assert told["ftag"] == 0b10_10_10_01_00_11_11_11
    assert "fioff" not in told


def test_threads(session: Session) -> None:
    assert ask(session, "qfThreadInfo") == b"m1,2"
    assert ask(session, "qsThreadInfo") == b"l"
    assert bytes.fromhex(ask(session, "qThreadExtraInfo,2").decode()) == b"vCPU 1"
    assert ask(session, "T1") == ask(session, "T2") == b"OK"
    assert ask(session, "qAttached") == b"1"


def test_memory_is_what_the_guest_sees(session: Session) -> None:
    secret, shared = landmark("secret"), landmark("shared")
    for each in (secret, shared):
        expected = plain(each.gpa, each.nbytes)
        assert ask(session, f"m{each.gva:x},{each.nbytes:x}") == expected.hex().encode()
        stream = Decoder()
        stream.receive_data(frame(ask(session, f"x{each.gva:x},{each.nbytes:x}")))
        assert stream.next_event() == Packet(b"b" + expected)


def test_physical_mode(session: Session) -> None:
    secret = landmark("secret")
    assert ask(session, "qqemu.PhyMemMode") == b"0"
    assert ask(session, "Qqemu.PhyMemMode:1") == b"OK"
    assert ask(session, "qqemu.PhyMemMode") == b"1"
    assert ask(session, f"m{secret.gpa:x},10") == plain(secret.gpa, 16).hex().encode()
    assert ask(session, f"m{secret.gva:x},10") == b"E0e"
    assert ask(session, "Qqemu.PhyMemMode:2").startswith(b"E.")


def test_what_cannot_be_read_ends_an_answer(session: Session) -> None:
    ask(session, "Qqemu.PhyMemMode:1")
    end = IMAGE.slots[-1].gpa + IMAGE.slots[-1].nbytes
    assert ask(session, f"m{end - 8:x},20") == plain(end - 8, 8).hex().encode()
    assert ask(session, f"m{end:x},1") == ask(session, "mffffffffffffffff,1") == b"E0e"
    ask(session, "Qqemu.PhyMemMode:0")
    assert ask(session, "m0,8") == ask(session, "mffffffffffffffff,ffff") == b"E0e"
    assert ask(session, "m0,0") == b""


def test_an_answer_fits_into_a_packet(session: Session) -> None:
    ask(session, "Qqemu.PhyMemMode:1")
    digits = ask(session, "m0,ffffffffffffffff")
    assert PACKET_NBYTES - 4 < len(digits) <= PACKET_NBYTES
    assert len(ask(session, "x0,ffffffffffffffff")) <= PACKET_NBYTES


def test_run_and_stop(session: Session, holder: Holder) -> None:
    ask(session, "?")
    for resume in ("c", "vCont;c", "vCont;C02:1;c", "C05"):
        assert list(session.answer(resume.encode())) == []
        assert not holder.held
        assert ask(session, "g").startswith(b"E.the guest runs")
        assert not holder.held
        assert list(session.interrupt()) == [b"T02thread:1;"]
        assert holder.held
        assert list(session.interrupt()) == []
    session.close()
    assert not holder.held


def test_vcpus_run_together(session: Session, holder: Holder) -> None:
    ask(session, "?")
    assert b"scheduler-locking" in ask(session, "vCont;c:1")
    for bad in ("vCont;", "vCont;x", "vCont;c:9", "vCont;Czz", "c1000", "C"):
        assert ask(session, bad).startswith(b"E."), bad
    assert holder.held


def test_what_would_reach_the_guest_is_refused_in_words(session: Session, holder: Holder) -> None:
    ask(session, "?")
    for step in ("s", "vCont;s:1", "vCont;s:1;c", "S05"):
        assert ask(session, step) == b"E." + NO_STEP.encode()
    for kind in range(5):
        assert ask(session, f"Z{kind},1000,1") == b"E." + NO_BREAKPOINT.encode()
    assert ask(session, "Z5,0,1") == b""
    gva = landmark("secret").gva
    for write in (f"M{gva:x},1:00", f"X{gva:x},1:a", "P0=0000000000000000"):
        assert b"read-only" in ask(session, write)
    assert ask(session, f"X{gva:x},0:") == b"OK"
    assert ask(session, "vKill;1").startswith(b"E.a guest is not killed")
    assert holder.held
    assert holder.told.count(NO_STEP) == 1


def test_memory_is_written_where_that_is_allowed(holder: Holder) -> None:
    written = []

    @contextmanager
    def writing() -> Iterator[None]:
        written.append(holder.held)
        yield

    guest = make_guest(holder)
    session = Session(AloneTarget(guest, writing=writing))
    secret, shared = landmark("secret"), landmark("shared")
    for each in (secret, shared):
        assert ask(session, f"M{each.gva + 3:x},2:4142") == b"OK"
        assert ask(session, b"X%x,3:#}$" % (each.gva + 5)) == b"OK"
        expected = plain(each.gpa, 3) + b"AB#}$" + plain(each.gpa + 8, 8)
        assert bytes.fromhex(ask(session, f"m{each.gva:x},10").decode()) == expected
    assert written == [True] * 4
    assert ask(session, "Mfff,1:00").startswith(b"E.")
    ask(session, "Qqemu.PhyMemMode:1")
    assert b"sevkvm write --gpa" in ask(session, f"M{secret.gpa:x},1:00")


def test_registers_as_they_are_may_be_written(session: Session) -> None:
    now = ask(session, "g")
    assert ask(session, b"G" + now) == b"OK"
    assert b"read-only" in ask(session, b"G" + b"ff" + now[2:])
    assert ask(session, b"G00").startswith(b"E.malformed")


def test_detach(session: Session, holder: Holder) -> None:
    ask(session, "?")
    assert ask(session, "D") == b"OK"
    assert session.ended
    assert not holder.held


def test_detach_and_attach_again(session: Session, holder: Holder) -> None:
    assert ask(session, "!") == b"OK"
    assert ask(session, "D;1") == b"OK"
    assert not session.ended
    assert ask(session, "qSupported") != b""
    assert not holder.held
    assert ask(session, "vAttach;1") == b"T05thread:1;"
    assert holder.held


def test_kill_hangs_up_and_no_more(session: Session, holder: Holder) -> None:
    ask(session, "?")
    assert list(session.answer(b"k")) == []
    assert session.ended
    assert not holder.held


def test_unknown_packets_are_answered_with_nothing(session: Session) -> None:
    for packet in (
        "vMustReplyEmpty",
        "qTStatus",
        "qCRC:0,1",
        "vRun;",
        "R00",
        "",
        "QNonStop:1",
        "vFile:open:0",
    ):
        assert ask(session, packet) == b"", packet


def test_monitor(holder: Holder) -> None:
    def monitor(line: str, thread: int) -> Iterator[str]:
        yield f"{thread}: you said {line}\n"
        if line == "fail":
            raise errors.UsageError("no", help="do")

    session = Session(AloneTarget(make_guest(holder)), monitor)
    for line, says in (
        ("info tlb", "1: you said info tlb\n"),
        ("fail", "1: you said fail\nerror: no\nhint: do\n"),
    ):
        *texts, last = session.answer(b"qRcmd," + line.encode().hex().encode())
        assert last == b"OK"
        assert b"".join(bytes.fromhex(text[1:].decode()) for text in texts).decode() == says
        assert {text[:1] for text in texts} == {b"O"}
    assert ask(session, "qRcmd,6g").startswith(b"E.")
    assert list(Session(session.target).answer(b"qRcmd,41"))[-1] == b"OK"


def test_long_console_output_is_cut_into_packets(holder: Holder) -> None:
    text = "long line\n" * 20_000
    session = Session(AloneTarget(make_guest(holder)), lambda line, thread: [text])
    *texts, last = session.answer(b"qRcmd,41")
    assert last == b"OK"
    assert max(map(len, texts)) <= PACKET_NBYTES
    assert b"".join(bytes.fromhex(each[1:].decode()) for each in texts).decode() == text


def test_sev_es_has_memory_but_no_registers(holder: Holder) -> None:
    session = Session(AloneTarget(make_guest(holder, es=True)), say=holder.told.append)
    general = ask(session, "g")
    assert general[: 16 * 16] == b"x" * 256
    assert general[16 * 16 : 16 * 17] == b"0" * 16  # rip, without which gdb hangs up
    assert set(general[16 * 17 :]) == set(b"x")
    assert b"registers unknown" in bytes.fromhex(ask(session, "qThreadExtraInfo,1").decode())
    secret = landmark("secret")
    assert (
        ask(session, f"m{secret.gva:x},8") == b"E0e"
    )  # the lab's small guest has no Linux to find tables of
    assert any("no Linux kernel" in text for text in holder.told)
    ask(session, "Qqemu.PhyMemMode:1")
    assert ask(session, f"m{secret.gpa:x},8") == plain(secret.gpa, 8).hex().encode()


def test_a_dump_does_not_run(holder: Holder) -> None:
    session = Session(AloneTarget(make_guest(holder, pid=None)))
    assert ask(session, "c") == ask(session, "s") == ask(session, "Z1,0,1") == b"E.a dump does not run"
    assert ask(session, "?") == b"T05thread:1;"


def test_the_first_thread_is_the_users_choice(holder: Holder) -> None:
    guest = make_guest(holder)
    assert ask(Session(AloneTarget(guest, 1)), "?") == b"T05thread:2;"
    with pytest.raises(errors.UsageError, match="no vCPU 2"):
        AloneTarget(guest, 2)


def test_a_vmm_that_ended_is_not_an_answer(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*args: object) -> bytes:
        raise errors.TargetGone("the VMM ended")

    monkeypatch.setattr(session.target, "_read", gone)
    with pytest.raises(errors.TargetGone):
        list(session.answer(b"m0,1"))


HOLDER = Holder()
GUEST = make_guest(HOLDER)
WORDS = st.sampled_from(
    [b"m", b"x", b"M", b"X", b"vCont;", b"qRcmd,", b"Hg", b"Z0,", b"qXfer:features:read:", b"G", b"P"]
)
NUMBERS = st.one_of(
    st.binary(max_size=8), st.sampled_from([b"0", b"1", b"ffffffffffffffff", b",", b":", b"=", b";"])
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.one_of(st.binary(max_size=20), st.builds(lambda w, n: w + b"".join(n), WORDS, st.lists(NUMBERS)))
    )
)
def test_no_packet_is_too_strange(packets: list[bytes]) -> None:
    session = Session(AloneTarget(GUEST), lambda line, thread: [line])
    try:
        for packet in packets:
            for answer in session.answer(packet):
                assert len(answer) <= PACKET_NBYTES
                frame(answer)
            list(session.interrupt())
    finally:
        session.close()
    assert not HOLDER.held
