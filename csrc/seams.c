/* What stands behind seams.h. */
#include "seams.h"

#include "launch.h"
#include "stage.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "symlink_pins.h"

/* Upstream's, in utils.c. */
extern bool bwrap_level_prefix;
extern int proc_fd;
const char *mount_strerror(int error);

static const char *
no_detail(int error)
{
    (void) error;
    return NULL;
}

static const char *
error_detail(int error)
{
    return strerror(error);
}

/* What every die function comes to: a record for the owner, or upstream's line on stderr. */
static void __attribute__((noreturn, format(printf, 3, 0)))
die_with(int error, const char *(*detail)(int), const char *format, va_list arguments)
{
    if (launch_is_active()) {
        struct status_record failure = {
            .kind = STATUS_SETUP_FAILED,
            .step = launch.step,
            .error = detail == no_detail ? 0 : error,
        };
        vsnprintf(failure.message, sizeof failure.message, format, arguments);
        launch_fail(&failure);
    }

    if (bwrap_level_prefix)
        fprintf(stderr, "<3>");
    fprintf(stderr, "bwrap: ");
    vfprintf(stderr, format, arguments);
    if (detail(error) != NULL)
        fprintf(stderr, ": %s", detail(error));
    fprintf(stderr, "\n");
    seam_exit(1);
}

void
die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    die_with(0, no_detail, format, arguments);
}

void
die_with_error(const char *format, ...)
{
    int error = errno;
    va_list arguments;
    va_start(arguments, format);
    die_with(error, error_detail, format, arguments);
}

void
die_with_mount_error(const char *format, ...)
{
    int error = errno;
    va_list arguments;
    va_start(arguments, format);
    die_with(error, mount_strerror, format, arguments);
}

void
die_oom(void)
{
    errno = ENOMEM;
    die_with_error("memory");
}

void
die_with_bind_result(int result, int error, const char *failing_path, const char *format, ...)
{
    char what[256];
    va_list arguments;

    (void) result;
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    errno = error;
    die_with_mount_error("%s (at %s)", what, failing_path != NULL ? failing_path : "?");
}

void
seam_assert_fail(const char *assertion, const char *file, unsigned int line, const char *function)
{
    die("assertion failed in %s (%s:%u): %s", function, file, line, assertion);
}

void
seam_exit(int status)
{
    if (launch_is_active()) {
        struct status_record failure = { .kind = STATUS_SETUP_FAILED,
                                         .step = launch.step,
                                         .message = "bubblewrap ended without a reason" };
        launch_fail(&failure);
    }
    fflush(stdout);
    fflush(stderr);
    _exit(status);
}

/* Ends this process with the monitor. The signal comes for a death from now on, the pipe tells of one before. */
static int
die_with_monitor(void)
{
    struct pollfd monitor = { .fd = launch.monitor_alive[0], .events = POLLIN };

    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) != 0)
        return -1;
    if (launch.monitor_alive[0] >= 0 && poll(&monitor, 1, 0) > 0)
        _exit(1);
    return 0;
}

static int
clone_sandbox(unsigned long flags, void *child_stack)
{
    int pid = (int) syscall(__NR_clone, flags, child_stack);
    if (pid == 0)
        launch.role = ROLE_INIT;
    return pid;
}

int
raw_clone(unsigned long flags, void *child_stack)
{
    if (!launch_is_active())
        return clone_sandbox(flags, child_stack);

    launch.step = STEP_NAMESPACES;
    if (pipe2(launch.monitor_alive, O_CLOEXEC) != 0)
        die_with_error("pipe");

    int pid = clone_sandbox(flags, child_stack);
    if (pid == 0) {
        close(launch.monitor_alive[1]);
        launch.monitor_alive[1] = -1;
        /* Upstream asks for it later, and waits for the monitor before. */
        if (die_with_monitor() != 0)
            die_with_error("prctl(PR_SET_PDEATHSIG)");
        launch.step = (flags & CLONE_NEWNET) ? STEP_NETWORK : STEP_IDENTITY;
    } else if (pid < 0) {
        /* Upstream guesses at the reason in its text; the errno is what the owner can act on. */
        die_with_error("creating the namespaces");
    } else {
        launch.init_pid = pid;
        close(launch.monitor_alive[0]);
        launch.monitor_alive[0] = -1;
        /* From here on only the child can still fail to set up; its end of the socket must be the last. */
        close(launch.setup_socket);
        launch.setup_socket = -1;
    }
    return pid;
}

pid_t
seam_fork(void)
{
    if (launch_is_active())
        launch.step = STEP_PROCESS;
    pid_t pid = fork();
    if (pid > 0)
        launch.command_pid = pid;
    else if (pid == 0)
        launch.role = ROLE_COMMAND;
    return pid;
}

/* In the sandbox's init. Upstream reports 128+N for a signal; the owner is told the true status, and only when
 * nothing is left that could still run. */
pid_t
seam_wait(int *status)
{
    if (!launch_is_active())
        return wait(status);

    if (launch.command_has_ended) {
        errno = ECHILD;
        return -1;
    }

    pid_t child = wait(status);
    if (child == launch.command_pid) {
        struct status_record record = { .kind = STATUS_COMMAND_ENDED, .wait_status = *status };
        launch.command_has_ended = true;
        /* In the sandbox's own PID namespace -1 is everybody in there; anywhere else it would be the machine. */
        if (getpid() == 1) {
            (void) kill(-1, SIGKILL);
            while (wait(NULL) > 0 || errno == EINTR)
                ;
        }
        struct rusage used = { 0 };
        (void) getrusage(RUSAGE_CHILDREN, &used);
        record.usage = status_usage(&used);
        status_send(launch.exit_socket, &record);
    }
    return child;
}

/* A pid that has been waited for may be another process by the time the monitor ends the sandbox. */
pid_t
seam_waitpid(pid_t pid, int *status, int options)
{
    pid_t child = waitpid(pid, status, options);
    if (child > 0 && child == launch.init_pid)
        launch.init_pid = 0;
    return child;
}

int
seam_poll(struct pollfd *fds, nfds_t count, int timeout)
{
    return launch_is_active() ? launch_poll(fds, count, timeout) : poll(fds, count, timeout);
}

int
seam_prctl(int option, ...)
{
    unsigned long arguments[4];
    va_list list;

    va_start(list, option);
    for (int i = 0; i < 4; i++)
        arguments[i] = va_arg(list, unsigned long);
    va_end(list);

    if (launch_is_active() && option == PR_SET_PDEATHSIG) {
        /* The signal comes when the *thread* that started this process ends (PR_SET_PDEATHSIG(2const)); the
         * monitor watches a pidfd of the owning process instead. */
        return launch.role == ROLE_MONITOR ? 0 : die_with_monitor();
    }

    if (launch_is_active() && option == PR_SET_DUMPABLE && launch.role != ROLE_MONITOR) {
        /* Upstream's last step before it goes on without privileges. The init must not be traced or read by the
         * command: it knows the owner's socket. The command becomes dumpable again when it is executed. */
        launch.step = STEP_WORKING_DIRECTORY;
        arguments[0] = 0;
    }
    return prctl(option, arguments[0], arguments[1], arguments[2], arguments[3]);
}

int
seam_mount(const char *source, const char *target, const char *type, unsigned long flags, const void *data)
{
    if (!launch_is_active())
        return mount(source, target, type, flags, data);

    /* The old root is about to go, so the new one is complete. */
    if (flags == (MS_SILENT | MS_REC | MS_PRIVATE)) {
        launch.step = STEP_SYMLINK;
        if (pin_symlinks(launch.spec) != 0)
            die_with_error("pinning a symlink under a writable root");
    }

    launch.step = type != NULL && strcmp(type, "proc") == 0 ? STEP_PROC : STEP_MOUNT;
    int result = mount(source, target, type, flags, data);
    if (result == 0)
        launch.step = STEP_MOUNT;
    return result;
}

/* Upstream writes nothing with it but the identity maps of a user namespace. */
int
write_file_at(int directory, const char *path, const char *content)
{
    launch.step = STEP_IDENTITY;
    int fd = openat(directory, path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return -1;

    size_t length = strlen(content);
    ssize_t written = write(fd, content, length);
    int error = written < 0 ? errno : EIO;
    close(fd);
    if (written == (ssize_t) length) {
        launch.step = STEP_MOUNT;
        return 0;
    }
    errno = error;
    return -1;
}

static bool
is_kept_by_launch(int fd)
{
    if (fd == launch.exit_socket || fd == launch.monitor_alive[0] || fd == launch.monitor_alive[1])
        return true;
    if (launch.role != ROLE_MONITOR)
        return false;
    if (fd == launch.spec->header->owner_pidfd)
        return true;
    for (uint32_t i = 0; i < launch.spec->placeholder_count; i++)
        if (fd == launch.spec->placeholders[i].lock_fd)
            return true;
    return false;
}

/* Upstream closes with it what the monitor and the init have no use for. */
int
fdwalk(int (*callback)(void *data, int fd), void *data)
{
    int directory = openat(proc_fd, "self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0)
        return 0;
    DIR *entries = fdopendir(directory);
    if (entries == NULL) {
        close(directory);
        return 0;
    }

    int result = 0;
    for (struct dirent *entry; result == 0 && (entry = readdir(entries)) != NULL;) {
        char *end;
        long fd = strtol(entry->d_name, &end, 10);
        if (entry->d_name[0] == '.' || *end != '\0' || fd == directory)
            continue;
        if (launch_is_active() && is_kept_by_launch((int) fd))
            continue;
        result = callback(data, (int) fd);
    }
    closedir(entries);
    return result;
}

int
seam_execvp(const char *file, char *const argv[])
{
    if (!launch_is_active())
        return execvp(file, argv);

    struct status_record failure;
    stage_execute(launch.spec, launch.setup_socket, &failure);
    launch_fail(&failure);
}
