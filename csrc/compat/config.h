/* Stands in for the header that bubblewrap's own build system generates. */
#ifndef PYBWRAP_COMPAT_CONFIG_H
#define PYBWRAP_COMPAT_CONFIG_H

/* The build takes the version from bwrap_src/upstream.toml. */
#define PACKAGE_STRING "bubblewrap " PYBWRAP_BUBBLEWRAP_VERSION

#endif
