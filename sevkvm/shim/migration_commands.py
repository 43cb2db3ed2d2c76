"""SEND and RECEIVE as far as the firmware's own refusals go (AMD publication 55766, chapter 6).

This processor has no peer: what passes all checks of SEND_START or RECEIVE_START ends as UNSUPPORTED, so no guest
ever is in the states in which the other commands could succeed.
"""

from __future__ import annotations

from sevkvm.abi.policybits import POLICY_NOSEND
from sevkvm.abi.sev import FwStatus, GuestState, PlatformState
from sevkvm.shim.channel import HEADER_NBYTES, SESSION_NBYTES
from sevkvm.shim.firmware_failure import FirmwareFailure, require
from sevkvm.shim.launch_commands import LaunchCommands


class MigrationCommands(LaunchCommands):
    """Each checks in the firmware's order and raises FirmwareFailure with the status."""

    def send_start(self, handle: int, session_nbytes: int) -> None:
        """SEND_START: a wrong length fails with the right one."""
        self._issue("SEND_START")
        guest = self._working_guest(handle)
        if session_nbytes != SESSION_NBYTES:
            raise FirmwareFailure(FwStatus.INVALID_LEN, SESSION_NBYTES)
        require(guest.state == GuestState.RUNNING, FwStatus.INVALID_GUEST_STATE)
        require(not guest.policy.value & POLICY_NOSEND, FwStatus.POLICY_FAILURE)
        raise FirmwareFailure(FwStatus.UNSUPPORTED)

    def send_update_data(self, handle: int, header_nbytes: int, packet_nbytes: int) -> None:
        """SEND_UPDATE_DATA: a header that is too short fails with both lengths."""
        self._issue("SEND_UPDATE_DATA")
        self._require_state(PlatformState.WORKING)
        if header_nbytes < HEADER_NBYTES:
            raise FirmwareFailure(FwStatus.INVALID_LEN, HEADER_NBYTES, packet_nbytes)
        self._never(handle, GuestState.SEND_UPDATE)

    def send_finish(self, handle: int) -> None:
        """SEND_FINISH."""
        self._issue("SEND_FINISH")
        self._never(handle, GuestState.SEND_UPDATE)

    def send_cancel(self, handle: int) -> None:
        """SEND_CANCEL."""
        self._issue("SEND_CANCEL")
        self._never(handle, GuestState.SEND_UPDATE)

    def receive_start(self, handle: int, policy: int, owner: bytes, session: bytes) -> None:
        """RECEIVE_START: like LAUNCH_START with a session."""
        self._issue("RECEIVE_START")
        self._require_ready()
        self._channel(owner, session, policy)
        self._key(handle, policy)
        self._free_handle(policy)
        raise FirmwareFailure(FwStatus.UNSUPPORTED)

    def receive_update_data(self, handle: int) -> None:
        """RECEIVE_UPDATE_DATA."""
        self._issue("RECEIVE_UPDATE_DATA")
        self._never(handle, GuestState.RECEIVE_UPDATE)

    def receive_finish(self, handle: int) -> None:
        """RECEIVE_FINISH."""
        self._issue("RECEIVE_FINISH")
        self._never(handle, GuestState.RECEIVE_UPDATE)

    def _never(self, handle: int, state: GuestState) -> None:
        self._working_guest(handle, state)
        raise AssertionError(f"a guest in {state.name}, which nothing leads to")
