"""The pretend secure processor: states, handles, status codes, and a measurement an owner could verify."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

import pytest

from sevkvm.abi.sev import FwStatus, GuestState, GuestStatus, PlatformState
from sevkvm.shim.firmware import API_VERSION, BUILD, FLAG_ES, MAX_GUESTS, Firmware, FirmwareFailure
from tests.support.sev_owner import Owner

SEV_ASID, ES_ASID = 100, 1
PAGE = bytes(range(256)) * 16


def status_of(command: Callable[[], object]) -> FwStatus:
    try:
        command()
    except FirmwareFailure as failure:
        return failure.status
    return FwStatus.SUCCESS


def active(firmware: Firmware, policy: int = 0, asid: int = SEV_ASID) -> int:
    handle = firmware.launch_start(0, policy)
    firmware.activate(handle, asid)
    return handle


def test_platform_states_follow_the_guests() -> None:
    firmware = Firmware()
    status = firmware.platform_status()
    assert (status.state, status.guest_count, status.flags) == (PlatformState.INIT, 0, FLAG_ES)
    assert (status.api_major, status.api_minor, status.build) == (*API_VERSION, BUILD)
    handle = active(firmware)
    assert (firmware.platform_status().state, firmware.platform_status().guest_count) == (2, 1)
    firmware.deactivate(handle)
    firmware.decommission(handle)
    assert firmware.state == PlatformState.INIT
    firmware.initialised = False
    assert (firmware.platform_status().state, firmware.platform_status().flags) == (PlatformState.UNINIT, 0)
    assert status_of(lambda: firmware.launch_start(0, 0)) == FwStatus.INVALID_PLATFORM_STATE
    assert status_of(lambda: firmware.guest_status(1)) == FwStatus.INVALID_PLATFORM_STATE


def test_a_new_guest_gets_the_lowest_free_handle() -> None:
    firmware = Firmware()
    assert [firmware.launch_start(0, 0) for _ in range(3)] == [1, 2, 3]
    firmware.decommission(2)
    assert firmware.launch_start(0, 0) == 2
    assert firmware.launch_start(0, 0) == 4


def test_handles_run_out() -> None:
    firmware = Firmware()
    for _ in range(MAX_GUESTS):
        firmware.launch_start(0, 0)
    assert status_of(lambda: firmware.launch_start(0, 0)) == FwStatus.RESOURCE_LIMIT


def test_sharing_a_key() -> None:
    firmware = Firmware()
    first = firmware.launch_start(0, 0)
    unshared = firmware.launch_start(0, 0b10)
    assert status_of(lambda: firmware.launch_start(9, 0)) == FwStatus.INVALID_GUEST
    assert status_of(lambda: firmware.launch_start(first, 8)) == FwStatus.POLICY_FAILURE
    assert status_of(lambda: firmware.launch_start(unshared, 0b10)) == FwStatus.POLICY_FAILURE
    second = firmware.launch_start(first, 0)
    assert firmware.guests[second].cipher is firmware.guests[first].cipher


def test_sev_es_policy_on_a_platform_without_sev_es() -> None:
    firmware = Firmware()
    firmware.es_enabled = False
    assert status_of(lambda: firmware.launch_start(0, 4)) == FwStatus.UNSUPPORTED


def test_activate() -> None:
    firmware = Firmware()
    sev, es = firmware.launch_start(0, 0), firmware.launch_start(0, 4)
    assert status_of(lambda: firmware.activate(7, SEV_ASID)) == FwStatus.INVALID_GUEST
    assert status_of(lambda: firmware.activate(sev, ES_ASID)) == FwStatus.INVALID_ASID
    assert status_of(lambda: firmware.activate(es, SEV_ASID)) == FwStatus.INVALID_ASID
    assert status_of(lambda: firmware.activate(sev, 0)) == FwStatus.INVALID_ASID
    firmware.activate(sev, SEV_ASID)
    assert status_of(lambda: firmware.activate(sev, SEV_ASID)) == FwStatus.ASID_OWNED
    assert status_of(lambda: firmware.activate(sev, SEV_ASID + 1)) == FwStatus.ACTIVE
    other = firmware.launch_start(0, 0)
    assert status_of(lambda: firmware.activate(other, SEV_ASID)) == FwStatus.ASID_OWNED


def update(firmware: Firmware, handle: int, data: bytes = PAGE, spa: int = 0x1000) -> Callable[[], object]:
    return lambda: firmware.launch_update("LAUNCH_UPDATE_DATA", handle, spa, len(data))


def test_the_launch_goes_one_way_only() -> None:
    firmware = Firmware()
    handle = active(firmware)
    assert status_of(lambda: firmware.launch_finish(handle)) == FwStatus.INVALID_GUEST_STATE
    assert status_of(update(firmware, handle)) == FwStatus.SUCCESS
    with pytest.raises(FirmwareFailure) as short:
        firmware.launch_measure(handle, 47)
    assert (short.value.status, short.value.nbytes) == (FwStatus.INVALID_LEN, 48)
    assert firmware.guest_status(handle).state == GuestState.LAUNCH_UPDATE
    firmware.launch_measure(handle, 48)
    assert firmware.guest_status(handle).state == GuestState.LAUNCH_SECRET
    assert status_of(update(firmware, handle)) == FwStatus.INVALID_GUEST_STATE
    assert status_of(lambda: firmware.launch_measure(handle, 48)) == FwStatus.INVALID_GUEST_STATE
    firmware.launch_finish(handle)
    assert firmware.guest_status(handle) == GuestStatus(handle, 0, GuestState.RUNNING)
    assert status_of(lambda: firmware.launch_finish(handle)) == FwStatus.INVALID_GUEST_STATE


def test_launch_update_checks() -> None:
    firmware = Firmware()
    assert status_of(update(firmware, 1)) == FwStatus.INVALID_PLATFORM_STATE
    inactive = firmware.launch_start(0, 0)
    assert status_of(update(firmware, 9)) == FwStatus.INVALID_GUEST
    assert status_of(update(firmware, inactive)) == FwStatus.INACTIVE
    firmware.activate(inactive, SEV_ASID)
    assert status_of(update(firmware, inactive, spa=8)) == FwStatus.INVALID_ADDRESS
    assert status_of(update(firmware, inactive, data=b"")) == FwStatus.INVALID_LEN
    assert status_of(update(firmware, inactive, data=b"x" * 24)) == FwStatus.INVALID_LEN


def test_the_measurement_is_the_api_s_hmac_over_what_was_launched() -> None:
    firmware = Firmware()
    handle = active(firmware, policy=0x00370008)
    for number in range(3):
        guest = firmware.launch_update("LAUNCH_UPDATE_DATA", handle, 0x1000 * number, 32)
        data = bytearray([number] * 32)
        guest.seal(0x1000 * number, data)
        assert guest.cipher.decrypt(0x1000 * number, data) == bytes([number] * 32)
    answer = firmware.launch_measure(handle, 48)
    digest = hashlib.sha256(b"\0" * 32 + b"\1" * 32 + b"\2" * 32).digest()
    nonce = answer[32:]
    message = b"\x04" + bytes([1, 55, 21]) + b"\x08\x00\x37\x00" + digest + nonce
    assert answer[:32] == hmac.new(bytes(16), message, hashlib.sha256).digest()  # no session: a key of zeros
    assert len(nonce) == 16


def test_sealing_registers_is_for_sev_es_guests_and_whole_pages() -> None:
    firmware = Firmware()
    sev, es = active(firmware), active(firmware, policy=4, asid=ES_ASID)

    def vmsa(handle: int, nbytes: int) -> Callable[[], object]:
        return lambda: firmware.launch_update("LAUNCH_UPDATE_VMSA", handle, 0, nbytes)

    assert status_of(vmsa(99, 4080)) == FwStatus.INVALID_LEN  # before anything else
    assert status_of(vmsa(99, 4096)) == FwStatus.INVALID_GUEST
    assert status_of(vmsa(sev, 4096)) == FwStatus.UNSUPPORTED
    assert status_of(vmsa(es, 4096)) == FwStatus.SUCCESS


def test_a_guest_is_deactivated_once_and_then_forgotten() -> None:
    firmware = Firmware()
    for command in (firmware.deactivate, firmware.decommission):
        assert status_of(lambda run=command: run(1)) == FwStatus.INVALID_PLATFORM_STATE
    handle, _ = active(firmware), firmware.launch_start(0, 0)
    assert status_of(lambda: firmware.decommission(handle)) == FwStatus.ACTIVE
    assert status_of(lambda: firmware.deactivate(7)) == FwStatus.INVALID_GUEST
    firmware.deactivate(handle)
    assert status_of(lambda: firmware.deactivate(handle)) == FwStatus.INACTIVE
    firmware.decommission(handle)
    assert status_of(lambda: firmware.decommission(handle)) == FwStatus.INVALID_GUEST


def test_the_finished_launch_forgets_the_owner_s_keys() -> None:
    firmware = Firmware()
    owner = Owner(firmware.keys.pdh_export()[0], 0)
    handle = firmware.launch_start(0, 0, owner.cert, owner.session)
    firmware.activate(handle, SEV_ASID)
    firmware.launch_measure(handle, 48)
    assert (firmware.guests[handle].channel.tek, firmware.guests[handle].channel.tik) == (
        owner.tek,
        owner.tik,
    )
    firmware.launch_finish(handle)
    assert firmware.guests[handle].channel.tek == firmware.guests[handle].channel.tik == bytes(16)
    assert firmware.guests[handle].measured == b""


def test_an_unknown_guest_has_a_status_too() -> None:
    assert Firmware().guest_status(5) == GuestStatus(5, 0, GuestState.UNINIT)


def test_debug_checks_come_in_the_firmware_s_order() -> None:
    firmware = Firmware()

    def dbg(handle: int = 1, src: int = 0, dst: int = 0, nbytes: int = 16) -> Callable[[], object]:
        return lambda: firmware.dbg("DBG_DECRYPT", handle, src, dst, nbytes)

    wrong = {"handle": 9, "src": 1, "nbytes": 1}
    assert status_of(dbg(**wrong)) == FwStatus.INVALID_PLATFORM_STATE
    nodbg = firmware.launch_start(0, 1)  # and not activated
    assert status_of(dbg(**wrong)) == FwStatus.INVALID_ADDRESS
    assert status_of(dbg(handle=9, dst=8, nbytes=1)) == FwStatus.INVALID_ADDRESS
    assert status_of(dbg(handle=9, nbytes=17)) == FwStatus.INVALID_LEN
    assert status_of(dbg(handle=9)) == FwStatus.INVALID_GUEST
    assert status_of(dbg(handle=nodbg)) == FwStatus.POLICY_FAILURE
    inactive = firmware.launch_start(0, 0)
    assert status_of(dbg(handle=inactive)) == FwStatus.INACTIVE
    firmware.activate(inactive, SEV_ASID)
    assert status_of(dbg(handle=inactive)) == FwStatus.SUCCESS  # whatever the guest's state
    assert firmware.counts["DBG_DECRYPT"] == 8
