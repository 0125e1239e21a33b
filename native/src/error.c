#include "error.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char last_error[320];
static _Thread_local int last_status;

const char *os_last_error(void) { return last_error; }
int os_last_status(void) { return last_status; }

int os_fail(int status, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(last_error, sizeof last_error, format, arguments);
  va_end(arguments);
  last_status = status;
  return status;
}

int os_check_range(const char *name, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return OS_OK;
  return os_fail(OS_EINVAL, "%s is %lld; it must lie between %lld and %lld", name,
                 (long long)value, (long long)low, (long long)high);
}
