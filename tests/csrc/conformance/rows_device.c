/* /dev/sev: what its one ioctl refuses, copies back and answers. Nothing here changes the platform. */
#define _GNU_SOURCE
#include "conformance.h"

#include <fcntl.h>
#include <sys/mman.h>

static void requests(void)
{
	struct issue_cmd *cmd = conf_pages(1);
	uint8_t *edge = conf_pages_then_hole(1);
	int fd = conf_open_sev(O_RDONLY);

	cmd->cmd = SEV_PLATFORM_STATUS;
	CHECK_ERRNO(conf_ioctl(fd, SEV_ISSUE_CMD + 1, cmd), EINVAL);
	CHECK_ERRNO(conf_ioctl(fd, SEV_ISSUE_CMD + 1, conf_hole()), EINVAL);
	CHECK_ERRNO(sev_issue(fd, NULL), EFAULT);
	CHECK_ERRNO(sev_issue(fd, conf_hole()), EFAULT);
	CHECK_ERRNO(sev_issue(fd, (struct issue_cmd *)(edge + PAGE - 15)), EFAULT);
}

static void unknown_command(void)
{
	static const uint32_t unknown[] = {60, 99, 0x80000001, 0xffffffff};
	struct issue_cmd *fixed = conf_pages(1);
	int fd = conf_open_sev(O_RDWR);

	for (size_t i = 0; i < sizeof(unknown) / sizeof(unknown[0]); i++) {
		mprotect(fixed, PAGE, PROT_READ | PROT_WRITE);
		*fixed = (struct issue_cmd){unknown[i], 0, 0x1234};
		mprotect(fixed, PAGE, PROT_READ); /* it is not copied back */
		CHECK_ERRNO(sev_issue(fd, fixed), EINVAL);
		CHECK_EQ(fixed->error, 0x1234);
	}
}

static void copied_back(void)
{
	struct platform_status status = {0};
	struct issue_cmd *fixed = conf_pages(1);
	int fd = conf_open_sev(O_RDONLY);

	*fixed = (struct issue_cmd){SEV_PLATFORM_STATUS, (uintptr_t)&status, 0x1234};
	mprotect(fixed, PAGE, PROT_READ);
	CHECK_ERRNO(sev_issue(fd, fixed), EFAULT);
	CHECK(status.api_major || status.api_minor); /* it was carried out */
	mprotect(fixed, PAGE, PROT_READ | PROT_WRITE);
	*fixed = (struct issue_cmd){SEV_PEK_CSR, 0, 0x1234};
	mprotect(fixed, PAGE, PROT_READ);
	CHECK_ERRNO(sev_issue(fd, fixed), EFAULT); /* EPERM, overridden */
}

static void status(void)
{
	struct platform_status first, second;
	uint32_t error;
	int fd = conf_open_sev(O_RDONLY);
	struct vm vm;

	memset(&first, 0xee, sizeof(first));
	CHECK_ERRNO(sev_platform(fd, SEV_PLATFORM_STATUS, &first, &error), 0);
	CHECK_EQ(error, 0);
	CHECK(first.state <= PLATFORM_WORKING);
	CHECK_EQ(first.state == PLATFORM_WORKING, first.guest_count > 0);
	vm_start(&vm, 0);
	CHECK_ERRNO(sev_platform(fd, SEV_PLATFORM_STATUS, &second, &error), 0);
	CHECK_EQ(second.state, PLATFORM_WORKING);
	CHECK(second.guest_count >= 1);
	CHECK_EQ(second.api_major, first.api_major);
	CHECK_EQ(second.api_minor, first.api_minor);
	CHECK_EQ(second.build, first.build);
}

static void status_faults(void)
{
	uint32_t error;
	int fd = conf_open_sev(O_WRONLY);

	CHECK_ERRNO(sev_platform(fd, SEV_PLATFORM_STATUS, NULL, &error), EFAULT);
	CHECK_EQ(error, 0); /* the firmware had answered */
	CHECK_ERRNO(sev_platform(fd, SEV_PLATFORM_STATUS, conf_protected(1, PROT_READ), &error), EFAULT);
}

static void permissions(void)
{
	static const uint32_t commands[] = {SEV_PEK_CSR, SEV_PEK_CERT_IMPORT, SEV_PDH_GEN, SEV_PEK_GEN,
					    SEV_FACTORY_RESET};
	int fd = conf_open_sev(O_RDONLY);
	uint32_t error;

	/* the first would do no harm if it were allowed, and if it is, no other is tried */
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
		int result = sev_platform(fd, commands[i], NULL, &error);

		if (result != EPERM || error != NO_FW_CALL)
			FAIL("command %u gives %s with error 0x%x, wanted EPERM", commands[i], conf_errno(result), error);
	}
}

static void get_id2(void)
{
	uint8_t id[2 * IDS_NBYTES];
	struct address_len data = {0};
	uint32_t error;
	int fd = conf_open_sev(O_RDONLY);

	CHECK_ERRNO(sev_platform(fd, SEV_GET_ID2, NULL, &error), EFAULT);
	CHECK_EQ(error, NO_FW_CALL);
	CHECK_ERRNO(sev_platform(fd, SEV_GET_ID2, &data, &error), EIO);
	CHECK_EQ(error, FW_INVALID_LEN);
	CHECK(data.length > 0 && data.length <= sizeof(id) && data.length % 64 == 0);
	data.address = (uintptr_t)id;
	memset(id, 0x5a, sizeof(id));
	CHECK_ERRNO(sev_platform(fd, SEV_GET_ID2, &data, &error), 0);
	CHECK_EQ(error, 0);
	CHECK(data.length > 0 && data.length <= sizeof(id) && data.length % 64 == 0);
	CHECK(conf_is_all(id + data.length, 0x5a, sizeof(id) - data.length));
	CHECK(!conf_is_all(id, 0x5a, data.length) && !conf_is_all(id, 0, 64));
	data.length = 0; /* a length of 0 asks as well */
	CHECK_ERRNO(sev_platform(fd, SEV_GET_ID2, &data, &error), EIO);
	CHECK_EQ(error, FW_INVALID_LEN);
}

static void get_id(void)
{
	uint8_t ids[IDS_NBYTES], again[IDS_NBYTES];
	struct address_len data = {(uintptr_t)again, sizeof(again)};
	uint32_t error;
	int fd = conf_open_sev(O_RDONLY);

	memset(ids, 0, sizeof(ids));
	CHECK_ERRNO(sev_platform(fd, SEV_GET_ID, ids, &error), 0);
	CHECK_EQ(error, 0);
	CHECK_ERRNO(sev_platform(fd, SEV_GET_ID2, &data, &error), 0);
	CHECK(memcmp(ids, again, 64) == 0); /* the first socket's */
	CHECK_ERRNO(sev_platform(fd, SEV_GET_ID, NULL, &error), EFAULT);
	CHECK_EQ(error, 0);
}

static void need_initialised(int fd)
{
	struct platform_status status;
	uint32_t error;

	NEED(sev_platform(fd, SEV_PLATFORM_STATUS, &status, &error));
	if (status.state == PLATFORM_UNINIT)
		conf_skip("the platform is not initialised");
}

static void pdh_export(void)
{
	uint8_t *pdh = conf_pages(1), *chain = conf_pages(2);
	struct pdh_export data = {0};
	uint32_t error;
	int fd = conf_open_sev(O_RDONLY);

	need_initialised(fd);
	CHECK_ERRNO(sev_platform(fd, SEV_PDH_CERT_EXPORT, NULL, &error), EFAULT);
	CHECK_EQ(error, NO_FW_CALL);
	CHECK_ERRNO(sev_platform(fd, SEV_PDH_CERT_EXPORT, &data, &error), EIO);
	CHECK_EQ(error, FW_INVALID_LEN);
	CHECK_EQ(data.pdh_len, CERT_NBYTES);
	CHECK_EQ(data.chain_len, CHAIN_NBYTES);
	data.pdh_address = (uintptr_t)pdh;
	data.chain_address = (uintptr_t)chain;
	CHECK_ERRNO(sev_platform(fd, SEV_PDH_CERT_EXPORT, &data, &error), 0);
	CHECK_EQ(error, 0);
	CHECK_EQ(pdh[0], 1); /* the version of a certificate */
	CHECK(chain[0] == 1 && chain[CERT_NBYTES] == 1 && chain[2 * CERT_NBYTES] == 1);
	data.pdh_len = 0;
	CHECK_ERRNO(sev_platform(fd, SEV_PDH_CERT_EXPORT, &data, &error), EIO);
	CHECK_EQ(data.pdh_len, CERT_NBYTES);
}

static void pdh_arguments(void)
{
	uint8_t *page = conf_pages(1);
	struct pdh_export data = {(uintptr_t)page, BLOB_MAX_NBYTES + 1, (uintptr_t)page, 16};
	uint32_t error;
	int fd = conf_open_sev(O_RDONLY);

	need_initialised(fd);
	CHECK_ERRNO(sev_platform(fd, SEV_PDH_CERT_EXPORT, &data, &error), EFAULT); /* that is how it is said */
	CHECK_EQ(error, NO_FW_CALL);
	data = (struct pdh_export){(uintptr_t)page, 16, (uintptr_t)page, BLOB_MAX_NBYTES + 1};
	CHECK_ERRNO(sev_platform(fd, SEV_PDH_CERT_EXPORT, &data, &error), EFAULT);
	data = (struct pdh_export){(uintptr_t)conf_hole(), CERT_NBYTES, (uintptr_t)conf_pages(2), CHAIN_NBYTES};
	CHECK_ERRNO(sev_platform(fd, SEV_PDH_CERT_EXPORT, &data, &error), EFAULT);
	CHECK_EQ(error, 0);
}

static void pek_csr(void)
{
	uint8_t *csr = conf_pages(1);
	struct address_len data = {0};
	uint32_t error;
	int fd = conf_open_sev(O_RDWR);

	need_initialised(fd);
	CHECK_ERRNO(sev_platform(fd, SEV_PEK_CSR, NULL, &error), EFAULT);
	CHECK_ERRNO(sev_platform(fd, SEV_PEK_CSR, &data, &error), EIO);
	CHECK_EQ(error, FW_INVALID_LEN);
	CHECK_EQ(data.length, CERT_NBYTES);
	data.address = (uintptr_t)csr;
	CHECK_ERRNO(sev_platform(fd, SEV_PEK_CSR, &data, &error), 0);
	CHECK_EQ(csr[0], 1);
	data.length = BLOB_MAX_NBYTES + 1;
	CHECK_ERRNO(sev_platform(fd, SEV_PEK_CSR, &data, &error), EFAULT);
}

static void snp_status(void)
{
	uint8_t data[64];
	uint32_t error;
	int result, fd = conf_open_sev(O_RDONLY);

	CHECK_ERRNO(sev_platform(fd, SNP_PLATFORM_STATUS, NULL, &error), EINVAL);
	CHECK_EQ(error, NO_FW_CALL);
	result = sev_platform(fd, SNP_PLATFORM_STATUS, data, &error);
	if (conf.generation == KERNEL_OLD && result == EINVAL)
		return; /* while SNP is not initialised */
	if (result == EIO || result == ENODEV)
		conf_skip("this processor's firmware knows no SNP");
	CHECK_ERRNO(result, 0);
	CHECK_EQ(error, 0);
}

static void snp_config_permission(void)
{
	uint8_t data[64] = {0};
	uint32_t error;
	int result, fd = conf_open_sev(O_RDONLY);

	CHECK_ERRNO(sev_platform(fd, SNP_SET_CONFIG, NULL, &error), EINVAL);
	CHECK_ERRNO(sev_platform(fd, SNP_VLEK_LOAD, NULL, &error), EINVAL);
	result = sev_platform(fd, SNP_SET_CONFIG, data, &error);
	if (conf.generation == KERNEL_OLD && result == EINVAL)
		return; /* while SNP is not initialised */
	CHECK_ERRNO(result, EPERM);
	CHECK_ERRNO(sev_platform(fd, SNP_VLEK_LOAD, data, &error), EPERM);
	CHECK_EQ(error, NO_FW_CALL);
}

static void no_processor(void)
{
	conf_skip("a driver without a secure processor (ENODEV) cannot be had by asking");
}

static void old_firmware(void)
{
	conf_skip("firmware before API 0.16 (GET_ID: ENOTSUPP) cannot be had by asking");
}

const struct row rows_device[] = {
	ROW("device.requests", ON_ANY, requests, "4: another request: EINVAL; a bad address: EFAULT"),
	ROW("device.unknown-command", ON_ANY, unknown_command, "4: EINVAL, not copied back"),
	ROW("device.copied-back", ON_ANY, copied_back, "4: a known command's struct is copied back in any case"),
	ROW("device.status", ON_ANY, status, "4: PLATFORM_STATUS; a guest makes it WORKING"),
	ROW("device.status-faults", ON_ANY, status_faults, "4: EFAULT with error 0"),
	ROW("device.permissions", ON_ANY, permissions, "4: EPERM unless opened for writing"),
	ROW("device.get-id2", ON_ANY, get_id2, "4: GET_ID2, with its length query"),
	ROW("device.get-id", ON_ANY, get_id, "4: GET_ID tells the same"),
	ROW("device.pdh-export", ON_ANY, pdh_export, "4: PDH_CERT_EXPORT, with its length query"),
	ROW("device.pdh-arguments", ON_ANY, pdh_arguments, "4: EFAULT for what is too long, or not there"),
	ROW("device.pek-csr", ON_ANY, pek_csr, "4: PEK_CSR, with its length query"),
	ROW("device.snp-status", ON_ANY, snp_status, "4: SNP_PLATFORM_STATUS"),
	ROW("device.snp-permissions", ON_ANY, snp_config_permission, "4: EINVAL without data, EPERM without a writer"),
	ROW("device.no-processor", ON_ANY, no_processor, "4: ENODEV"),
	ROW("device.old-firmware", ON_ANY, old_firmware, "4: ENOTSUPP"),
	END_OF_ROWS,
};
