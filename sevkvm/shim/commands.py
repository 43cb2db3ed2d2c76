"""KVM_MEMORY_ENCRYPT_OP, command by command: who carries it out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sevkvm.abi.sev import SevCmd
from sevkvm.shim import dbg_crypt, guest_init, launch_ops, migration_ops, secret_ops, snp_launch_ops
from sevkvm.shim.sev_op import SevOp

Handler = Callable[[SevOp], None]

HANDLERS: Final[dict[int, Handler]] = {
    SevCmd.INIT: guest_init.init,
    SevCmd.ES_INIT: guest_init.es_init,
    SevCmd.INIT2: guest_init.init2,
    SevCmd.LAUNCH_START: launch_ops.launch_start,
    SevCmd.LAUNCH_UPDATE_DATA: launch_ops.launch_update_data,
    SevCmd.LAUNCH_UPDATE_VMSA: launch_ops.launch_update_vmsa,
    SevCmd.LAUNCH_MEASURE: launch_ops.launch_measure,
    SevCmd.LAUNCH_FINISH: launch_ops.launch_finish,
    SevCmd.LAUNCH_SECRET: secret_ops.launch_secret,
    SevCmd.GET_ATTESTATION_REPORT: secret_ops.get_attestation_report,
    SevCmd.SEND_START: migration_ops.send_start,
    SevCmd.SEND_UPDATE_DATA: migration_ops.send_update_data,
    SevCmd.SEND_FINISH: migration_ops.send_finish,
    SevCmd.SEND_CANCEL: migration_ops.send_cancel,
    SevCmd.RECEIVE_START: migration_ops.receive_start,
    SevCmd.RECEIVE_UPDATE_DATA: migration_ops.receive_update_data,
    SevCmd.RECEIVE_FINISH: migration_ops.receive_finish,
    SevCmd.SNP_LAUNCH_START: snp_launch_ops.launch_start,
    SevCmd.SNP_LAUNCH_UPDATE: snp_launch_ops.launch_update,
    SevCmd.SNP_LAUNCH_FINISH: snp_launch_ops.launch_finish,
    SevCmd.GUEST_STATUS: launch_ops.guest_status,
    SevCmd.DBG_DECRYPT: dbg_crypt.dbg_decrypt,
    SevCmd.DBG_ENCRYPT: dbg_crypt.dbg_encrypt,
}


def command_name(command: int) -> str:
    """``DBG_DECRYPT`` and the like, or the number of a command that nobody knows."""
    try:
        return SevCmd(command).name
    except ValueError:
        return f"command {command}"
