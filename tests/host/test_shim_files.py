"""Files that programs look for before they ask KVM: the device nodes, kvm_amd's parameters."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Iterator

import pytest

from sevkvm.shim.supervisor import SevHost
from tests.support.sevhost import require_kvm_mode
from tests.support.sevprog import run

pytestmark = pytest.mark.host

PARAMETERS = "/sys/module/kvm_amd/parameters"


@pytest.fixture(params=["real", "standin"], scope="module")
def host(request: pytest.FixtureRequest) -> Iterator[SevHost]:
    require_kvm_mode(request.param)
    with SevHost(kvm=request.param) as host:
        yield host


def shell(host: SevHost, script: str) -> str:
    pipe = subprocess.PIPE
    process = host.popen(["sh", "-c", script], stdout=pipe, stderr=pipe, text=True)
    out, complaints = process.communicate(timeout=20)
    return str(out + complaints)


def test_the_shell_finds_them(host: SevHost) -> None:
    script = "for f in /dev/sev /dev/kvm; do test -c $f && test -r $f && test -w $f && ! test -x $f && echo $f; done"
    assert shell(host, script) == "/dev/sev\n/dev/kvm\n"
    assert shell(host, f"test -d {PARAMETERS} && cat {PARAMETERS}/sev_snp") == "N\n"
    names = ("sev", "sev_es", "sev_snp")
    assert shell(host, f"cd /; cat {' '.join(f'{PARAMETERS}/{name}' for name in names)}") == "Y\nY\nN\n"


def test_ls_shows_a_device(host: SevHost) -> None:
    line = shell(host, "ls -l /dev/sev")
    assert line.startswith("crw-rw-rw- 1 root root 10, ")
    assert line.endswith(" /dev/sev\n")


def test_python_finds_them_and_nothing_more(host: SevHost) -> None:
    out = run(
        host,
        f"""
        sev, text = os.stat("/dev/sev"), os.lstat("{PARAMETERS}/sev")
        say(exists=[os.path.exists(p) for p in ("/dev/sev", "/sys/module/kvm_amd", "/dev/sev2", "/dev/null")],
            mode=[sev.st_mode, text.st_mode], major=os.major(sev.st_rdev), size=text.st_size, links=sev.st_nlink,
            access=[os.access("/dev/sev", mode) for mode in (os.F_OK, os.R_OK | os.W_OK, os.X_OK)],
            es=open("{PARAMETERS}/sev_es").read(), real=os.path.realpath("/dev/sev"))
        for flags in (os.O_WRONLY, os.O_RDWR):
            try: os.open("{PARAMETERS}/sev", flags)
            except OSError as error: say(denied=error.errno)
        libc.syscall.restype = ctypes.c_long
        path = ctypes.c_char_p(b"/dev/sev")
        room = bytearray(256)
        raw = [libc.syscall(4, path, ctypes.c_void_p(hva(room))), libc.syscall(6, path, ctypes.c_void_p(hva(room))),
               libc.syscall(21, path, os.R_OK), libc.syscall(269, -100, path, os.W_OK),
               libc.syscall(439, -100, path, os.R_OK, 0),
               libc.syscall(332, -100, path, 0, 0xFFF, ctypes.c_void_p(hva(room)))]
        say(raw=raw, statx=struct.unpack_from("<II", room), statx_mode=struct.unpack_from("<H", room, 28)[0],
            rdev=struct.unpack_from("<I", room, 128)[0], bad=libc.syscall(4, path, ctypes.c_void_p(0x10)))
        """,
    )
    assert out["exists"] == [True, True, False, True]
    assert [stat.filemode(mode) for mode in out["mode"]] == ["crw-rw-rw-", "-r--r--r--"]
    assert (out["major"], out["size"], out["links"]) == (10, 4096, 1)
    assert out["access"] == [True, True, False]
    assert out["es"] == "Y\n"
    assert out["real"] == "/dev/sev"
    assert out["denied"] == 13
    assert out["raw"] == [0] * 6
    assert out["statx"] == [0x7FF, 4096]
    assert stat.S_ISCHR(out["statx_mode"])
    assert out["rdev"] == 10
    assert out["bad"] == -1


def test_without_stat_there_are_only_opens() -> None:
    require_kvm_mode("standin")
    with SevHost(kvm="standin", trap_stat=False) as host:
        assert shell(host, "test -e /dev/sev || head -c0 /dev/sev && echo opened") == "opened\n"
