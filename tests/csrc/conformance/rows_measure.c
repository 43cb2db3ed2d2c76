/* LAUNCH_MEASURE: lengths, and what is copied back when. */
#include "conformance.h"

static int measure(struct vm *vm, void *uaddr, uint32_t length, struct sev_uaddr_len *data)
{
	*data = (struct sev_uaddr_len){.uaddr = (uintptr_t)uaddr, .len = length};
	return vm_op(vm, SEV_LAUNCH_MEASURE, data);
}

static uint32_t state_of(struct vm *vm)
{
	struct sev_guest_status status;

	NEED(vm_status(vm, &status));
	return status.state;
}

static void length_query(void)
{
	uint8_t blob[MEASUREMENT_NBYTES];
	struct sev_uaddr_len data;
	struct vm vm;

	vm_start(&vm, 0);
	memset(blob, 0x5a, sizeof(blob));
	CHECK_OP(&vm, measure(&vm, NULL, 0, &data), EIO, FW_INVALID_LEN);
	CHECK_EQ(data.len, MEASUREMENT_NBYTES);
	CHECK_OP(&vm, measure(&vm, blob, 0, &data), EIO, FW_INVALID_LEN);
	CHECK_EQ(data.len, MEASUREMENT_NBYTES);
	CHECK(conf_is_all(blob, 0x5a, sizeof(blob)));
	CHECK_EQ(state_of(&vm), STATE_LUPDATE);
	CHECK_OP(&vm, measure(&vm, blob, data.len, &data), 0, 0U);
	CHECK_EQ(data.len, MEASUREMENT_NBYTES);
	CHECK(!conf_is_all(blob, 0x5a, sizeof(blob)));
	CHECK_EQ(state_of(&vm), STATE_LSECRET);
}

static void query_copy_back_fails(void)
{
	struct sev_uaddr_len *data = conf_pages(1);
	struct vm vm;

	vm_start(&vm, 0);
	CHECK_OP(&vm, vm_op(&vm, SEV_LAUNCH_MEASURE, NULL), EFAULT, NO_FW_CALL);
	data = conf_protected(1, 1 /* PROT_READ */);
	CHECK_OP(&vm, vm_op(&vm, SEV_LAUNCH_MEASURE, data), EFAULT, FW_INVALID_LEN);
}

static void short_buffer(void)
{
	uint8_t blob[MEASUREMENT_NBYTES];
	struct sev_uaddr_len data;
	struct vm vm;

	vm_start(&vm, 0);
	memset(blob, 0x5a, sizeof(blob));
	CHECK_OP(&vm, measure(&vm, blob, MEASUREMENT_NBYTES - 1, &data), EIO, FW_INVALID_LEN);
	CHECK_EQ(data.len, MEASUREMENT_NBYTES - 1); /* told only to those who ask with 0 */
	CHECK_OP(&vm, measure(&vm, NULL, MEASUREMENT_NBYTES, &data), EIO, FW_INVALID_LEN);
	CHECK_EQ(data.len, MEASUREMENT_NBYTES);
	CHECK_OP(&vm, measure(&vm, blob, 1, &data), EIO, FW_INVALID_LEN);
	CHECK_EQ(data.len, 1);
	CHECK(conf_is_all(blob, 0x5a, sizeof(blob)));
	CHECK_EQ(state_of(&vm), STATE_LUPDATE);
}

static void long_buffer(void)
{
	uint8_t blob[MEASUREMENT_NBYTES + 32];
	struct sev_uaddr_len data;
	struct vm vm;

	vm_start(&vm, 0);
	memset(blob, 0x5a, sizeof(blob));
	CHECK_OP(&vm, measure(&vm, blob, BLOB_MAX_NBYTES + 1, &data), EINVAL, NO_FW_CALL);
	CHECK_OP(&vm, measure(&vm, blob, MEASUREMENT_NBYTES + 16, &data), 0, 0U);
	/* the kernel copies as much as it was asked for; the rest of its buffer is zero */
	CHECK(conf_is_all(blob + MEASUREMENT_NBYTES, 0, 16));
	CHECK(conf_is_all(blob + MEASUREMENT_NBYTES + 16, 0x5a, 16));
}

static void blob_copy_fails(void)
{
	struct sev_uaddr_len data;
	struct vm vm;

	vm_start(&vm, 0);
	CHECK_OP(&vm, measure(&vm, conf_hole(), MEASUREMENT_NBYTES, &data), EFAULT, 0U);
	CHECK_EQ(state_of(&vm), STATE_LSECRET); /* it is measured all the same */
}

static void nonce(void)
{
	uint8_t first[MEASUREMENT_NBYTES], second[MEASUREMENT_NBYTES];
	struct sev_uaddr_len data;
	struct vm vm;

	vm_start(&vm, 0);
	NEED(measure(&vm, first, sizeof(first), &data));
	vm_start(&vm, 0);
	NEED(measure(&vm, second, sizeof(second), &data));
	/* a keyed hash, then the nonce: both new each time */
	CHECK(memcmp(first, second, 32) != 0);
	CHECK(memcmp(first + 32, second + 32, 16) != 0);
}

const struct row rows_measure[] = {
	ROW("measure.length-query", ON_ANY, length_query, "2: length 0: EIO, INVALID_LEN, and the length filled in"),
	ROW("measure.query-faults", ON_ANY, query_copy_back_fails, "2: EFAULT overrides EIO, the status stays"),
	ROW("measure.short", ON_ANY, short_buffer, "2: too short: INVALID_LEN, nothing copied back"),
	ROW("measure.long", ON_ANY, long_buffer, "2: more room than needed; more than 16 KiB is EINVAL"),
	ROW("measure.blob-faults", ON_ANY, blob_copy_fails, "2: EFAULT after the effect"),
	ROW("measure.nonce", ON_ANY, nonce, "2: measurement and nonce are fresh"),
	END_OF_ROWS,
};
