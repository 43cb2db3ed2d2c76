"""``--file``: the commands on a dump, and what is refused."""

import json

import pytest

from sevkvm.abi.elf import pack_note, pack_prstatus, pack_qemu_state
from tests.support.elfcore import core, load, note
from tests.support.fakeguest import vcpu_state
from tests.unit.cli.conftest import BASE, CBIT_POS, SECRET, SECRET_GPA, TABLES_GPA, build_ram

VMCOREINFO = b"OSRELEASE=6.1.0\nPAGESIZE=4096\nNUMBER(sme_mask)=%d\n"


def notes(cr3: int, *others: bytes) -> bytes:
    state = vcpu_state(0)
    sregs = state.sregs._replace(cr3=cr3)
    return b"".join(
        [
            pack_note(b"CORE", 1, pack_prstatus(1, state.regs, sregs)),
            pack_note(b"QEMU", 0, pack_qemu_state(state.regs, sregs)),
            *others,
        ]
    )


@pytest.fixture
def dump(tmp_path):
    """A core of the guest that the other tests attach to; returns its path."""
    ram, cr3 = build_ram(CBIT_POS)

    def write(*others: bytes, cut: int = 0, **changed: object) -> str:
        data = core(*(load(gpa, data) for gpa, data in ram.items()), notes=notes(cr3, *others))
        path = tmp_path / "guest.core"
        path.write_bytes(data[: len(data) - cut])
        return str(path)

    return write


def test_memory_and_translations_come_from_the_file(run, dump):
    path = dump()
    assert (
        run("xp", "--file", path, "/4cb", hex(SECRET_GPA)).stdout == f"{SECRET_GPA:016x}: 't' 'h' 'e' ' '\n"
    )
    said = run("x", "--file", path, "--json", "/8xb", hex(BASE + SECRET_GPA))
    assert json.loads(said.stdout)["bytes"] == SECRET[:8].hex()
    (told,) = json.loads(run("translate", "--file", path, "--json", hex(BASE + SECRET_GPA)).stdout)
    assert (told["gpa"], told["private"], told["hva"]) == (hex(SECRET_GPA), True, None)
    text = run("translate", "--file", path, hex(BASE + SECRET_GPA)).stdout
    assert "private" in text
    assert "hva" not in text


def test_what_the_dump_lacks_ends_the_answer_with_6(run, dump):
    result = run("xp", "--file", dump(), "/2xg", "0x80000000")
    assert (result.exit_code, result.stdout) == (6, "0000000080000000: Cannot access memory\n")


def test_registers_that_a_dump_does_not_tell_are_no_numbers(run, dump):
    path = dump()
    (told,) = json.loads(run("regs", "--file", path, "--json").stdout)
    assert (told["cr8"], told["efer"], told["apic_base"]) == (None, None, None)
    assert told["rip"] == hex(vcpu_state(0).regs.rip)
    assert (told["paging"]["mode"], told["paging"]["root_gpa"]) == ("4-level", hex(TABLES_GPA))
    text = run("regs", "--file", path).stdout
    assert "CR8=?\n" in text
    assert f"EFER={'?' * 16} APIC={'?' * 16}\n" in text


def status(run, path, *args):
    result = run("status", "--file", path, "--json", *args)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_status_tells_what_the_dump_holds(run, dump):
    path = dump(cut=0x2000)
    told = status(run, path)
    assert (told["format"], told["vcpu_indexes"]) == ("elf", [0])
    assert [entry["gpa"] for entry in told["ranges"]] == ["0x0", "0x100000000"]
    (gap,) = told["missing"]
    assert (gap["gpa"], gap["size"]) == ("0x10000e000", 0x2000)
    result = run("status", "--file", path)
    assert "8 KiB of it missing" in result.stdout
    assert "cut off" in result.stderr


@pytest.mark.parametrize("file_format", ["elf", "kdump"])
def test_a_dump_of_a_guest_that_ran_says_so_and_so_does_what_is_made_of_it(run, dump, tmp_path, file_format):
    live, still, again = (str(tmp_path / name) for name in ("live", "still", "again"))
    for path, options in ((live, ["--live"]), (still, [])):
        result = run("dump", "--file", dump(), "--format", file_format, *options, "-o", path)
        assert result.exit_code == 0, result.stderr
        assert ("while the guest ran: not one moment" in result.stderr) == bool(options)
    assert run("dump", "--file", live, "--format", "elf", "-o", again).exit_code == 0
    assert [status(run, path)["live"] for path in (live, again, still)] == [True, True, False]
    assert "none: the guest ran while it was made" in run("status", "--file", live).stdout


def test_where_the_c_bit_comes_from(run, dump):
    def source(path, *args):
        told = status(run, path, *args)
        return told["cbit_pos"], told["cbit_source"]

    assert source(dump()) == (CBIT_POS, "cr3")
    assert source(dump(note(b"VMCOREINFO", 0, VMCOREINFO % (1 << 47)))) == (47, "vmcoreinfo")
    assert source(dump(), "--cbit-pos", "47") == (47, "option")


def test_page_tables_without_the_bit_are_found_by_a_cr3_that_still_has_it(run, dump):
    path = dump(note(b"VMCOREINFO", 0, VMCOREINFO % 0))
    assert status(run, path)["cbit_pos"] is None
    (told,) = json.loads(run("regs", "--file", path, "--json").stdout)
    assert told["cr3"] == told["paging"]["root_gpa"] == hex(TABLES_GPA)


def test_an_sme_mask_that_is_none_is_refused(run, dump):
    result = run("status", "--file", dump(note(b"VMCOREINFO", 0, VMCOREINFO % 3)))
    assert result.exit_code == 1
    assert "sme_mask of 0x3" in result.stderr


def test_a_dump_can_be_converted(run, dump, tmp_path):
    path = dump()
    for file_format in ("lime", "raw"):
        out = str(tmp_path / file_format)
        assert run("dump", "--file", path, "--format", file_format, "-o", out).exit_code == 0
        said = run(
            "x", "--file", out, "--cr3", hex(TABLES_GPA), "--cbit-pos", str(CBIT_POS), "/4xg", hex(BASE)
        )
        assert said.stdout == run("x", "--file", path, "/4xg", hex(BASE)).stdout
    back = str(tmp_path / "back")
    assert run("dump", "--file", path, "--format", "elf", "-o", back).exit_code == 0
    assert run("regs", "--file", back).stdout == run("regs", "--file", path).stdout


def test_a_raw_file_can_be_told_its_ranges(run, tmp_path):
    path = tmp_path / "raw"
    path.write_bytes(b"a" * 4096 + b"b" * 4096)
    result = run("xp", "--file", str(path), "--slot", "0x40000000:4K:4096", "/2cb", "0x40000000")
    assert result.stdout == "0000000040000000: 'b' 'b'\n"


@pytest.mark.parametrize("option", ["--pid 1", "--vm-fd 3", "--qmp /run/q", "--libvirt guest", "--mmio"])
def test_a_dump_has_no_vmm(run, dump, option):
    result = run("xp", "--file", dump(), *option.split(), "0")
    assert result.exit_code == 2
    assert f"--file and {option.split()[0]} exclude each other" in result.stderr


def test_a_format_needs_a_file(run):
    result = run("xp", "--file-format", "elf", "0")
    assert result.exit_code == 2
    assert "--file-format needs --file" in result.stderr


def test_a_file_that_is_no_dump(run, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a dump\n")
    result = run("xp", "--file", str(path), "0")
    assert result.exit_code == 1
    assert "looks like text, not like a dump" in result.stderr
    assert "hint: --file-format raw" in result.stderr
    missing = run("xp", "--file", str(tmp_path / "nothing"), "0")
    assert missing.exit_code == 1
    assert "No such file" in missing.stderr


def test_search_needs_no_tables(run, dump):
    result = run("search", "--file", dump(), "lazy dog", "--max-count", "1")
    assert (result.exit_code, result.stderr) == (0, "")
