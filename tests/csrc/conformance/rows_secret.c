/* LAUNCH_SECRET, GET_ATTESTATION_REPORT, and what SEND and RECEIVE refuse. */
#include "conformance.h"

static int secret(struct vm *vm, void *guest, uint32_t nbytes, uint32_t trans_nbytes, uint32_t header_nbytes)
{
	static uint8_t header[BLOB_MAX_NBYTES], packet[BLOB_MAX_NBYTES];
	struct sev_launch_secret data = {
		.hdr_uaddr = (uintptr_t)header,
		.hdr_len = header_nbytes,
		.guest_uaddr = (uintptr_t)guest,
		.guest_len = nbytes,
		.trans_uaddr = (uintptr_t)packet,
		.trans_len = trans_nbytes,
	};

	return vm_op(vm, SEV_LAUNCH_SECRET, &data);
}

static void secret_arguments(void)
{
	uint8_t *page = conf_pages(1);
	struct vm vm;

	vm_init(&vm, false);
	CHECK_OP(&vm, vm_op(&vm, SEV_LAUNCH_SECRET, NULL), EFAULT, NO_FW_CALL);
	CHECK_OP(&vm, secret(&vm, page, 0, 16, SECRET_HEADER_NBYTES), EINVAL, NO_FW_CALL);
	CHECK_OP(&vm, secret(&vm, conf_hole(), 16, 16, SECRET_HEADER_NBYTES), ENOMEM, NO_FW_CALL);
	CHECK_OP(&vm, secret(&vm, conf_protected(1, 1 /* PROT_READ */), 16, 16, SECRET_HEADER_NBYTES), ENOMEM,
		 NO_FW_CALL);
	CHECK_OP(&vm, secret(&vm, page, 16, 0, SECRET_HEADER_NBYTES), EINVAL, NO_FW_CALL);
	CHECK_OP(&vm, secret(&vm, page, 16, 16, 0), EINVAL, NO_FW_CALL);
	CHECK_OP(&vm, secret(&vm, page, 16, BLOB_MAX_NBYTES + 1, SECRET_HEADER_NBYTES), EINVAL, NO_FW_CALL);
	CHECK_OP(&vm, secret(&vm, page, 16, 16, SECRET_HEADER_NBYTES), EBADF, NO_FW_CALL);
}

static void secret_refused(void)
{
	uint8_t *page = conf_pages(1);
	struct vm vm;

	vm_start(&vm, 0);
	CHECK_OP(&vm, secret(&vm, page + 8, 16, 16, SECRET_HEADER_NBYTES), EIO, FW_INVALID_ADDRESS);
	CHECK_OP(&vm, secret(&vm, page, 16, 16, SECRET_HEADER_NBYTES + 1), EIO, FW_INVALID_LEN);
	CHECK_OP(&vm, secret(&vm, page, 8, 8, SECRET_HEADER_NBYTES), EIO, FW_INVALID_LEN);
	CHECK_OP(&vm, secret(&vm, page, 16, 32, SECRET_HEADER_NBYTES), EIO, FW_INVALID_LEN);
	CHECK_OP(&vm, secret(&vm, page, 16, 16, SECRET_HEADER_NBYTES), EIO, FW_INVALID_GUEST_STATE);
	NEED(vm_measure(&vm));
	/* of the owner's making it is not */
	CHECK_OP(&vm, secret(&vm, page, 16, 16, SECRET_HEADER_NBYTES), EIO, FW_BAD_MEASUREMENT);
	CHECK(conf_is_all(page, 0, PAGE));
	NEED(vm_op(&vm, SEV_LAUNCH_FINISH, NULL));
	CHECK_OP(&vm, secret(&vm, page, 16, 16, SECRET_HEADER_NBYTES), EIO, FW_INVALID_GUEST_STATE);
}

static int report(struct vm *vm, void *uaddr, uint32_t length, struct sev_attestation *data)
{
	*data = (struct sev_attestation){.uaddr = (uintptr_t)uaddr, .len = length};
	memset(data->mnonce, 0x11, sizeof(data->mnonce));
	return vm_op(vm, SEV_GET_ATTESTATION_REPORT, data);
}

static void attestation(void)
{
	uint8_t blob[ATTESTATION_NBYTES];
	struct sev_attestation data;
	struct vm vm;

	vm_start(&vm, POLICY_NOKS);
	CHECK_OP(&vm, vm_op(&vm, SEV_GET_ATTESTATION_REPORT, NULL), EFAULT, NO_FW_CALL);
	CHECK_OP(&vm, report(&vm, blob, BLOB_MAX_NBYTES + 1, &data), EINVAL, NO_FW_CALL);
	CHECK_OP(&vm, report(&vm, blob, sizeof(blob), &data), EIO, FW_INVALID_GUEST_STATE);
	NEED(vm_measure(&vm));
	CHECK_OP(&vm, report(&vm, NULL, 0, &data), EIO, FW_INVALID_LEN);
	CHECK_EQ(data.len, ATTESTATION_NBYTES);
	CHECK_OP(&vm, report(&vm, blob, 16, &data), EIO, FW_INVALID_LEN);
	CHECK_EQ(data.len, 16);
	CHECK_OP(&vm, report(&vm, blob, sizeof(blob), &data), 0, 0U);
	CHECK_EQ(data.len, ATTESTATION_NBYTES);
	CHECK(conf_is_all(blob, 0x11, 16)); /* the nonce that was given */
	CHECK(blob[48] == POLICY_NOKS && conf_is_all(blob + 49, 0, 3)); /* the policy, behind the digest */
}

static void migration_states(void)
{
	uint8_t nothing[128] = {0};
	struct vm vm;

	vm_launch(&vm, 0, 1);
	CHECK_OP(&vm, vm_op(&vm, SEV_SEND_FINISH, NULL), EIO, FW_INVALID_GUEST_STATE);
	CHECK_OP(&vm, vm_op(&vm, SEV_SEND_CANCEL, NULL), EIO, FW_INVALID_GUEST_STATE);
	CHECK_OP(&vm, vm_op(&vm, SEV_RECEIVE_FINISH, NULL), EIO, FW_INVALID_GUEST_STATE);
	CHECK_OP(&vm, vm_op(&vm, SEV_SEND_START, NULL), EFAULT, NO_FW_CALL);
	CHECK_OP(&vm, vm_op(&vm, SEV_SEND_UPDATE_DATA, NULL), EFAULT, NO_FW_CALL);
	CHECK_OP(&vm, vm_op(&vm, SEV_RECEIVE_START, NULL), EFAULT, NO_FW_CALL);
	CHECK_OP(&vm, vm_op(&vm, SEV_RECEIVE_UPDATE_DATA, NULL), EFAULT, NO_FW_CALL);
	CHECK_OP(&vm, vm_op(&vm, SEV_RECEIVE_START, nothing), EINVAL, NO_FW_CALL);
	CHECK_OP(&vm, vm_op(&vm, SEV_RECEIVE_UPDATE_DATA, nothing), EINVAL, NO_FW_CALL);
	/* lengths of 0 ask for the lengths */
	CHECK_OP(&vm, vm_op(&vm, SEV_SEND_START, nothing), EIO, FW_INVALID_LEN);
	memset(nothing, 0, sizeof(nothing));
	CHECK_OP(&vm, vm_op(&vm, SEV_SEND_UPDATE_DATA, nothing), EIO, FW_INVALID_LEN);
}

const struct row rows_secret[] = {
	ROW("secret.arguments", ON_ANY, secret_arguments, "2: what the kernel refuses, in its order"),
	ROW("secret.refused", ON_ANY, secret_refused, "2: what the firmware refuses, in its order"),
	ROW("secret.attestation", ON_ANY, attestation, "2: GET_ATTESTATION_REPORT"),
	ROW("secret.migration", ON_ANY, migration_states, "2: SEND and RECEIVE out of place"),
	END_OF_ROWS,
};
