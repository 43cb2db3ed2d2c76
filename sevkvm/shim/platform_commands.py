"""Commands about the platform itself: its status, its identity, its owner (AMD publication 55766, chapter 5)."""

from __future__ import annotations

import struct
from typing import Final

from sevkvm.abi.sev import FwStatus, PlatformState, PlatformStatus
from sevkvm.shim.certs import CERT_NBYTES, Certificate
from sevkvm.shim.firmware_core import API_VERSION, BUILD, FirmwareCore
from sevkvm.shim.firmware_failure import FirmwareFailure, require
from sevkvm.shim.platform_keys import CHIP_ID_NBYTES

_FLAG_OWNED: Final = 1 << 0
FLAG_ES: Final = 1 << 8
_SNP_STATUS: Final = struct.Struct("<BBBBIIIQQ")  # version, state, RMP; build, bits, guests, TCB twice
_SNP_FEATURE_INFO: Final = 1 << 3  # the FEATURE_INFO command is there
CHAIN_NBYTES: Final = 3 * CERT_NBYTES  # PEK, OCA, CEK


class PlatformCommands(FirmwareCore):
    """Each checks in the firmware's order and raises FirmwareFailure with the status."""

    def init(self) -> None:
        """INIT: from UNINIT only."""
        self._issue("INIT")
        self._require_state(PlatformState.UNINIT)
        self.initialised = True

    def shutdown(self) -> None:
        """SHUTDOWN: all guests are gone."""
        self._issue("SHUTDOWN")
        self.guests.clear()
        self.initialised = False

    def platform_reset(self) -> None:
        """PLATFORM_RESET: the stored identity is deleted; the next INIT makes a new one."""
        self._issue("PLATFORM_RESET")
        self._require_state(PlatformState.UNINIT)
        self.keys.reset()

    def platform_status(self) -> PlatformStatus:
        """PLATFORM_STATUS: allowed in every state; in UNINIT neither owner nor SEV-ES is told."""
        self._issue("PLATFORM_STATUS")
        flags = 0
        if self.initialised:
            flags = (_FLAG_OWNED if self.keys.owned else 0) | (FLAG_ES if self.es_enabled else 0)
        return PlatformStatus(*API_VERSION, self.state, flags, BUILD, len(self.guests))

    def pek_gen(self) -> None:
        """PEK_GEN: new OCA, PEK and PDH; an external owner is forgotten."""
        self._issue("PEK_GEN")
        self._require_state(PlatformState.INIT)
        self.keys.pek_gen()

    def pdh_gen(self) -> None:
        """PDH_GEN: a new PDH."""
        self._issue("PDH_GEN")
        self._require_ready()
        self.keys.pdh_gen()

    def pek_csr(self, nbytes: int) -> bytes:
        """PEK_CSR: the PEK's certificate, to be signed by an owner."""
        self._issue("PEK_CSR")
        self._require_ready()
        if nbytes < CERT_NBYTES:
            raise FirmwareFailure(FwStatus.INVALID_LEN, CERT_NBYTES)
        return self.keys.pek_csr()

    def pek_cert_import(self, pek: bytes, oca: bytes) -> None:
        """PEK_CERT_IMPORT: the platform gets an owner."""
        self._issue("PEK_CERT_IMPORT")
        self._require_state(PlatformState.INIT)
        require(not self.keys.owned, FwStatus.ALREADY_OWNED)
        require(len(pek) == len(oca) == CERT_NBYTES, FwStatus.INVALID_LEN)
        status = self.keys.pek_cert_import(Certificate.unpack(pek), Certificate.unpack(oca))
        require(status == FwStatus.SUCCESS, status)

    def pdh_cert_export(self, pdh_nbytes: int, chain_nbytes: int) -> tuple[bytes, bytes]:
        """PDH_CERT_EXPORT: the PDH's certificate, and PEK, OCA and CEK."""
        self._issue("PDH_CERT_EXPORT")
        self._require_ready()
        if pdh_nbytes < CERT_NBYTES or chain_nbytes < CHAIN_NBYTES:
            raise FirmwareFailure(FwStatus.INVALID_LEN, CERT_NBYTES, CHAIN_NBYTES)
        return self.keys.pdh_export()

    def get_id(self, nbytes: int) -> bytes:
        """GET_ID: 64 bytes for the first socket; those of all sockets only if there is room for exactly two."""
        self._issue("GET_ID")
        if nbytes < CHIP_ID_NBYTES:
            raise FirmwareFailure(FwStatus.INVALID_LEN, CHIP_ID_NBYTES)
        return b"".join(self.keys.chip_ids if nbytes == 2 * CHIP_ID_NBYTES else self.keys.chip_ids[:1])

    def snp_platform_status(self) -> bytes:
        """SNP_PLATFORM_STATUS: version, state UNINIT, no RMP, no guests, TCB version 0."""
        self._issue("SNP_PLATFORM_STATUS")
        return _SNP_STATUS.pack(*API_VERSION, 0, 0, BUILD, _SNP_FEATURE_INFO, 0, 0, 0)
