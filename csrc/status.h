/* What a launch tells its owner, as fixed-size records on SOCK_SEQPACKET sockets.
 *
 * Two sockets, because two questions are asked. The setup socket is held by whoever is setting up and closes when
 * the command has been executed: its end of file is the answer "it runs". The exit socket is held by the sandbox's
 * init and by the monitor, and tells how the command ended. */
#ifndef PYBWRAP_STATUS_H
#define PYBWRAP_STATUS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>

enum status_kind {
    STATUS_SETUP_FAILED = 1,  /* nothing was executed; `step`, `error` and `message` say why */
    STATUS_COMMAND_READY = 2, /* about to be executed; carries pidfds of the command and the init */
    STATUS_EXEC_FAILED = 3,   /* `error` is the errno of execve(2) */
    STATUS_COMMAND_ENDED = 4, /* `wait_status` is what wait(2) gave the sandbox's init */
    STATUS_TIMED_OUT = 5,     /* the monitor ended the sandbox: its wall time was up */
    STATUS_KILLED = 6,        /* the monitor ended the sandbox: its owner hung up the exit socket */
};

/* Python has the same list (pybwrap.launch.status.SetupStep); a test compares them. */
enum setup_step {
    STEP_ARGUMENTS = 1,
    STEP_NAMESPACES,
    STEP_NETWORK,
    STEP_IDENTITY,
    STEP_MOUNT,
    STEP_PROC,
    STEP_SYMLINK,
    STEP_WORKING_DIRECTORY,
    STEP_CAPABILITIES,
    STEP_FILE_DESCRIPTORS,
    STEP_RESOURCE_LIMITS,
    STEP_LANDLOCK,
    STEP_SECCOMP,
    STEP_PROCESS,
};

/* What everything inside has used together, as getrusage(2) counts it. */
struct status_usage {
    uint64_t user_time;   /* microseconds */
    uint64_t system_time; /* microseconds */
    uint64_t max_rss;     /* bytes, of the largest process */
    uint64_t voluntary_switches;
    uint64_t involuntary_switches;
};

struct status_record {
    uint32_t kind;
    uint32_t step;
    int32_t error;
    int32_t wait_status;
    struct status_usage usage; /* with the last three kinds */
    char message[496];         /* NUL-terminated; cut where it does not fit */
};

struct status_usage status_usage(const struct rusage *used);

enum { STATUS_MAX_FDS = 2 };

/* Sends one record. Failure is ignored: the owner sees end of file. */
void status_send(int socket, const struct status_record *record);

/* As status_send, and passes along `count` file descriptors, at most STATUS_MAX_FDS. */
void status_send_fds(int socket, const struct status_record *record, const int *fds, size_t count);

#endif
