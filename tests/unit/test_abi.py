"""The kernel's numbers and structs, pinned as literals (kernel v6.18)."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sevkvm.abi import kvm, sev, x86
from sevkvm.abi.policy import Policy
from tests.support.layouts import LAYOUTS, Layout

REQUESTS = {
    "KVM_GET_API_VERSION": 0xAE00,
    "KVM_CREATE_VM": 0xAE01,
    "KVM_CHECK_EXTENSION": 0xAE03,
    "KVM_GET_VCPU_MMAP_SIZE": 0xAE04,
    "KVM_GET_SUPPORTED_CPUID": 0xC008AE05,
    "KVM_GET_DEVICE_ATTR": 0x4018AEE2,
    "KVM_HAS_DEVICE_ATTR": 0x4018AEE3,
    "KVM_CREATE_VCPU": 0xAE41,
    "KVM_SET_USER_MEMORY_REGION": 0x4020AE46,
    "KVM_CREATE_IRQCHIP": 0xAE60,
    "KVM_ENABLE_CAP": 0x4068AEA3,
    "KVM_MEMORY_ENCRYPT_OP": 0xC008AEBA,
    "KVM_MEMORY_ENCRYPT_REG_REGION": 0x8010AEBB,
    "KVM_MEMORY_ENCRYPT_UNREG_REGION": 0x8010AEBC,
    "KVM_RUN": 0xAE80,
    "KVM_GET_REGS": 0x8090AE81,
    "KVM_SET_REGS": 0x4090AE82,
    "KVM_GET_SREGS": 0x8138AE83,
    "KVM_SET_SREGS": 0x4138AE84,
    "KVM_SET_CPUID2": 0x4008AE90,
    "KVM_GET_CPUID2": 0xC008AE91,
    "KVM_GET_MSRS": 0xC008AE88,
    "KVM_SET_MSRS": 0x4008AE89,
    "KVM_GET_FPU": 0x81A0AE8C,
    "KVM_SET_FPU": 0x41A0AE8D,
    "KVM_GET_MP_STATE": 0x8004AE98,
    "KVM_SET_GUEST_DEBUG": 0x4048AE9B,
    "KVM_GET_VCPU_EVENTS": 0x8040AE9F,
    "KVM_GET_DEBUGREGS": 0x8080AEA1,
    "KVM_SET_DEBUGREGS": 0x4080AEA2,
    "KVM_GET_XSAVE": 0x9000AEA4,
    "KVM_SET_XSAVE": 0x5000AEA5,
    "KVM_GET_XCRS": 0x8188AEA6,
    "KVM_SET_XCRS": 0x4188AEA7,
    "KVM_GET_SREGS2": 0x8140AECC,
    "KVM_SET_SREGS2": 0x4140AECD,
    "KVM_GET_XSAVE2": 0x9000AECF,
}
COMMANDS = {
    "INIT": 0,
    "ES_INIT": 1,
    "LAUNCH_START": 2,
    "LAUNCH_UPDATE_DATA": 3,
    "LAUNCH_UPDATE_VMSA": 4,
    "LAUNCH_SECRET": 5,
    "LAUNCH_MEASURE": 6,
    "LAUNCH_FINISH": 7,
    "GUEST_STATUS": 16,
    "DBG_DECRYPT": 17,
    "DBG_ENCRYPT": 18,
    "SEND_CANCEL": 21,
    "INIT2": 22,
    "SNP_LAUNCH_START": 100,
    "SNP_LAUNCH_FINISH": 102,
}
STATUSES = {
    "SUCCESS": 0,
    "INVALID_PLATFORM_STATE": 0x01,
    "INVALID_GUEST_STATE": 0x02,
    "INVALID_LEN": 0x04,
    "POLICY_FAILURE": 0x07,
    "INACTIVE": 0x08,
    "INVALID_ADDRESS": 0x09,
    "INVALID_GUEST": 0x10,
    "HWSEV_RET_PLATFORM": 0x13,
    "UNSUPPORTED": 0x15,
    "INVALID_PAGE_STATE": 0x1A,
    "EXIT_RING_BUFFER": 0x1F,
    "SHUTDOWN_INCOMPLETE": 0x28,
    "INCORRECT_BUFFER_LENGTH": 0x30,
    "ERR_IN_DEV_CONN": 0x35,
    "RESPONSE_TOO_LARGE": 0x3F,
}
BY_NAME = {layout.kernel_name: layout for layout in LAYOUTS}
FIELDS = [(layout, field) for layout in LAYOUTS for field in layout.offsets]


def structs_of(module: ModuleType) -> list[type]:
    return [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, tuple) and member.__module__ == module.__name__
    ]


@pytest.mark.parametrize(("name", "number"), REQUESTS.items())
def test_request_number_is_the_kernels(name: str, number: int) -> None:
    assert getattr(kvm, name) == number


def test_every_request_number_is_pinned() -> None:
    assert {name for number, name in kvm.REQUEST_NAMES.items()} == REQUESTS.keys()


def test_request_name_names_what_it_knows_and_shows_what_it_does_not() -> None:
    assert kvm.request_name(0xC008AEBA) == "KVM_MEMORY_ENCRYPT_OP"
    assert kvm.request_name(0xAE80) == "KVM_RUN"
    assert kvm.request_name(0x5401) == "ioctl 0x00005401"


def test_other_numbers() -> None:
    assert sev.SEV_ISSUE_CMD == 0xC0105300
    assert sev.SEV_RET_NO_FW_CALL == 0xFFFFFFFF
    assert kvm.KVM_API_VERSION == 12
    assert kvm.KVM_CAP_VM_TYPES == 235
    assert (kvm.KVM_CAP_VM_COPY_ENC_CONTEXT_FROM, kvm.KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM) == (197, 206)
    types = kvm.KVM_X86_DEFAULT_VM, kvm.KVM_X86_SEV_VM, kvm.KVM_X86_SEV_ES_VM, kvm.KVM_X86_SNP_VM
    assert types == (0, 2, 3, 4)
    assert (kvm.KVM_X86_GRP_SEV, kvm.KVM_X86_SEV_VMSA_FEATURES) == (1, 0)
    assert kvm.KVM_MEM_READONLY == 2
    assert sev.CPUID_LEAF == 0x8000001F


@pytest.mark.parametrize(("name", "number"), COMMANDS.items())
def test_sev_command_id(name: str, number: int) -> None:
    assert sev.SevCmd[name] == number


@pytest.mark.parametrize(("name", "number"), STATUSES.items())
def test_firmware_status_code(name: str, number: int) -> None:
    assert sev.FwStatus[name] == number
    assert sev.fw_status_name(number) == name


def test_unknown_firmware_status_has_no_name_and_no_help() -> None:
    assert sev.fw_status_name(0x1E) == "UNKNOWN"
    assert sev.fw_status_help(0x1E) is None
    assert sev.fw_status_help(sev.FwStatus.SUCCESS) is None
    assert "NODBG" in (sev.fw_status_help(7) or "")


@pytest.mark.parametrize("module", [kvm, sev])
def test_every_struct_that_packs_has_its_layout_checked(module: ModuleType) -> None:
    packing = {cls for cls in structs_of(module) if hasattr(cls, "pack")}
    assert packing <= {layout.struct for layout in LAYOUTS}


@pytest.mark.parametrize(("layout", "field"), FIELDS, ids=lambda x: getattr(x, "kernel_name", x))
def test_field_offset(layout: Layout, field: str) -> None:
    assert layout.measured_offset(field) == layout.offsets[field]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.kernel_name)
def test_struct_size(layout: Layout) -> None:
    field = next(iter(layout.offsets))
    assert len(layout.pack(layout.ours.get(field, field))) == layout.nbytes


@pytest.mark.parametrize(
    "layout",
    [each for each in LAYOUTS if hasattr(each.struct, "unpack")],
    ids=lambda each: each.kernel_name,
)
@given(data=st.data())
def test_unpack_then_pack_gives_the_bytes_back(layout: Layout, data: st.DataObject) -> None:
    cls: Any = layout.struct
    raw = data.draw(st.binary(min_size=layout.nbytes, max_size=layout.nbytes))
    once = cls.unpack(raw)
    assert cls.unpack(once.pack()) == once


@pytest.mark.parametrize(
    ("nbytes", "kernel_name"),
    [
        (kvm.REGS_NBYTES, "kvm_regs"),
        (kvm.SREGS_NBYTES, "kvm_sregs"),
        (kvm.CPUID_ENTRY_NBYTES, "kvm_cpuid_entry2"),
        (kvm.ENABLE_CAP_NBYTES, "kvm_enable_cap"),
        (kvm.DEVICE_ATTR_NBYTES, "kvm_device_attr"),
        (sev.INIT_NBYTES, "kvm_sev_init"),
        (sev.LAUNCH_START_NBYTES, "kvm_sev_launch_start"),
        (sev.ISSUE_CMD_NBYTES, "sev_issue_cmd"),
        (sev.PLATFORM_STATUS_NBYTES, "sev_user_data_status"),
    ],
)
def test_size_is_the_kernels(nbytes: int, kernel_name: str) -> None:
    assert nbytes == BY_NAME[kernel_name].nbytes


def test_sizes_that_ioctls_carry() -> None:
    assert (sev.CMD_NBYTES, sev.CMD_ERROR_OFFSET, sev.DBG_NBYTES, sev.GUEST_STATUS_NBYTES) == (24, 16, 24, 12)


def test_sev_command_starts_with_an_error_only_the_firmware_can_replace() -> None:
    assert sev.KvmSevCmd(17, data=0x1000).pack().hex() == "11000000000000000010000000000000ffffffff00000000"


def test_sev_dbg_round_trip() -> None:
    assert sev.unpack_dbg(sev.pack_dbg(0x7F00_0000_1000, 0x7E00_0000_2000, 0xFFF0)) == (
        0x7F00_0000_1000,
        0x7E00_0000_2000,
        0xFFF0,
    )
    assert sev.unpack_uaddr_len(sev.pack_uaddr_len(0x7F00_0000_1000, 48)) == (0x7F00_0000_1000, 48)


def test_cpuid2_round_trip_keeps_every_entry() -> None:
    entries = [kvm.CpuidEntry(0x8000001F, 0, 1, 0x02, 51, 509, 1), kvm.CpuidEntry(7, 1, 1, 2, 3, 4, 5)]
    assert kvm.unpack_cpuid2(kvm.pack_cpuid2(entries)) == entries


def test_cpuid2_with_room_says_how_much_there_is() -> None:
    data = kvm.pack_cpuid2([], room=256)
    assert len(data) == 8 + 256 * 40
    assert data[:8] == b"\x00\x01\x00\x00\x00\x00\x00\x00"


def test_cpuid2_count_is_not_believed_beyond_the_bytes() -> None:
    data = b"\xff\xff\xff\xff\x00\x00\x00\x00" + bytes(40)
    assert len(kvm.unpack_cpuid2(data)) == 1


@pytest.mark.parametrize(
    ("value", "allowed", "es", "flags"),
    [
        (0x0, True, False, ()),
        (0x1, False, False, ("NODBG",)),
        (0x5, False, True, ("NODBG", "ES")),
        (0x3E, True, True, ("NOKS", "ES", "NOSEND", "DOMAIN", "SEV")),
        (0x8040, True, False, ("bit6", "bit15")),
    ],
)
def test_policy_decoding(value: int, allowed: bool, es: bool, flags: tuple[str, ...]) -> None:
    policy = Policy(value)
    assert (policy.debug_allowed, policy.es, policy.flags) == (allowed, es, flags)


def test_policy_api_version_is_in_the_upper_half() -> None:
    assert Policy(0x1801_0000).api_version == (1, 24)
    assert Policy(0x1801_0000).flags == ()


def test_policy_sentences_follow_the_flags() -> None:
    assert Policy(0x5).sentences == (
        "debugging is forbidden",
        "SEV-ES is required: registers are encrypted",
    )


def test_guest_states_are_the_firmwares() -> None:
    names = [sev.guest_state_name(state) for state in range(8)]
    assert names == [
        "uninit",
        "launch-update",
        "launch-secret",
        "running",
        "send-update",
        "receive-update",
        "sent",
        "unknown(7)",
    ]


def test_page_table_bits() -> None:
    bits = [x86.PTE_P, x86.PTE_RW, x86.PTE_US, x86.PTE_PWT, x86.PTE_PCD, x86.PTE_A, x86.PTE_D, x86.PTE_PS]
    assert bits == [1 << n for n in range(8)]
    assert (x86.PTE_G, x86.PTE_NX) == (0x100, 0x8000_0000_0000_0000)
    assert x86.PTE_ADDRESS_MASK == x86.CR3_ADDRESS_MASK == 0x000F_FFFF_FFFF_F000
    assert (x86.PAGE_NBYTES, x86.PAGE_MASK) == (0x1000, 0xFFF)


def test_control_register_bits() -> None:
    assert (x86.CR0_PE, x86.CR0_PG) == (0x1, 0x8000_0000)
    assert (x86.CR4_PSE, x86.CR4_PAE, x86.CR4_LA57, x86.CR4_PCIDE) == (0x10, 0x20, 0x1000, 0x20000)
    assert (x86.EFER_LME, x86.EFER_LMA, x86.EFER_NXE) == (0x100, 0x400, 0x800)
