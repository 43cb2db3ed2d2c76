#include "sk_status.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

static const char *const status_names[SK_STATUS_COUNT] = {
	[SK_OK] = "SK_OK",
	[SK_ERR_OS] = "SK_ERR_OS",
	[SK_ERR_NO_PROCESS] = "SK_ERR_NO_PROCESS",
	[SK_ERR_PERMISSION] = "SK_ERR_PERMISSION",
	[SK_ERR_TRACED] = "SK_ERR_TRACED",
	[SK_ERR_TIMEOUT] = "SK_ERR_TIMEOUT",
	[SK_ERR_NO_GADGET] = "SK_ERR_NO_GADGET",
	[SK_ERR_UNSUPPORTED] = "SK_ERR_UNSUPPORTED",
	[SK_ERR_WRONG_THREAD] = "SK_ERR_WRONG_THREAD",
	[SK_ERR_BUSY] = "SK_ERR_BUSY",
	[SK_ERR_LOST] = "SK_ERR_LOST",
	[SK_ERR_FAULT] = "SK_ERR_FAULT",
	[SK_ERR_INVALID] = "SK_ERR_INVALID",
	[SK_ERR_SANDBOX] = "SK_ERR_SANDBOX",
};

const char *sk_status_name(uint32_t status)
{
	return status < SK_STATUS_COUNT ? status_names[status] : "?";
}

static enum sk_status fill(struct sk_error *err, enum sk_status status, int os_errno, uint64_t address,
                           const char *format, va_list arguments)
{
	if (err) {
		err->status = status;
		err->os_errno = os_errno;
		err->address = address;
		vsnprintf(err->message, sizeof err->message, format, arguments);
	}
	return status;
}

enum sk_status sk_fail(struct sk_error *err, enum sk_status status, int os_errno, uint64_t address,
                       const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	fill(err, status, os_errno, address, format, arguments);
	va_end(arguments);
	return status;
}

enum sk_status sk_fail_errno(struct sk_error *err, int os_errno, const char *format, ...)
{
	enum sk_status status = SK_ERR_OS;
	va_list arguments;

	if (os_errno == ESRCH)
		status = SK_ERR_NO_PROCESS;
	else if (os_errno == EPERM || os_errno == EACCES)
		status = SK_ERR_PERMISSION;
	va_start(arguments, format);
	fill(err, status, os_errno, 0, format, arguments);
	va_end(arguments);
	return status;
}
