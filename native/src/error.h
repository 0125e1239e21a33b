/* Errors: one line per thread, written by the call that fails. */
#ifndef OS_ERROR_H
#define OS_ERROR_H

#include "omniserve.h"

/* Keeps the line for os_last_error and returns `status`, so that callers can `return os_fail(...)`. */
int os_fail(int status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* OS_OK when low <= value <= high, else OS_EINVAL naming the argument, the value and the bounds. */
int os_check_range(const char *name, int64_t value, int64_t low, int64_t high);

#endif
