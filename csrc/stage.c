#include "stage.h"

#include "landlock.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC (1U << 2)
#endif

static void
set_failure(struct status_record *failure, enum setup_step step, int error, const char *what)
{
    failure->kind = STATUS_SETUP_FAILED;
    failure->step = step;
    failure->error = error;
    snprintf(failure->message, sizeof failure->message, "%s", what);
}

/* 1 when a permitted, effective or inheritable capability is left, 0 when none is, -1 with errno set. */
static int
holds_capabilities(void)
{
    struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = { 0 };

    if (syscall(__NR_capget, &header, data) != 0)
        return -1;
    for (int i = 0; i < _LINUX_CAPABILITY_U32S_3; i++)
        if (data[i].permitted != 0 || data[i].effective != 0 || data[i].inheritable != 0)
            return 1;
    return 0;
}

static int
drop_capabilities(void)
{
    struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
    struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = { 0 };

    /* The kernel may know more of them than the headers; it says EINVAL behind its last one. Without CAP_SETPCAP the
     * bounding set stays, which gains nothing: no_new_privs keeps execve(2) from adding from it. */
    for (unsigned long capability = 0; capability < 64; capability++)
        if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0 && errno != EINVAL && errno != EPERM)
            return -1;
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) != 0)
        return -1;
    return (int) syscall(__NR_capset, &header, none);
}

/* Marks everything above stderr close-on-exec. */
static int
mark_all_close_on_exec(void)
{
    if (syscall(__NR_close_range, 3U, ~0U, CLOSE_RANGE_CLOEXEC) == 0)
        return 0;

    /* Before Linux 5.11: ask for each number that can be open. */
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return -1;
    if (limit.rlim_max == RLIM_INFINITY || limit.rlim_max > INT_MAX)
        limit.rlim_max = INT_MAX;
    for (int fd = 3; fd < (int) limit.rlim_max; fd++)
        if (fcntl(fd, F_SETFD, FD_CLOEXEC) != 0 && errno != EBADF)
            return -1;
    return 0;
}

/* Raw system calls: the C library refuses to touch the two signals that it keeps for threads, but an ignored one
 * would be inherited all the same. The structure is the kernel's. */
static int
reset_signals(void)
{
    struct {
        void *handler;
        unsigned long flags;
        void *restorer;
        unsigned long mask;
    } action = { 0 };
    unsigned long empty = 0;

    for (int number = 1; number <= 64; number++) {
        if (number == SIGKILL || number == SIGSTOP)
            continue;
        if (syscall(__NR_rt_sigaction, number, &action, NULL, sizeof empty) != 0)
            return -1;
    }
    return (int) syscall(__NR_rt_sigprocmask, SIG_SETMASK, &empty, NULL, sizeof empty);
}

/* The value of PATH in the command's own environment, as execvp(3) would use it there. */
static const char *
search_path(char *const environment[])
{
    for (int i = 0; environment[i] != NULL; i++)
        if (strncmp(environment[i], "PATH=", 5) == 0)
            return environment[i] + 5;
    return "/usr/local/bin:/usr/bin:/bin";
}

/* execve(2) along PATH. Returns the errno to report: a file that was found but may not be executed matters more
 * than the directories that do not have it. */
static int
execute(const char *file, char *const argv[], char *const environment[])
{
    if (strchr(file, '/') != NULL) {
        execve(file, argv, environment);
        return errno;
    }

    char candidate[PATH_MAX];
    int error = ENOENT;
    for (const char *start = search_path(environment);; start++) {
        size_t length = strcspn(start, ":");
        int written = length == 0 ? snprintf(candidate, sizeof candidate, "./%s", file)
                                  : snprintf(candidate, sizeof candidate, "%.*s/%s", (int) length, start, file);
        if (written > 0 && (size_t) written < sizeof candidate) {
            execve(candidate, argv, environment);
            /* Where a directory may not be searched, nothing is known to be there. */
            if (errno != ENOENT && errno != ENOTDIR && error == ENOENT) {
                int found = errno;
                if (found != EACCES || faccessat(AT_FDCWD, candidate, F_OK, AT_EACCESS) == 0)
                    error = found;
            }
        }
        start += length;
        if (*start == '\0')
            return error;
    }
}

/* Sends a pidfd of this process, and with `count` 2 one of the sandbox's init, which is 1 here. */
static int
announce(int setup_socket, size_t count)
{
    const pid_t pids[STATUS_MAX_FDS] = { getpid(), 1 };
    struct status_record ready = { .kind = STATUS_COMMAND_READY };
    int fds[STATUS_MAX_FDS];

    for (size_t i = 0; i < count; i++) {
        fds[i] = (int) syscall(__NR_pidfd_open, pids[i], 0);
        if (fds[i] < 0)
            return -1; /* the caller ends this process, and with it what has been opened */
    }
    status_send_fds(setup_socket, &ready, fds, count);
    for (size_t i = 0; i < count; i++)
        close(fds[i]);
    return 0;
}

void
stage_execute(const struct spec *spec, int setup_socket, struct status_record *failure)
{
    uint32_t flags = spec->header->flags;

    memset(failure, 0, sizeof *failure);

    /* A sandbox that kept a capability could undo what follows: refuse before anything else. */
    if (flags & SPEC_REFUSE_CAPABILITIES) {
        int held = holds_capabilities();
        if (held != 0) {
            set_failure(failure, STEP_CAPABILITIES, held < 0 ? errno : EPERM,
                        held < 0 ? "capget" : "capabilities are still held where none may be");
            return;
        }
    }

    if ((flags & SPEC_DROP_CAPABILITIES) && drop_capabilities() != 0) {
        set_failure(failure, STEP_CAPABILITIES, errno, "dropping the capabilities");
        return;
    }

    if (spec->working_directory != NULL && chdir(spec->working_directory) != 0) {
        set_failure(failure, STEP_WORKING_DIRECTORY, errno, spec->working_directory);
        return;
    }

    /* A session of its own is what a controlling terminal belongs to, and with it job control. */
    if ((flags & SPEC_TERMINAL) && (setsid() < 0 || ioctl(0, TIOCSCTTY, 0) != 0)) {
        set_failure(failure, STEP_PROCESS, errno, "taking the terminal");
        return;
    }

    /* A group of its own, so that the owner can signal the command and its children without the sandbox's init. */
    if ((flags & SPEC_PROCESS_GROUP) && !(flags & SPEC_TERMINAL) && setpgid(0, 0) != 0) {
        set_failure(failure, STEP_PROCESS, errno, "setpgid");
        return;
    }

    if (mark_all_close_on_exec() != 0) {
        set_failure(failure, STEP_FILE_DESCRIPTORS, errno, "marking file descriptors close-on-exec");
        return;
    }
    for (uint32_t i = 0; i < spec->inherited_fd_count; i++)
        if (fcntl(spec->inherited_fds[i], F_SETFD, 0) != 0) {
            set_failure(failure, STEP_FILE_DESCRIPTORS, errno, "keeping an inherited file descriptor");
            return;
        }

    for (uint32_t i = 0; i < spec->resource_limit_count; i++) {
        const struct spec_resource_limit *wanted = &spec->resource_limits[i];
        struct rlimit limit = { .rlim_cur = wanted->soft, .rlim_max = wanted->hard };
        if (setrlimit(wanted->resource, &limit) != 0) {
            set_failure(failure, STEP_RESOURCE_LIMITS, errno, "setrlimit");
            return;
        }
    }

    if (reset_signals() != 0) {
        set_failure(failure, STEP_PROCESS, errno, "resetting signals");
        return;
    }

    /* Landlock and the filter both need it; it also makes set-user-ID files harmless. */
    if ((flags & SPEC_NO_NEW_PRIVS) && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
        set_failure(failure, STEP_PROCESS, errno, "prctl(PR_SET_NO_NEW_PRIVS)");
        return;
    }

    if (spec->header->landlock_filesystem != 0 || spec->header->landlock_scoped != 0) {
        const char *failed = NULL;
        if (landlock_restrict(spec, &failed) != 0) {
            set_failure(failure, STEP_LANDLOCK, errno, failed);
            return;
        }
    }

    /* The owner gets the pidfds now: the filter may forbid sendmsg(2), and the command may end at once. */
    if (setup_socket >= 0 && announce(setup_socket, (flags & SPEC_BUBBLEWRAP) ? 2 : 1) != 0) {
        set_failure(failure, STEP_PROCESS, errno, "pidfd_open");
        return;
    }

    if (spec->seccomp_length > 0) {
        struct sock_fprog program = {
            .len = (unsigned short) spec->seccomp_length,
            .filter = spec->seccomp_filter,
        };
        if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) != 0) {
            set_failure(failure, STEP_SECCOMP, errno, "prctl(PR_SET_SECCOMP)");
            return;
        }
    }

    failure->error = execute(spec->command[0], spec->command + 1, spec->environment);
    failure->kind = STATUS_EXEC_FAILED;
}
