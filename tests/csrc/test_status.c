/* The vocabulary of failure: every status has its name, messages never overrun, NULL is allowed. */
#include "../../csrc/sk_status.h"

#include <errno.h>
#include <string.h>

#include "expect.h"

static void every_status_has_a_name_of_its_own(void)
{
	for (uint32_t one = 0; one < SK_STATUS_COUNT; one++) {
		EXPECT(strncmp(sk_status_name(one), "SK_", 3) == 0);
		for (uint32_t other = 0; other < one; other++)
			EXPECT(strcmp(sk_status_name(one), sk_status_name(other)) != 0);
	}
	EXPECT(strcmp(sk_status_name(SK_STATUS_COUNT), "?") == 0);
	EXPECT(strcmp(sk_status_name(UINT32_MAX), "?") == 0);
}

static void a_long_message_is_cut(void)
{
	struct sk_error err;
	char text[1000];

	memset(text, 'x', sizeof text - 1);
	text[sizeof text - 1] = '\0';
	EXPECT(sk_fail(&err, SK_ERR_FAULT, EFAULT, 0x1234, "%s", text) == SK_ERR_FAULT);
	EXPECT(strlen(err.message) == sizeof err.message - 1);
	EXPECT(err.status == SK_ERR_FAULT && err.os_errno == EFAULT && err.address == 0x1234);
}

static void errno_chooses_the_status(void)
{
	struct sk_error err;

	EXPECT(sk_fail_errno(&err, ESRCH, "x") == SK_ERR_NO_PROCESS);
	EXPECT(sk_fail_errno(&err, EPERM, "x") == SK_ERR_PERMISSION);
	EXPECT(sk_fail_errno(&err, EACCES, "x") == SK_ERR_PERMISSION);
	EXPECT(sk_fail_errno(&err, EIO, "x") == SK_ERR_OS);
	EXPECT(err.os_errno == EIO);
}

int main(void)
{
	every_status_has_a_name_of_its_own();
	a_long_message_is_cut();
	errno_chooses_the_status();
	EXPECT(sk_fail(NULL, SK_ERR_BUSY, 0, 0, "nobody listens") == SK_ERR_BUSY);
	return 0;
}
