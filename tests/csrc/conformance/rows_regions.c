/* KVM_MEMORY_ENCRYPT_REG_REGION and _UNREG_REGION. */
#define _GNU_SOURCE
#include "conformance.h"

#include <sys/mman.h>

static int raw(struct vm *vm, bool add, void *argument)
{
	return conf_ioctl(vm->fd, add ? KVM_MEMORY_ENCRYPT_REG_REGION : KVM_MEMORY_ENCRYPT_UNREG_REGION, argument);
}

static void not_sev(void)
{
	uint8_t *page = conf_pages(1);
	struct vm vm;

	vm_create(&vm);
	CHECK_ERRNO(vm_region(&vm, true, page, PAGE), ENOTTY);
	CHECK_ERRNO(vm_region(&vm, false, page, PAGE), ENOTTY);
	CHECK_ERRNO(raw(&vm, true, conf_hole()), EFAULT); /* before anything else */
	CHECK_ERRNO(raw(&vm, false, NULL), EFAULT);
}

static void arguments(void)
{
	uint8_t *page = conf_pages(1), *edge = conf_pages_then_hole(1);
	struct vm vm;

	vm_init(&vm, false); /* no launch is needed */
	CHECK_ERRNO(raw(&vm, true, NULL), EFAULT);
	CHECK_ERRNO(raw(&vm, true, edge + PAGE - 15), EFAULT);
	CHECK_ERRNO(raw(&vm, false, conf_hole()), EFAULT);
	CHECK_ERRNO(vm_region(&vm, true, page, 0), EINVAL);
	CHECK_ERRNO(vm_region(&vm, true, (void *)-16L, 32), EINVAL);
	CHECK_ERRNO(vm_region(&vm, true, conf_hole(), PAGE), ENOMEM);
	CHECK_ERRNO(vm_region(&vm, true, edge, 2 * PAGE), ENOMEM);
	CHECK_ERRNO(vm_region(&vm, true, conf_protected(1, PROT_READ), PAGE), ENOMEM);
	CHECK_ERRNO(vm_region(&vm, true, conf_protected(1, PROT_NONE), PAGE), ENOMEM);
	CHECK_ERRNO(vm_region(&vm, false, edge, 2 * PAGE), EINVAL); /* none of them is registered */
}

static void exact_match(void)
{
	uint8_t *pages = conf_pages(4);
	struct vm vm;

	vm_init(&vm, false);
	CHECK_ERRNO(vm_region(&vm, false, pages, PAGE), EINVAL);
	CHECK_ERRNO(vm_region(&vm, true, pages, 2 * PAGE), 0);
	CHECK_ERRNO(vm_region(&vm, false, pages, PAGE), EINVAL);
	CHECK_ERRNO(vm_region(&vm, false, pages + PAGE, PAGE), EINVAL);
	CHECK_ERRNO(vm_region(&vm, false, pages, 2 * PAGE), 0);
	CHECK_ERRNO(vm_region(&vm, false, pages, 2 * PAGE), EINVAL);
}

static void unaligned(void)
{
	uint8_t *pages = conf_pages(4);
	struct vm vm;

	vm_init(&vm, false);
	CHECK_ERRNO(vm_region(&vm, true, pages + 100, PAGE + 1), 0);
	CHECK_ERRNO(vm_region(&vm, false, pages, 2 * PAGE), EINVAL);
	CHECK_ERRNO(vm_region(&vm, false, pages + 100, PAGE + 1), 0);
}

static void twice(void)
{
	uint8_t *pages = conf_pages(2);
	struct vm vm;

	vm_init(&vm, false);
	CHECK_ERRNO(vm_region(&vm, true, pages, 2 * PAGE), 0);
	CHECK_ERRNO(vm_region(&vm, true, pages, 2 * PAGE), 0);
	CHECK_ERRNO(vm_region(&vm, true, pages + PAGE, PAGE), 0); /* they may overlap */
	CHECK_ERRNO(vm_region(&vm, false, pages, 2 * PAGE), 0);
	CHECK_ERRNO(vm_region(&vm, false, pages, 2 * PAGE), 0);
	CHECK_ERRNO(vm_region(&vm, false, pages, 2 * PAGE), EINVAL);
	CHECK_ERRNO(vm_region(&vm, false, pages + PAGE, PAGE), 0);
}

const struct row rows_regions[] = {
	ROW("regions.not-sev", ON_ANY, not_sev, "1: ENOTTY, after EFAULT"),
	ROW("regions.arguments", ON_ANY, arguments, "1.2.f: EFAULT, EINVAL, ENOMEM"),
	ROW("regions.exact-match", ON_ANY, exact_match, "only what was registered is unregistered"),
	ROW("regions.unaligned", ON_ANY, unaligned, "no alignment is asked for"),
	ROW("regions.twice", ON_ANY, twice, "ranges may be registered twice and overlap"),
	END_OF_ROWS,
};
