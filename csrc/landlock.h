#ifndef PYBWRAP_LANDLOCK_H
#define PYBWRAP_LANDLOCK_H

#include "spec.h"

/* The ABI version of the running kernel; 0 when it has no Landlock or it was not enabled at boot. */
int landlock_abi(void);

/* Restricts this process. Returns 0, or -1 with errno set and `*failed` naming what could not be done. */
int landlock_restrict(const struct spec *spec, const char **failed);

#endif
