/* One launch: the state that the seams share, and the way through it. */
#ifndef PYBWRAP_LAUNCH_H
#define PYBWRAP_LAUNCH_H

#include "spec.h"
#include "status.h"

#include <poll.h>
#include <stdbool.h>
#include <sys/types.h>

/* Told from inside, not by pid: in a small container the monitor and the command may both be 2, each in its own
 * namespace. */
enum launch_role { ROLE_MONITOR, ROLE_INIT, ROLE_COMMAND };

struct launch {
    const struct spec *spec; /* NULL: plain bubblewrap, every seam stands aside */
    enum setup_step step;    /* what is being done now, for the report if it fails */
    enum launch_role role;
    pid_t init_pid;    /* the sandbox's init as the monitor sees it; without bubblewrap, the command */
    pid_t command_pid; /* the command as the sandbox's init sees it */
    int setup_socket;
    int exit_socket;
    int monitor_alive[2]; /* a pipe whose write end only the monitor holds */
    bool command_has_ended;
    uint64_t deadline; /* CLOCK_MONOTONIC, milliseconds; 0: none */
};

/* argv[0] of the helper executable, which the sandbox's init shows as its name. */
#define HELPER_NAME "pybwrap-sandbox"

extern struct launch launch;

bool launch_is_active(void);

/* Runs the command in its sandbox, tells the owner, removes what was put on the host, and exits. Must be called in
 * a process with one thread that has nothing else to do; its standard streams become the command's. */
void launch_run(const struct spec *spec) __attribute__((noreturn));

/* Reports on the socket that the calling process still has, and ends that process. */
void launch_fail(const struct status_record *failure) __attribute__((noreturn));

/* As poll(2), in the monitor; ends everything when the owner of the sandbox is gone or its time is up. */
int launch_poll(struct pollfd *fds, nfds_t count, int timeout);

#endif
