/*
 * A secure processor that fails. Hardware does not do so when asked; a pretended host can be made to, and is told so
 * with --broken: each row says which way.
 */
#include "conformance.h"

#define ENOUGH 10000 /* commands after which it must have failed */
#define FW_HWSEV_RET_PLATFORM 0x13U

static void need_broken(const char *how)
{
	if (!conf.broken || strcmp(conf.broken, how) != 0)
		conf_skip("for a host that is made to fail this way (--broken %s)", how);
}

/* GUEST_STATUS again and again, until it fails; the errno. */
static int until_failure(struct vm *vm)
{
	struct sev_guest_status status;
	int result = 0;

	for (int i = 0; i < ENOUGH && !result; i++)
		result = vm_status(vm, &status);
	return result;
}

static void check_dead(struct vm *vm)
{
	uint8_t *page = conf_pages(1), *out = conf_pages(1);
	struct sev_guest_status status;
	struct platform_status platform;
	uint32_t error;

	CHECK_OP(vm, vm_status(vm, &status), EBUSY, NO_FW_CALL);
	CHECK(conf_is_all(&status, 0xee, sizeof(status)));
	CHECK_OP(vm, vm_decrypt(vm, page, out, PAGE), EBUSY, NO_FW_CALL);
	CHECK_OP(vm, vm_decrypt(vm, conf_hole(), out, PAGE), ENOMEM, NO_FW_CALL); /* what comes before comes before */
	CHECK_ERRNO(sev_platform(vm->sev, SEV_PLATFORM_STATUS, &platform, &error), EBUSY);
	CHECK_EQ(error, NO_FW_CALL);
}

static void timeout(void)
{
	struct vm vm;

	need_broken("timeout");
	vm_start(&vm, 0);
	CHECK_OP(&vm, until_failure(&vm), ETIMEDOUT, 0U);
	check_dead(&vm);
}

static void dead(void)
{
	struct vm vm;

	need_broken("dead");
	vm_start(&vm, 0);
	CHECK_OP(&vm, until_failure(&vm), EBUSY, NO_FW_CALL);
	check_dead(&vm);
}

static void absent(void)
{
	struct vm vm;

	need_broken("absent"); /* from the first GUEST_STATUS on */
	vm_start(&vm, 0);
	CHECK_OP(&vm, until_failure(&vm), ENODEV, NO_FW_CALL);
}

static void third_page(void)
{
	uint8_t *out = conf_pages(4);
	struct vm vm;

	need_broken("third-page"); /* the third DBG_DECRYPT */
	vm_launch(&vm, 0, 4);
	memset(out, 0x5a, 4 * PAGE);
	CHECK_OP(&vm, vm_decrypt(&vm, vm.ram, out, 4 * PAGE), EIO, FW_HWSEV_RET_PLATFORM);
	CHECK(conf_is_all(out + 2 * PAGE, 0x5a, 2 * PAGE));
	conf_fill(vm.ram, 4 * PAGE, 1);
	CHECK(memcmp(out, vm.ram, 2 * PAGE) == 0);
}

const struct row rows_broken[] = {
	ROW("broken.timeout", ON_ANY, timeout, "1.5: ETIMEDOUT with error 0, then EBUSY for ever"),
	ROW("broken.dead", ON_ANY, dead, "1.5: EBUSY, error as it was"),
	ROW("broken.absent", ON_ANY, absent, "1.5: ENODEV, error as it was"),
	ROW("broken.third-page", ON_ANY, third_page, "1.5: pages before the refused one stay done"),
	END_OF_ROWS,
};
