/* The part of libcap's header that bubblewrap uses, so that libcap is not needed. The one function that libcap would
 * bring is in csrc/capability_names.c; the two system calls are in every C library, which only does not declare them.
 */
#ifndef PYBWRAP_COMPAT_SYS_CAPABILITY_H
#define PYBWRAP_COMPAT_SYS_CAPABILITY_H

#include <linux/capability.h>

typedef int cap_value_t;

int capget(cap_user_header_t header, cap_user_data_t data);
int capset(cap_user_header_t header, const cap_user_data_t data);

/* Sets `value` to the number of the capability that `name` means: a name of capabilities(7) in any case, or a number.
 * Returns 0, or -1 with errno EINVAL.
 */
int cap_from_name(const char *name, cap_value_t *value);

#endif
