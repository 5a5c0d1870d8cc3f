#ifndef PYBWRAP_SYMLINK_PINS_H
#define PYBWRAP_SYMLINK_PINS_H

#include "spec.h"

/* Binds each symlink on itself in the new root, while that is at /newroot. A mount point cannot be unlinked,
 * renamed or replaced (EBUSY), and a symlink that carries a mount is followed as before. 0, or -1 with errno. */
int pin_symlinks(const struct spec *spec);

#endif
