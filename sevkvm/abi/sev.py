"""SEV: commands and structs of KVM and ``/dev/sev``, firmware status codes, guest states.

Sources: Linux arch/x86/include/uapi/asm/kvm.h and include/uapi/linux/psp-sev.h (v6.18); AMD publication 55766,
"Secure Encrypted Virtualization API", chapters 4 (states) and 5 (status codes).
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

SEV_ISSUE_CMD: Final = 0xC0105300
SEV_RET_NO_FW_CALL: Final = 0xFFFFFFFF
BLOCK_NBYTES: Final = 16  # the cipher's block: every length and address of a DBG command is a multiple

CPUID_LEAF: Final = 0x8000001F
CPUID_EAX_SEV: Final = 1 << 1
CPUID_EAX_SEV_ES: Final = 1 << 3
CPUID_EAX_SEV_SNP: Final = 1 << 4
CPUID_EBX_CBIT_MASK: Final = 0x3F


class SevCmd(IntEnum):
    """``enum sev_cmd_id``: the ``id`` of KVM_MEMORY_ENCRYPT_OP."""

    INIT = 0
    ES_INIT = 1
    LAUNCH_START = 2
    LAUNCH_UPDATE_DATA = 3
    LAUNCH_UPDATE_VMSA = 4
    LAUNCH_SECRET = 5
    LAUNCH_MEASURE = 6
    LAUNCH_FINISH = 7
    SEND_START = 8
    SEND_UPDATE_DATA = 9
    SEND_UPDATE_VMSA = 10
    SEND_FINISH = 11
    RECEIVE_START = 12
    RECEIVE_UPDATE_DATA = 13
    RECEIVE_UPDATE_VMSA = 14
    RECEIVE_FINISH = 15
    GUEST_STATUS = 16
    DBG_DECRYPT = 17
    DBG_ENCRYPT = 18
    CERT_EXPORT = 19
    GET_ATTESTATION_REPORT = 20
    SEND_CANCEL = 21
    INIT2 = 22
    SNP_LAUNCH_START = 100
    SNP_LAUNCH_UPDATE = 101
    SNP_LAUNCH_FINISH = 102


class PlatformCmd(IntEnum):
    """``cmd`` of SEV_ISSUE_CMD on ``/dev/sev``."""

    FACTORY_RESET = 0
    PLATFORM_STATUS = 1
    PEK_GEN = 2
    PEK_CSR = 3
    PDH_GEN = 4
    PDH_CERT_EXPORT = 5
    PEK_CERT_IMPORT = 6
    GET_ID = 7
    GET_ID2 = 8
    SNP_PLATFORM_STATUS = 9
    SNP_COMMIT = 10
    SNP_SET_CONFIG = 11
    SNP_VLEK_LOAD = 12


class FwStatus(IntEnum):
    """Status codes of the firmware (SEV API chapter 5; psp-sev.h)."""

    SUCCESS = 0x00
    INVALID_PLATFORM_STATE = 0x01
    INVALID_GUEST_STATE = 0x02
    INVALID_CONFIG = 0x03
    INVALID_LEN = 0x04
    ALREADY_OWNED = 0x05
    INVALID_CERTIFICATE = 0x06
    POLICY_FAILURE = 0x07
    INACTIVE = 0x08
    INVALID_ADDRESS = 0x09
    BAD_SIGNATURE = 0x0A
    BAD_MEASUREMENT = 0x0B
    ASID_OWNED = 0x0C
    INVALID_ASID = 0x0D
    WBINVD_REQUIRED = 0x0E
    DFFLUSH_REQUIRED = 0x0F
    INVALID_GUEST = 0x10
    INVALID_COMMAND = 0x11
    ACTIVE = 0x12
    HWSEV_RET_PLATFORM = 0x13
    HWSEV_RET_UNSAFE = 0x14
    UNSUPPORTED = 0x15
    INVALID_PARAM = 0x16
    RESOURCE_LIMIT = 0x17
    SECURE_DATA_INVALID = 0x18
    INVALID_PAGE_SIZE = 0x19
    INVALID_PAGE_STATE = 0x1A
    INVALID_MDATA_ENTRY = 0x1B
    INVALID_PAGE_OWNER = 0x1C
    AEAD_OFLOW = 0x1D
    EXIT_RING_BUFFER = 0x1F
    RMP_INIT_REQUIRED = 0x20
    BAD_SVN = 0x21
    BAD_VERSION = 0x22
    SHUTDOWN_REQUIRED = 0x23
    UPDATE_FAILED = 0x24
    RESTORE_REQUIRED = 0x25
    RMP_INITIALIZATION_FAILED = 0x26
    INVALID_KEY = 0x27
    SHUTDOWN_INCOMPLETE = 0x28
    INCORRECT_BUFFER_LENGTH = 0x30
    EXPAND_BUFFER_LENGTH_REQUEST = 0x31
    SPDM_REQUEST = 0x32
    SPDM_ERROR = 0x33
    ERR_IN_DEV_CONN = 0x35
    INVALID_DEV_CTX = 0x36
    INVALID_TDI_CTX = 0x37
    INVALID_TDI = 0x38
    RECLAIM_REQUIRED = 0x39
    IN_USE = 0x3A
    INVALID_DEV_STATE = 0x3B
    INVALID_TDI_STATE = 0x3C
    DEV_CERT_CHANGED = 0x3D
    RESYNC_REQ = 0x3E
    RESPONSE_TOO_LARGE = 0x3F


_FW_STATUS_HELP: Final = {
    FwStatus.POLICY_FAILURE: "the guest was launched with NODBG; restart it with a policy that allows debugging",
    FwStatus.INACTIVE: "the guest's key is not loaded (ACTIVATE missing): is the VM being torn down or migrated?",
    FwStatus.INVALID_GUEST: "the firmware does not know this guest's handle: was the VM restarted?",
    FwStatus.INVALID_PLATFORM_STATE: "the SEV platform is not in the WORKING state; see `dmesg | grep -i sev`",
    FwStatus.HWSEV_RET_PLATFORM: "the secure processor failed; see `dmesg | grep -i -e ccp -e sev` on the host",
    FwStatus.HWSEV_RET_UNSAFE: "the secure processor refused as unsafe; see `dmesg | grep -i -e ccp -e sev`",
}


def fw_status_name(status: int) -> str:
    """Name of a firmware status, for example ``POLICY_FAILURE``; ``UNKNOWN`` for a code nobody documents."""
    try:
        return FwStatus(status).name
    except ValueError:
        return "UNKNOWN"


def fw_status_help(status: int) -> str | None:
    """What a person can do about a firmware status, if anything."""
    try:
        return _FW_STATUS_HELP.get(FwStatus(status))
    except ValueError:
        return None


class GuestState(IntEnum):
    """Guest states as the firmware reports them (the kernel's documentation swaps 4 and 5)."""

    UNINIT = 0
    LAUNCH_UPDATE = 1
    LAUNCH_SECRET = 2
    RUNNING = 3
    SEND_UPDATE = 4
    RECEIVE_UPDATE = 5
    SENT = 6


def guest_state_name(state: int) -> str:
    """A state as QEMU's ``info sev`` spells it (``launch-update`` ...), or ``unknown(N)``."""
    try:
        return GuestState(state).name.lower().replace("_", "-")
    except ValueError:
        return f"unknown({state})"


class PlatformState(IntEnum):
    """``state`` of PLATFORM_STATUS."""

    UNINIT = 0
    INIT = 1
    WORKING = 2


_CMD = struct.Struct("<I4xQII")
_DBG = struct.Struct("<QQI4x")
_GUEST_STATUS = struct.Struct("<III")
_INIT = struct.Struct("<QIH34x")
_LAUNCH_START = struct.Struct("<IIQI4xQI4x")
_LAUNCH_UPDATE_DATA = struct.Struct("<QI4x")
_LAUNCH_MEASURE = struct.Struct("<QI4x")
_ISSUE_CMD = struct.Struct("<IQI")
_PLATFORM_STATUS = struct.Struct("<BBBIBI")

CMD_NBYTES: Final = _CMD.size
CMD_ERROR_OFFSET: Final = 16
DBG_NBYTES: Final = _DBG.size
GUEST_STATUS_NBYTES: Final = _GUEST_STATUS.size
INIT_NBYTES: Final = _INIT.size
LAUNCH_START_NBYTES: Final = _LAUNCH_START.size
ISSUE_CMD_NBYTES: Final = _ISSUE_CMD.size
PLATFORM_STATUS_NBYTES: Final = _PLATFORM_STATUS.size


class KvmSevCmd(NamedTuple):
    """``struct kvm_sev_cmd``; ``error`` starts as SEV_RET_NO_FW_CALL so that a kernel refusal can be told apart."""

    id: int
    data: int = 0
    error: int = SEV_RET_NO_FW_CALL
    sev_fd: int = 0

    def pack(self) -> bytes:
        """The kernel's struct (24 bytes)."""
        return _CMD.pack(self.id, self.data, self.error, self.sev_fd)

    @classmethod
    def unpack(cls, data: bytes | bytearray) -> KvmSevCmd:
        """From the kernel's struct."""
        return cls(*_CMD.unpack(data))


def pack_dbg(src_uaddr: int, dst_uaddr: int, nbytes: int) -> bytes:
    """``struct kvm_sev_dbg``: both addresses are the VMM's."""
    return _DBG.pack(src_uaddr, dst_uaddr, nbytes)


def unpack_dbg(data: bytes | bytearray) -> tuple[int, int, int]:
    """(src_uaddr, dst_uaddr, nbytes)."""
    src, dst, nbytes = _DBG.unpack(data)
    return src, dst, nbytes


class GuestStatus(NamedTuple):
    """``struct kvm_sev_guest_status``."""

    handle: int
    policy: int
    state: int

    @classmethod
    def unpack(cls, data: bytes | bytearray) -> GuestStatus:
        """From the kernel's 12 bytes."""
        return cls(*_GUEST_STATUS.unpack(data))

    def pack(self) -> bytes:
        """The kernel's struct."""
        return _GUEST_STATUS.pack(self.handle, self.policy, self.state)


class SevInit(NamedTuple):
    """``struct kvm_sev_init`` (v6.10) of KVM_SEV_INIT2; ``vmsa_features`` is SEV_FEATURES of the VMSA."""

    vmsa_features: int = 0
    flags: int = 0
    ghcb_version: int = 0

    def pack(self) -> bytes:
        """The kernel's struct (48 bytes)."""
        return _INIT.pack(self.vmsa_features, self.flags, self.ghcb_version)

    @classmethod
    def unpack(cls, data: bytes | bytearray) -> SevInit:
        """From the kernel's struct."""
        return cls(*_INIT.unpack(data))


class LaunchStart(NamedTuple):
    """``struct kvm_sev_launch_start``; ``handle`` is filled in by the firmware."""

    handle: int = 0
    policy: int = 0
    dh_uaddr: int = 0
    dh_nbytes: int = 0
    session_uaddr: int = 0
    session_nbytes: int = 0

    def pack(self) -> bytes:
        """The kernel's struct (40 bytes)."""
        return _LAUNCH_START.pack(
            self.handle, self.policy, self.dh_uaddr, self.dh_nbytes, self.session_uaddr, self.session_nbytes
        )

    @classmethod
    def unpack(cls, data: bytes | bytearray) -> LaunchStart:
        """From the kernel's struct."""
        return cls(*_LAUNCH_START.unpack(data))


def pack_uaddr_len(uaddr: int, nbytes: int) -> bytes:
    """``struct kvm_sev_launch_update_data`` and ``struct kvm_sev_launch_measure``: an address and a length."""
    return _LAUNCH_UPDATE_DATA.pack(uaddr, nbytes)


def unpack_uaddr_len(data: bytes | bytearray) -> tuple[int, int]:
    """(uaddr, nbytes) of the two structs of :func:`pack_uaddr_len`."""
    uaddr, nbytes = _LAUNCH_UPDATE_DATA.unpack(data)
    return uaddr, nbytes


class SevIssueCmd(NamedTuple):
    """``struct sev_issue_cmd`` (packed, 16 bytes)."""

    cmd: int
    data: int = 0
    error: int = SEV_RET_NO_FW_CALL

    def pack(self) -> bytes:
        """The kernel's struct."""
        return _ISSUE_CMD.pack(self.cmd, self.data, self.error)

    @classmethod
    def unpack(cls, data: bytes | bytearray) -> SevIssueCmd:
        """From the kernel's struct."""
        return cls(*_ISSUE_CMD.unpack(data))


class PlatformStatus(NamedTuple):
    """``struct sev_user_data_status`` (packed, 12 bytes)."""

    api_major: int
    api_minor: int
    state: int
    flags: int
    build: int
    guest_count: int

    def pack(self) -> bytes:
        """The kernel's struct."""
        return _PLATFORM_STATUS.pack(
            self.api_major, self.api_minor, self.state, self.flags, self.build, self.guest_count
        )

    @classmethod
    def unpack(cls, data: bytes | bytearray) -> PlatformStatus:
        """From the kernel's struct."""
        return cls(*_PLATFORM_STATUS.unpack(data))
