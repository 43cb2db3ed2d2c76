"""Small programs for a pretend SEV host: raw ioctls from structs of their own, nothing of sevkvm in them.

    out = run(host, '''
    vm = launch()
    say(state=vm.status()[2])
    ''')
    assert out == {"state": 3}

The body runs after PRELUDE in a Python of its own and tells its results with ``say``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import Any

from sevkvm.shim.supervisor import SevHost

PRELUDE = r'''
import ctypes, errno, json, mmap, os, signal, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
RAM = 4 * 4096
NONE = 0xFFFFFFFF

def ioctl(fd, request, argument=0):
    """The result, or minus the errno."""
    result = libc.ioctl(fd, request, argument)
    return result if result >= 0 else -ctypes.get_errno()

def hva(buffer):
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))

def pages(nbytes, fd=-1, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ | mmap.PROT_WRITE):
    return mmap.mmap(fd, nbytes, flags=flags, prot=prot)

def say(**facts):
    print(json.dumps(facts), flush=True)

def op(fd, command, data=b"", sev_fd=0, error=NONE):
    """KVM_MEMORY_ENCRYPT_OP: (result, error field, data as it came back)."""
    room = bytearray(data or b"\0")
    cmd = bytearray(struct.pack("<I4xQII", command, hva(room) if data else 0, error, sev_fd))
    result = ioctl(fd, 0xC008AEBA, hva(cmd))
    return result, struct.unpack("<I4xQII", cmd)[2], bytes(room) if data else b""

def platform(fd, command=1, nbytes=12):
    """SEV_ISSUE_CMD: (result, error field, data)."""
    room = bytearray(nbytes)
    cmd = bytearray(struct.pack("<IQI", command, hva(room), NONE))
    result = ioctl(fd, 0xC0105300, hva(cmd))
    return result, struct.unpack("<IQI", cmd)[2], bytes(room)

class Vm:
    def __init__(self):
        self.kvm = os.open("/dev/kvm", os.O_RDWR)
        self.fd = ioctl(self.kvm, 0xAE01)
        assert self.fd >= 0, self.fd
    def op(self, command, data=b"", **more):
        return op(self.fd, command, data, **more)
    def decrypt(self, src, dst, nbytes):
        return self.op(17, struct.pack("<QQI4x", src, dst, nbytes))
    def encrypt(self, src, dst, nbytes):
        return self.op(18, struct.pack("<QQI4x", src, dst, nbytes))
    def status(self):
        result, error, data = self.op(16, bytes(12))
        return struct.unpack("<III", data) if result == 0 else (result, error)
    def vcpu(self, index=0):
        fd = ioctl(self.fd, 0xAE41, index)
        assert fd >= 0, fd
        return fd
    def close(self):
        os.close(self.fd)
        os.close(self.kvm)

def launch(policy=0, ram=None, text=b"plain text 16 b\n"):
    """A running guest whose RAM holds ``text`` again and again."""
    vm = Vm()
    vm.sev = os.open("/dev/sev", os.O_RDWR)
    vm.ram = pages(RAM) if ram is None else ram
    vm.ram[:] = text * (len(vm.ram) // len(text))
    vm.hva = hva(vm.ram)
    assert vm.op(0)[0] == 0
    result, _, data = vm.op(2, struct.pack("<IIQI4xQI4x", 0, policy, 0, 0, 0, 0), sev_fd=vm.sev)
    assert result == 0, result
    vm.handle = struct.unpack_from("<I", data)[0]
    assert vm.op(3, struct.pack("<QI4x", vm.hva, len(vm.ram)))[0] == 0
    room = bytearray(48)
    assert vm.op(6, struct.pack("<QI4x", hva(room), 48))[0] == 0
    assert vm.op(7)[0] == 0
    vm.out = pages(RAM)
    vm.out_hva = hva(vm.out)
    return vm
'''


def program(body: str) -> str:
    """The text of a whole program."""
    return PRELUDE + textwrap.dedent(body)


def start(host: SevHost, body: str, *arguments: str, **settings: Any) -> subprocess.Popen[str]:
    """Start the program; its stdout is a pipe of text."""
    settings = {"stdout": subprocess.PIPE, "text": True} | settings
    return host.popen([sys.executable, "-I", "-c", program(body), *arguments], **settings)


def lines_of(process: subprocess.Popen[str], timeout: float = 20.0) -> list[dict[str, Any]]:
    """Everything it says, once it has ended well."""
    try:
        out, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert process.returncode == 0, (process.returncode, out)
    return [json.loads(line) for line in out.splitlines()]


def run(host: SevHost, body: str, *arguments: str, **settings: Any) -> dict[str, Any]:
    """All that the program said, merged."""
    merged: dict[str, Any] = {}
    for line in lines_of(start(host, body, *arguments, **settings)):
        merged |= line
    return merged
