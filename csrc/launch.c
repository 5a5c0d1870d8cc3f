#include "launch.h"

#include "seams.h"
#include "stage.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct launch launch = { .setup_socket = -1, .exit_socket = -1, .monitor_alive = { -1, -1 } };

bool
launch_is_active(void)
{
    return launch.spec != NULL;
}

/* Whether the object at `path` is one of ours: it may have been replaced by somebody on the host. */
static bool
is_placeholder(const char *path, enum placeholder_kind kind)
{
    char target[sizeof PLACEHOLDER_TARGET];
    struct stat found;

    if (kind == PLACEHOLDER_SYMLINK)
        return readlink(path, target, sizeof target) == sizeof target - 1 &&
               memcmp(target, PLACEHOLDER_TARGET, sizeof target - 1) == 0;
    return lstat(path, &found) == 0 && S_ISDIR(found.st_mode) &&
           (found.st_mode & PLACEHOLDER_MODE_MASK) == PLACEHOLDER_MODE_MARK;
}

/* Removes a placeholder that no other sandbox needs. */
static void
release_placeholder(const struct spec *spec, const struct spec_placeholder *placeholder)
{
    const char *path = spec_string(spec, placeholder->path);
    struct stat record;

    /* The shared lock is given up before the exclusive one is had (flock(2)): somebody else may have been the last in
     * between, and the record and the object at these paths may be new ones by now. */
    if (flock(placeholder->lock_fd, LOCK_EX | LOCK_NB) != 0 || fstat(placeholder->lock_fd, &record) != 0 ||
        record.st_nlink == 0)
        return;

    if (is_placeholder(path, placeholder->kind)) {
        int result = placeholder->kind == PLACEHOLDER_SYMLINK ? unlink(path) : rmdir(path);
        if (result != 0 && errno == ENOTEMPTY)
            /* Somebody on the host has filled it meanwhile: it is theirs, without our mark. */
            (void) chmod(path, 0755);
        else if (result != 0 && errno != ENOENT)
            return; /* the record stays, for a run that can */
    }
    (void) unlink(spec_string(spec, placeholder->registry_path));
}

/* Ends whatever still runs in the sandbox and leaves the host as it was. `used` gets what the sandbox has used, where
 * this is what ended it. */
static void
finish(struct rusage *used)
{
    if (launch.init_pid > 0) {
        (void) kill(launch.init_pid, SIGKILL);
        while (wait4(launch.init_pid, NULL, __WALL, used) < 0 && errno == EINTR)
            ;
        launch.init_pid = 0;
    }
    for (uint32_t i = 0; i < launch.spec->placeholder_count; i++)
        release_placeholder(launch.spec, &launch.spec->placeholders[i]);
}

/* Ends the sandbox before its command has ended, and tells the owner that nothing of it is left. */
static void __attribute__((noreturn))
end_sandbox(enum status_kind why)
{
    struct status_record record = { .kind = why };
    struct rusage used = { 0 };

    finish(&used);
    record.usage = status_usage(&used);
    status_send(launch.exit_socket, &record);
    _exit(0);
}

void
launch_fail(const struct status_record *failure)
{
    status_send(launch.setup_socket >= 0 ? launch.setup_socket : launch.exit_socket, failure);
    if (launch.role == ROLE_MONITOR)
        finish(NULL);
    _exit(1);
}

static uint64_t
monotonic_milliseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t) now.tv_sec * 1000 + (uint64_t) now.tv_nsec / 1000000;
}

/* How long a poll(2) may wait. Rounded up, so that it does not spin through the last millisecond. */
static int
until_deadline(void)
{
    uint64_t now = monotonic_milliseconds();
    if (now >= launch.deadline)
        return 0;
    uint64_t left = launch.deadline - now + 1;
    return left > INT_MAX ? INT_MAX : (int) left;
}

int
launch_poll(struct pollfd *fds, nfds_t count, int timeout)
{
    struct pollfd all[8];

    if (count + 2 > sizeof all / sizeof all[0])
        return poll(fds, count, timeout);

    memcpy(all, fds, count * sizeof *fds);
    /* The owner may be gone, or have hung up. A negative descriptor is passed over. */
    all[count] = (struct pollfd){ .fd = launch.spec->header->owner_pidfd, .events = POLLIN };
    all[count + 1] = (struct pollfd){ .fd = launch.exit_socket, .events = POLLIN };
    int ready = poll(all, count + 2, launch.deadline != 0 ? until_deadline() : timeout);
    if (ready > 0 && (all[count].revents != 0 || all[count + 1].revents != 0))
        end_sandbox(STATUS_KILLED);
    if (ready == 0 && launch.deadline != 0 && monotonic_milliseconds() >= launch.deadline)
        end_sandbox(STATUS_TIMED_OUT);
    memcpy(fds, all, count * sizeof *fds);
    return ready;
}

/* Closes what the monitor has no use for. Somebody who waits for the end of a pipe must not wait for us. */
static void
close_all_but(const int *kept, size_t count)
{
    unsigned int next = 3;

    /* `kept` is sorted. */
    for (size_t i = 0; i < count; i++) {
        if (kept[i] < 3)
            continue;
        if ((unsigned int) kept[i] > next)
            (void) syscall(__NR_close_range, next, (unsigned int) kept[i] - 1, 0);
        next = (unsigned int) kept[i] + 1;
    }
    (void) syscall(__NR_close_range, next, ~0U, 0);
}

static int
compare_fds(const void *left, const void *right)
{
    return *(const int *) left - *(const int *) right;
}

static void
keep_only_what_the_launch_needs(const struct spec *spec)
{
    enum { LIMIT = 1024 };
    int kept[LIMIT];
    size_t count = 0;

    if (3 + (size_t) spec->inherited_fd_count + spec->placeholder_count > LIMIT) {
        struct status_record failure = { .kind = STATUS_SETUP_FAILED,
                                         .step = STEP_FILE_DESCRIPTORS,
                                         .error = E2BIG,
                                         .message = "more than 1000 file descriptors to keep" };
        launch_fail(&failure);
    }
    kept[count++] = launch.setup_socket;
    kept[count++] = launch.exit_socket;
    kept[count++] = spec->header->owner_pidfd;
    for (uint32_t i = 0; i < spec->inherited_fd_count; i++)
        kept[count++] = spec->inherited_fds[i];
    for (uint32_t i = 0; i < spec->placeholder_count; i++)
        kept[count++] = spec->placeholders[i].lock_fd;
    qsort(kept, count, sizeof *kept, compare_fds);
    close_all_but(kept, count);
}

/* The stage without bubblewrap: a child that becomes the command, and this process as its monitor. */
static void
run_stage_alone(const struct spec *spec)
{
    launch.step = STEP_PROCESS;
    pid_t child = fork();
    if (child < 0) {
        struct status_record failure = {
            .kind = STATUS_SETUP_FAILED, .step = STEP_PROCESS, .error = errno, .message = "fork"
        };
        launch_fail(&failure);
    }
    if (child == 0) {
        struct status_record failure;
        launch.role = ROLE_COMMAND;
        stage_execute(spec, launch.setup_socket, &failure);
        launch_fail(&failure);
    }

    launch.init_pid = child;
    close(launch.setup_socket);
    launch.setup_socket = -1;

    int child_pidfd = (int) syscall(__NR_pidfd_open, child, 0);
    struct pollfd ended = { .fd = child_pidfd, .events = POLLIN };
    while (child_pidfd >= 0 && launch_poll(&ended, 1, -1) <= 0)
        ;

    struct status_record record = { .kind = STATUS_COMMAND_ENDED };
    struct rusage used = { 0 };
    while (wait4(child, &record.wait_status, 0, &used) < 0 && errno == EINTR)
        ;
    launch.init_pid = 0;
    record.usage = status_usage(&used);
    status_send(launch.exit_socket, &record);
}

void
launch_run(const struct spec *spec)
{
    launch.spec = spec;
    launch.step = STEP_ARGUMENTS;
    launch.role = ROLE_MONITOR;
    launch.setup_socket = spec->header->setup_socket;
    launch.exit_socket = spec->header->exit_socket;

    if (spec->header->wall_time != 0)
        launch.deadline = monotonic_milliseconds() + spec->header->wall_time;

    /* Out of reach of the terminal: Ctrl-C is for the owner, who decides what the command is sent. */
    (void) setsid();

    keep_only_what_the_launch_needs(spec);

    if (!(spec->header->flags & SPEC_BUBBLEWRAP)) {
        run_stage_alone(spec);
        finish(NULL);
        _exit(0);
    }

    (void) bwrap_main(spec->bubblewrap_argument_count, spec->bubblewrap_arguments);
    if (launch.role == ROLE_MONITOR)
        finish(NULL);
    _exit(0);
}
