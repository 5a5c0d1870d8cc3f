/* The last stage: everything that happens to the process that becomes the command, in the order it must happen. */
#ifndef PYBWRAP_STAGE_H
#define PYBWRAP_STAGE_H

#include "spec.h"
#include "status.h"

/* Restricts this process as the spec says and executes the command. Returns only on failure, and then fills
 * `failure`: STATUS_SETUP_FAILED when a restriction could not be had (the command was not executed), or
 * STATUS_EXEC_FAILED. Announces the command on `setup_socket` (-1: to nobody) just before the filter is loaded. */
void stage_execute(const struct spec *spec, int setup_socket, struct status_record *failure);

#endif
