"""``/dev/sev``: the platform's side of SEV.

Source: Linux drivers/crypto/ccp/sev-dev.c, include/uapi/linux/psp-sev.h (v6.18).
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import TracebackType
from typing import Final

from sevkvm import errors, native
from sevkvm.abi import sev

_HELP: Final = {
    errno.ENOENT: "no SEV on this host: it needs an AMD EPYC, SEV enabled in the firmware setup, and the ccp module",
    errno.EACCES: "only root may open /dev/sev unless udev says otherwise",
    errno.EPERM: "only root may open /dev/sev unless udev says otherwise",
    errno.ENXIO: "the device node is there but no driver answers: load the ccp module",
    errno.ENODEV: "the secure processor driver (ccp) found no SEV firmware; see `dmesg | grep -i -e ccp -e sev`",
    errno.ENOTTY: "this is not the SEV device",
    errno.EBUSY: "the secure processor has stopped answering; see `dmesg | grep -i ccp`; a reboot is needed",
    errno.ETIMEDOUT: "the secure processor did not answer in time and is now disabled until reboot",
}

KVM_AMD_PARAMETERS: Final = Path("/sys/module/kvm_amd/parameters")


class SevDevice:
    """A context manager over an open ``/dev/sev``; read-only, which is enough for what never changes the platform."""

    def __init__(self, path: str = "/dev/sev") -> None:
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            code = error.errno or errno.EIO
            text = f"cannot open {path}: {os.strerror(code)}"
            if code in (errno.EACCES, errno.EPERM):
                raise errors.AttachError(text, help=_HELP[code]) from error
            raise errors.PlatformUnsupported(text, help=_HELP.get(code)) from error

    def platform_status(self) -> sev.PlatformStatus:
        """PLATFORM_STATUS: firmware version and state, number of guests. IoctlError or FirmwareError."""
        # one buffer, so that the struct and what it points to live equally long
        area = bytearray(sev.ISSUE_CMD_NBYTES + sev.PLATFORM_STATUS_NBYTES)
        hva = native.address_of(area)
        data_hva = hva + sev.ISSUE_CMD_NBYTES
        area[: sev.ISSUE_CMD_NBYTES] = sev.SevIssueCmd(sev.PlatformCmd.PLATFORM_STATUS, data_hva).pack()
        result = native.ioctl(self.fd, sev.SEV_ISSUE_CMD, hva)
        if result < 0:
            status = sev.SevIssueCmd.unpack(area[: sev.ISSUE_CMD_NBYTES]).error
            # only EIO reports a firmware status, and the preset survives unless the firmware was reached
            if result == -errno.EIO and status not in (0, sev.SEV_RET_NO_FW_CALL):
                raise errors.FirmwareError(
                    "SEV_PLATFORM_STATUS", status, sev.fw_status_name(status), help=sev.fw_status_help(status)
                )
            raise errors.IoctlError("SEV_PLATFORM_STATUS", -result, help=_HELP.get(-result))
        return sev.PlatformStatus.unpack(area[sev.ISSUE_CMD_NBYTES :])

    def close(self) -> None:
        """Close it; safe to call twice."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def __enter__(self) -> SevDevice:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def host_has_sev(device: str = "/dev/sev", parameters: Path = KVM_AMD_PARAMETERS) -> bool:
    """Can a VM of this host be encrypted? The secure processor's device is there, or kvm_amd says so."""
    try:
        return Path(device).exists() or (parameters / "sev").read_text().strip() in ("Y", "1")
    except OSError:
        return False
