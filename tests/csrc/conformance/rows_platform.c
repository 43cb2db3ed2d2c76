/* /dev/sev: commands that change the platform's keys, or would. For pretended hosts, or hosts that nobody needs. */
#define _GNU_SOURCE
#include "conformance.h"

#include <fcntl.h>
#include <unistd.h>

static uint8_t state_of(int fd)
{
	struct platform_status status;
	uint32_t error;

	NEED(sev_platform(fd, SEV_PLATFORM_STATUS, &status, &error));
	return status.state;
}

static void export_pdh(int fd, uint8_t *pdh)
{
	struct pdh_export data = {(uintptr_t)pdh, CERT_NBYTES, (uintptr_t)conf_pages(2), CHAIN_NBYTES};
	uint32_t error;

	CHECK_ERRNO(sev_platform(fd, SEV_PDH_CERT_EXPORT, &data, &error), 0);
}

static void while_guests_live(void)
{
	struct vm vm;
	uint32_t error;

	vm_start(&vm, 0);
	CHECK_ERRNO(sev_platform(vm.sev, SEV_FACTORY_RESET, NULL, &error), EBUSY);
	CHECK_EQ(error, 0); /* the status was asked for */
	CHECK_ERRNO(sev_platform(vm.sev, SEV_PEK_GEN, NULL, &error), EIO);
	CHECK_EQ(error, FW_INVALID_PLATFORM_STATE);
	CHECK_EQ(state_of(vm.sev), PLATFORM_WORKING);
	CHECK_OP(&vm, vm_op(&vm, SEV_LAUNCH_FINISH, NULL), EIO, FW_INVALID_GUEST_STATE);
}

static void new_keys(void)
{
	uint8_t *before = conf_pages(1), *after = conf_pages(1);
	int fd = conf_open_sev(O_RDWR);
	uint32_t error;

	if (state_of(fd) == PLATFORM_WORKING)
		conf_skip("there are guests on this host");
	CHECK_ERRNO(sev_platform(fd, SEV_PDH_GEN, NULL, &error), 0);
	CHECK_EQ(error, 0);
	export_pdh(fd, before);
	CHECK_ERRNO(sev_platform(fd, SEV_PDH_GEN, NULL, &error), 0);
	export_pdh(fd, after);
	CHECK(memcmp(before, after, CERT_NBYTES) != 0);
	CHECK_ERRNO(sev_platform(fd, SEV_PEK_GEN, NULL, &error), 0);
	export_pdh(fd, before);
	CHECK(memcmp(before, after, CERT_NBYTES) != 0);
}

static void import_arguments(void)
{
	uint8_t *page = conf_pages(1);
	struct pdh_export data = {(uintptr_t)page, 0, (uintptr_t)page, CERT_NBYTES};
	int fd = conf_open_sev(O_RDWR);
	uint32_t error;

	CHECK_ERRNO(sev_platform(fd, SEV_PEK_CERT_IMPORT, NULL, &error), EFAULT);
	CHECK_ERRNO(sev_platform(fd, SEV_PEK_CERT_IMPORT, &data, &error), EINVAL);
	data = (struct pdh_export){(uintptr_t)page, CERT_NBYTES, 0, CERT_NBYTES};
	CHECK_ERRNO(sev_platform(fd, SEV_PEK_CERT_IMPORT, &data, &error), EINVAL);
	data = (struct pdh_export){(uintptr_t)page, CERT_NBYTES, (uintptr_t)page, BLOB_MAX_NBYTES + 1};
	CHECK_ERRNO(sev_platform(fd, SEV_PEK_CERT_IMPORT, &data, &error), EINVAL);
	data = (struct pdh_export){(uintptr_t)conf_hole(), CERT_NBYTES, (uintptr_t)page, CERT_NBYTES};
	CHECK_ERRNO(sev_platform(fd, SEV_PEK_CERT_IMPORT, &data, &error), EFAULT);
	CHECK_EQ(error, NO_FW_CALL);
	data = (struct pdh_export){(uintptr_t)page, CERT_NBYTES, (uintptr_t)page, CERT_NBYTES};
	CHECK_ERRNO(sev_platform(fd, SEV_PEK_CERT_IMPORT, &data, &error), EIO); /* zeros certify nothing */
	CHECK(error != 0 && error != NO_FW_CALL);
}

static void factory_reset(void)
{
	int fd = conf_open_sev(O_RDWR), reader = conf_open_sev(O_RDONLY);
	struct pdh_export data = {0};
	struct platform_status status;
	uint32_t error;
	struct vm vm;

	if (state_of(fd) == PLATFORM_WORKING)
		conf_skip("there are guests on this host");
	CHECK_ERRNO(sev_platform(fd, SEV_FACTORY_RESET, NULL, &error), 0);
	CHECK_EQ(error, 0);
	CHECK_ERRNO(sev_platform(reader, SEV_PLATFORM_STATUS, &status, &error), 0);
	CHECK_EQ(status.state, PLATFORM_UNINIT);
	CHECK_EQ(status.flags & (PLATFORM_FLAG_ES | 1), 0);
	CHECK_EQ(status.guest_count, 0);
	/* a platform that is down takes a writer to bring it up */
	CHECK_ERRNO(sev_platform(reader, SEV_PDH_CERT_EXPORT, &data, &error), EPERM);
	CHECK_ERRNO(sev_platform(fd, SEV_PDH_CERT_EXPORT, &data, &error), EIO);
	CHECK_EQ(error, FW_INVALID_LEN);
	CHECK_EQ(data.pdh_len, CERT_NBYTES);
	vm_start(&vm, 0); /* or a VM */
	CHECK_EQ(state_of(fd), PLATFORM_WORKING);
}

const struct row rows_platform[] = {
	ROW("platform.busy", ON_ANY | DESTRUCTIVE, while_guests_live, "4: FACTORY_RESET while there are guests: EBUSY"),
	ROW("platform.new-keys", ON_ANY | DESTRUCTIVE, new_keys, "4: PDH_GEN and PEK_GEN"),
	ROW("platform.import", ON_ANY | DESTRUCTIVE, import_arguments, "4: what PEK_CERT_IMPORT refuses"),
	ROW("platform.reset", ON_ANY | DESTRUCTIVE, factory_reset, "4: FACTORY_RESET, and the way up again"),
	END_OF_ROWS,
};
