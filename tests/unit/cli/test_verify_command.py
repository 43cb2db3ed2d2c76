"""``sevkvm verify``: it passes on an encrypted guest, and fails whenever it must."""

from __future__ import annotations

import functools
import json

import pytest

from sevkvm.errors import MemoryFault
from sevkvm.memory.policy import SevInfo, SevKind
from sevkvm.shim.cipher import HostTweak
from sevkvm.shim.firmware import Firmware
from sevkvm.shim.kernel import Kernel
from sevkvm.shim.port import FakePort
from sevkvm.verify import canary as canaries
from tests.unit.cli import conftest
from tests.unit.cli.conftest import BASE, PAGE, SECRET, SECRET_GPA, SHARED, SHARED_GPA, make_guest
from tests.unit.cli.test_json_documented import documented, keys

CANARY = SECRET[:64].decode()
SHARED_CANARY = SHARED[:48].decode()
END = 0x40000


class Unchanged:
    """A cipher that does nothing: what a broken firmware might do."""

    def decrypt_into(self, spa, data, out):
        out[:] = data

    encrypt_into = decrypt_into


def port_of(guest):
    return guest.memory._shared._port


def firmware_of(guest):
    return port_of(guest).kernel.firmware


@pytest.fixture
def verify(run):
    """Run it; the exit status and the outcomes by name, of several with one name the last."""

    def call(*args):
        result = run("verify", *args, "--json")
        assert result.stdout, result.stderr
        found = json.loads(result.stdout)
        assert found["verified"] is (result.exit_code == 0)
        return result.exit_code, {check["id"]: check["outcome"] for check in found["checks"]}, found

    return call


def test_an_encrypted_guest(attached, verify):
    status, outcomes, found = verify("--strict")
    assert (status, set(outcomes.values())) == (0, {"pass"})
    assert set(outcomes) == {"encrypted", "debug", "private", "tweak", "shared", "conflict"}
    assert keys(found) - documented("verify") == set()
    assert attached.need_debug is False
    (private,) = (check for check in found["checks"] if check["id"] == "private")
    assert len(private["pages"]) == 16
    assert {page["what"] for page in private["pages"]} >= {"top page table", "page table", "private page"}
    for page in private["pages"]:
        assert page["noise"] is True
        assert page["entropy"] > 7.9
        assert page["chi_square"] < 500
    assert attached.held_when_left == 0


def test_the_tree(attached, run):
    result = run("verify", "--canary", CANARY, "--require", "es")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0] == "[ FAIL ] - what KVM and the firmware say"
    assert "[ FAIL ]   - registers are encrypted (SEV-ES): it is SEV" in lines
    assert any(
        line.startswith("[ PASS ]     - gpa 0x10000 (top page table): the host sees noise") for line in lines
    )
    assert lines[-1].endswith("NOT VERIFIED: failed es")
    assert CANARY not in result.stdout
    assert run("verify").stdout.splitlines()[-1].endswith(": verified")


@pytest.mark.parametrize("number", [1, 3, 40])
def test_samples_are_bounded(attached, verify, number):
    before = firmware_of_fresh(attached)
    _, _, found = verify("--samples", str(number))
    pages = {check["id"]: len(check["pages"]) for check in found["checks"]}
    assert pages["private"] == number
    assert firmware_of(attached.guest).counts["DBG_DECRYPT"] - before <= 2 * number + 8


def firmware_of_fresh(attached):
    attached.guest = make_guest(attached)
    return firmware_of(attached.guest).counts["DBG_DECRYPT"]


# ---- canaries


@pytest.mark.parametrize(
    "at",
    [
        (),
        ("--at", hex(SECRET_GPA)),
        ("--at", f"gpa:{SECRET_GPA:#x}"),
        ("--at", hex(BASE + SECRET_GPA)),
        ("--at", f"gva:{BASE + SECRET_GPA:#x}"),
    ],
)
def test_a_canary_in_private_memory(attached, verify, at):
    status, outcomes, _ = verify("--canary", CANARY, *at)
    assert status == 0
    names = ("canary-found", "canary-private", "canary-noise", "canary-hidden")
    assert [outcomes[name] for name in names] == ["pass"] * 4


def test_a_canary_as_hexadecimal_and_from_a_file(attached, verify, tmp_path):
    assert verify("--canary", "hex:" + CANARY.encode().hex())[0] == 0
    (tmp_path / "canary").write_bytes(SECRET[: PAGE // 2])
    assert verify("--canary", f"@{tmp_path}/canary", "--at", hex(SECRET_GPA))[0] == 0


@pytest.mark.parametrize("at", [(), ("--at", hex(SHARED_GPA))])
def test_a_canary_in_a_shared_page(attached, verify, at):
    status, outcomes, _ = verify("--canary", SHARED_CANARY, *at)
    assert status == 1
    assert (outcomes["canary-found"], outcomes["canary-hidden"]) == ("fail", "fail")
    if at:
        assert outcomes["canary-private"] == "fail"


def test_a_canary_with_a_copy_that_the_host_sees(attached, verify):
    attached.guest = guest = make_guest(attached)
    port_of(guest).write(guest.slots.hva(SHARED_GPA) + 100, CANARY.encode())
    status, outcomes, _ = verify("--canary", CANARY)
    assert status == 1
    assert (outcomes["canary-found"], outcomes["canary-hidden"]) == ("pass", "fail")


def test_a_canary_that_is_nowhere_or_elsewhere(attached, verify):
    status, outcomes, _ = verify("--canary", "nobody wrote this anywhere")
    assert (status, outcomes["canary-found"], outcomes["canary-hidden"]) == (1, "fail", "pass")
    status, outcomes, _ = verify("--canary", CANARY, "--at", hex(SECRET_GPA + 16))
    assert (status, outcomes["canary-found"]) == (1, "fail")


def test_a_search_that_is_cut_proves_nothing(attached, verify):
    status, outcomes, _ = verify("--canary", "nobody wrote this anywhere", "--search-limit", "64K")
    assert (status, outcomes["canary-found"], outcomes["canary-hidden"]) == (1, "skip", "skip")


# ---- what must fail


def test_a_guest_that_is_not_encrypted(attached, verify):
    attached.guest = make_guest(attached, policy=None)
    status, outcomes, _ = verify("--canary", CANARY)
    assert status == 1
    assert [outcomes[name] for name in ("encrypted", "private", "canary-hidden")] == ["fail"] * 3


def test_a_firmware_that_returns_ciphertext(attached, verify, monkeypatch):
    attached.guest = guest = make_guest(attached)
    monkeypatch.setattr(firmware_of(guest), "dbg", lambda *args: Unchanged())
    status, outcomes, found = verify("--canary", CANARY, "--at", hex(SECRET_GPA))
    assert status == 1
    assert (outcomes["private"], outcomes["canary-found"]) == ("fail", "fail")
    (private,) = (check for check in found["checks"] if check["id"] == "private")
    assert "returns what the host sees (256 of 256 blocks)" in private["pages"][0]["reason"]


def test_a_firmware_that_returns_noise(attached, verify, monkeypatch):
    attached.guest = guest = make_guest(attached)
    wrong = make_guest(attached)
    key = firmware_of(wrong).guests[1].cipher
    monkeypatch.setattr(firmware_of(guest), "dbg", lambda *args: key)
    status, outcomes, found = verify()
    assert (status, outcomes["private"]) == (1, "fail")
    reasons = [page["reason"] for check in found["checks"] for page in check["pages"]]
    assert any("noise, which this page cannot hold" in reason for reason in reasons)


def test_a_cipher_without_a_tweak(attached, verify, monkeypatch):
    plain = FakePort(Kernel(Firmware(HostTweak(bytes(1024)))))
    monkeypatch.setattr(conftest, "launch_guest", functools.partial(conftest.launch_guest, port=plain))
    attached.guest = make_guest(attached)
    status, outcomes, _ = verify()
    assert (status, outcomes["tweak"], outcomes["private"]) == (1, "fail", "fail")


def test_a_cipher_whose_tweak_does_not_know_the_page(attached, verify, monkeypatch):
    # every page alone looks well: only two of them together show it
    constants = bytearray(1024)
    for bit in range(4, 12):
        constants[bit * 16 : bit * 16 + 16] = (bit * 0x0123456789ABCDEF0FEDCBA987654321).to_bytes(32, "big")[
            -16:
        ]
    port = FakePort(Kernel(Firmware(HostTweak(bytes(constants)))))
    monkeypatch.setattr(conftest, "launch_guest", functools.partial(conftest.launch_guest, port=port))
    attached.guest = make_guest(attached)
    status, outcomes, _ = verify()
    assert (status, outcomes["tweak"], outcomes["private"]) == (1, "fail", "pass")


def test_private_pages_that_were_never_written(attached, verify):
    attached.guest = guest = make_guest(attached)
    port_of(guest).write(guest.slots.hva(0x30000), bytes(2 * PAGE))
    wanted = "--require", f"private=0x30000:{0x34000:#x}"
    status, outcomes, _ = verify(*wanted)
    assert (status, outcomes["require-private"]) == (1, "fail")
    assert verify(*wanted, "--untouched-ok")[0] == 0
    status, outcomes, _ = verify("--require", "private=0x30000:+8K", "--untouched-ok")
    assert (status, outcomes["require-private"]) == (1, "skip")  # not one page shows anything


def test_a_private_page_that_holds_plaintext(attached, verify):
    attached.guest = guest = make_guest(attached)
    port_of(guest).write(guest.slots.hva(0x30000), SECRET[:PAGE])
    status, outcomes, _ = verify("--require", "private=0x2f000:0x32000")
    assert (status, outcomes["require-private"]) == (1, "fail")


def test_a_shared_page_that_is_encrypted(attached, verify):
    attached.guest = guest = make_guest(attached)
    cipher = bytes(port_of(guest).read(guest.slots.hva(SECRET_GPA), PAGE))
    port_of(guest).write(guest.slots.hva(SHARED_GPA), cipher)
    # moved ciphertext decrypts to noise elsewhere: that alone cannot be told from noise
    assert verify()[1]["shared"] == "skip"
    text = SECRET[:PAGE].ljust(PAGE, b".")
    key = firmware_of(guest).guests[1].cipher
    spa = port_of(guest).memory.backing(guest.slots.hva(SHARED_GPA), PAGE)[0].spa
    port_of(guest).write(guest.slots.hva(SHARED_GPA), bytes(key.encrypt(spa, text)))
    status, outcomes, _ = verify("--require", f"shared={SHARED_GPA:#x}:+4K")
    assert (status, outcomes["shared"], outcomes["require-shared"]) == (1, "fail", "fail")


# ---- requirements


@pytest.mark.parametrize(
    ("require", "status"),
    [
        (f"private=0:{SHARED_GPA:#x}", 0),
        (f"private={SHARED_GPA + PAGE:#x}:{END:#x}", 0),
        (f"private=0:{END:#x}", 1),
        (f"private={END:#x}:+4K", 1),
        (f"private={END - PAGE:#x}:+8K", 1),
        (f"private={SHARED_GPA - 1:#x}:+1", 0),
        (f"private={SHARED_GPA - 1:#x}:+2", 1),
        (f"shared={SHARED_GPA:#x}:+4K", 0),
        (f"shared={SHARED_GPA:#x}:+8K", 1),
        ("shared=0:+4K", 1),
        ("nodebug", 1),
        ("es", 1),
    ],
)
def test_what_is_required(attached, verify, require, status):
    assert verify("--require", require)[0] == status


def test_debugging_that_is_forbidden(attached, verify):
    attached.guest = make_guest(attached, policy=1)
    status, outcomes, _ = verify()
    assert (status, outcomes["debug"]) == (1, "fail")
    assert "private" not in outcomes
    status, outcomes, found = verify("--require", "nodebug", "--canary", CANARY)
    assert status == 0
    assert [outcomes[name] for name in ("encrypted", "nodebug", "canary-hidden")] == ["pass"] * 3
    (nodebug,) = (check for check in found["checks"] if check["id"] == "nodebug")
    assert nodebug["evidence"][1] == "DBG_DECRYPT was refused: POLICY_FAILURE"
    # what cannot be shown is not shown
    assert verify("--require", "nodebug", "--require", "private=0:+4K")[1]["require-private"] == "skip"
    assert verify("--require", "nodebug", "--require", "private=0:+4K")[0] == 1
    assert verify("--require", "nodebug", "--canary", SHARED_CANARY)[0] == 1
    # a shared page among them: the host sees data there
    assert verify("--require", "nodebug", "--strict", "--samples", "100")[0] == 1


def test_a_firmware_that_debugs_in_spite_of_the_policy(attached, verify, monkeypatch):
    attached.guest = guest = make_guest(attached, policy=1)
    key = firmware_of(guest).guests[1].cipher
    monkeypatch.setattr(firmware_of(guest), "dbg", lambda *args: key)
    status, outcomes, _ = verify("--require", "nodebug")
    assert (status, outcomes["nodebug"]) == (1, "fail")


def test_memory_in_the_clear_though_debugging_is_forbidden(attached, verify):
    attached.guest = guest = make_guest(attached, policy=1)
    for gpa, data in attached.ram.items():
        port_of(guest).write(guest.slots.hva(gpa), data)
    status, outcomes, _ = verify("--require", "nodebug")
    assert (status, outcomes["host-view"]) == (1, "fail")


def test_sev_es_without_page_tables(attached, verify):
    attached.guest = make_guest(attached, policy=4, no_registers="this is a SEV-ES guest")
    status, outcomes, found = verify("--require", "es")
    assert (status, outcomes["es"], outcomes["private"]) == (0, "pass", "pass")
    assert (outcomes["shared"], outcomes["conflict"]) == ("skip", "skip")
    assert verify("--require", "es", "--strict")[0] == 1
    # pages are proved by their contents alone
    (private,) = (check for check in found["checks"] if check["id"] == "private")
    assert {page["what"] for page in private["pages"]} == {"page of RAM"}


def test_snp(attached, verify):
    guest = make_guest(attached, policy=0)
    guest.sev = SevInfo(SevKind.SEV_SNP)
    attached.guest = guest
    status, outcomes, _ = verify()
    assert (status, outcomes["encrypted"], outcomes["debug"]) == (1, "pass", "fail")
    assert verify("--require", "nodebug")[1]["nodebug"] == "skip"
    assert verify("--require", "nodebug")[0] == 1


# ---- usage


@pytest.mark.parametrize(
    "args",
    [
        ("--canary", "short"),
        ("--canary", "aaaaaaaaaaaaaaaaaaaaaa"),
        ("--canary", "hex:0"),
        ("--canary", "hex:" + "00" * 32),
        ("--at", "0x1000"),
        ("--canary", CANARY, "--at", "here"),
        ("--canary", CANARY, "--at", "hva:0x1000"),
        ("--canary", CANARY, "--at", "0x1000", "--require", "nodebug"),
        ("--require", "secret"),
        ("--require", "private"),
        ("--require", "private=0x1000"),
        ("--require", "private=0x2000:0x1000"),
        ("--samples", "0"),
        ("--file", "core"),
    ],
)
def test_wrong_usage(attached, run, args):
    assert run("verify", *args).exit_code == 2
    assert attached.options is None


def test_a_canary_file_that_is_not_there(attached, run, tmp_path):
    result = run("verify", "--canary", f"@{tmp_path}/none")
    assert (result.exit_code, attached.options) == (1, None)
    assert "none" in result.stderr


def test_an_address_that_is_not_mapped(attached, run):
    result = run("verify", "--canary", CANARY, "--at", hex(BASE - PAGE))
    assert (result.exit_code, result.stdout) == (1, "")


PLACED = "correct horse battery staple"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryFault("gpa", 0, reason="it is gone")])
def test_what_was_there_comes_back_whatever_happens(attached, run, monkeypatch, error):
    attached.guest = make_guest(attached)  # the same one for both commands
    seen = []

    def fail(guest, canary, limit):
        seen.append(guest.memory.read(SECRET_GPA + 100, len(PLACED)))
        raise error

    monkeypatch.setattr(canaries, "hidden_check", fail)
    run("verify", "--canary", PLACED, "--at", hex(SECRET_GPA + 100), "--place")
    assert seen == [PLACED.encode()]
    now = run("xp", f"/{len(PLACED)}xb", "--json", hex(SECRET_GPA + 100))
    assert json.loads(now.stdout)["bytes"] == SECRET[100 : 100 + len(PLACED)].hex()


def test_where_to_place_it_must_be_said(attached, run):
    assert run("verify", "--canary", PLACED, "--place").exit_code == 2
    assert run("verify", "--place").exit_code == 2


def test_page_tables_are_no_place_for_a_canary(attached, run):
    result = run("verify", "--canary", PLACED, "--at", "0x10010", "--place")
    assert result.exit_code == 2
    assert "the page at gpa 0x10000 is table" in result.stderr
