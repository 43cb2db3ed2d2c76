/* Which generation of the debug commands is below us. */
#include "harness.h"

#include <stdio.h>

/*
 * A source address of 0 is refused by the rewrite before anything else (EINVAL); before it, 0 was an address like
 * any other, which cannot be pinned (ENOMEM). Nothing is launched for it.
 */
static void ask(void)
{
	struct vm vm;
	int result;

	vm_init(&vm, false);
	result = vm_decrypt(&vm, NULL, conf_pages(1), BLOCK);
	if (result == EINVAL)
		conf_skip("new");
	if (result == ENOMEM)
		conf_skip("old");
	FAIL("DBG_DECRYPT from address 0 gives %s, which no generation does", conf_errno(result));
}

enum generation probe_generation(char *reason)
{
	static const struct row row = ROW("probe", ON_ANY, ask, "which generation");

	if (run_row(&row, reason) != ROW_SKIPPED)
		return 0;
	return strcmp(reason, "new") == 0 ? KERNEL_NEW : KERNEL_OLD;
}
