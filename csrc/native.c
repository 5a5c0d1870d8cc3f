/* The entry points of the shared object (native.cdef.h). */
#include "launch.h"
#include "seams.h"
#include "stage.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "native.cdef.h"

int
run_bwrap_main(int argc, char **argv)
{
    int status = bwrap_main(argc, argv);

    /* bubblewrap returns in the sandbox's init too, which must never see the host program again. */
    if (launch.role != ROLE_MONITOR)
        seam_exit(status);
    return status;
}

/* Nothing of the host program's signal handling may act in the child: its handlers write to pipes that are shared
 * with it. Blocks everything first, so that none runs in between. */
static void
block_signals(sigset_t *previous)
{
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, previous);
}

static void
default_signals(void)
{
    struct sigaction action = { .sa_handler = SIG_DFL };
    sigset_t none;
    for (int number = 1; number < NSIG; number++)
        (void) sigaction(number, &action, NULL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

int
fork_bwrap_main(int argc, char **argv, int stderr_fd)
{
    sigset_t previous;
    block_signals(&previous);
    pid_t pid = fork();
    if (pid == 0) {
        default_signals();
        if (stderr_fd >= 0 && dup2(stderr_fd, 2) < 0)
            _exit(125);
        seam_exit(bwrap_main(argc, argv));
    }
    int error = errno;
    pthread_sigmask(SIG_SETMASK, &previous, NULL);
    return pid < 0 ? -error : pid;
}

/* Puts `streams` on 0, 1 and 2, whatever their numbers are. */
static int
place_streams(const int streams[3])
{
    int moved[3];

    /* A source among 0 to 2 would be overwritten before its turn. */
    for (int i = 0; i < 3; i++) {
        moved[i] = streams[i];
        if (streams[i] < 3 && streams[i] != i) {
            moved[i] = fcntl(streams[i], F_DUPFD_CLOEXEC, 3);
            if (moved[i] < 0)
                return -1;
        }
    }
    for (int i = 0; i < 3; i++) {
        if (moved[i] == i ? fcntl(i, F_SETFD, 0) < 0 : dup2(moved[i], i) < 0)
            return -1;
    }
    return 0;
}

struct helper_start {
    const char *helper;
    int spec_fd;
    const int *streams;
    const int *kept_fds;
    int kept_fd_count;
    volatile int error;
};

enum { HELPER_STACK_SIZE = 64 * 1024 };

/* Runs on its own stack in the caller's memory, while the calling thread waits (CLONE_VFORK). */
static int
become_helper(void *data)
{
    struct helper_start *start = data;
    char number[16];
    char name[] = HELPER_NAME;
    char *argv[] = { name, number, NULL };
    char *environment[] = { NULL };

    if (place_streams(start->streams) != 0 || fcntl(start->spec_fd, F_SETFD, 0) < 0)
        goto failed;
    for (int i = 0; i < start->kept_fd_count; i++)
        if (fcntl(start->kept_fds[i], F_SETFD, 0) < 0)
            goto failed;
    snprintf(number, sizeof number, "%d", start->spec_fd);

    default_signals();
    execve(start->helper, argv, environment);

failed:
    start->error = errno;
    return 127;
}

void
spawn_helper(const char *helper, int spec_fd, const int streams[3], const int *kept_fds, int kept_fd_count,
             struct spawn_result *result)
{
    struct helper_start start = {
        .helper = helper,
        .spec_fd = spec_fd,
        .streams = streams,
        .kept_fds = kept_fds,
        .kept_fd_count = kept_fd_count,
    };
    sigset_t previous;
    int pidfd = -1;

    *result = (struct spawn_result){ .pid = -1, .pidfd = -1 };
    char *stack = mmap(NULL, HELPER_STACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (stack == MAP_FAILED) {
        result->error = errno;
        return;
    }

    block_signals(&previous);
    int pid = clone(become_helper, stack + HELPER_STACK_SIZE, CLONE_VM | CLONE_VFORK | CLONE_PIDFD | SIGCHLD, &start,
                    &pidfd);
    int error = pid < 0 ? errno : start.error;
    pthread_sigmask(SIG_SETMASK, &previous, NULL);
    munmap(stack, HELPER_STACK_SIZE);

    if (error != 0) {
        if (pid > 0) {
            while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
                ;
            close(pidfd);
        }
        result->error = error;
        return;
    }
    result->pid = pid;
    result->pidfd = pidfd;
}

/* Where the kernel shows the arguments and the environment that this program was started with (proc_pid_stat(5)). */
struct start_areas {
    unsigned long arguments, arguments_end, environment, environment_end;
};

static int
find_start_areas(struct start_areas *areas)
{
    char line[2048];

    int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t size = read(fd, line, sizeof line - 1);
    close(fd);
    if (size <= 0)
        return -1;
    line[size] = '\0';

    /* The name in field 2 may hold anything; the areas are fields 48 to 51. */
    char *field = strrchr(line, ')');
    for (int number = 2; field != NULL && number < 48; number++)
        field = strchr(field + 1, ' ');
    if (field == NULL || sscanf(field, " %lu %lu %lu %lu", &areas->arguments, &areas->arguments_end,
                                &areas->environment, &areas->environment_end) != 4)
        return -1;
    return 0;
}

/* In the fork they are a copy: the command would see this program's in /proc/1/cmdline. */
static void
erase(unsigned long start, unsigned long end)
{
    if (start != 0 && end > start)
        memset((void *) start, 0, end - start); // NOLINT: the kernel says that it is memory of this process
}

void
fork_launch(void *block, size_t size, const int streams[3], struct spawn_result *result)
{
    struct spec spec;
    sigset_t previous;

    *result = (struct spawn_result){ .pid = -1, .pidfd = -1 };
    struct start_areas areas;
    if (spec_load(&spec, block, size) != NULL || find_start_areas(&areas) != 0) {
        spec_free(&spec);
        result->error = EINVAL;
        return;
    }

    block_signals(&previous);
    pid_t pid = fork();
    if (pid == 0) {
        default_signals();
        if (place_streams(streams) != 0)
            _exit(125);
        clearenv();
        erase(areas.arguments, areas.arguments_end);
        erase(areas.environment, areas.environment_end);
        launch_run(&spec);
    }
    int error = pid < 0 ? errno : 0;
    pthread_sigmask(SIG_SETMASK, &previous, NULL);
    spec_free(&spec);

    result->error = error;
    if (pid > 0) {
        result->pid = pid;
        result->pidfd = (int) syscall(__NR_pidfd_open, pid, 0);
    }
}

int
status_socketpair(int pair[2])
{
    return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0 ? 0 : -errno;
}

int
status_receive(int socket, int timeout, struct status_message *message)
{
    struct pollfd readable = { .fd = socket, .events = POLLIN };
    int ready = poll(&readable, 1, timeout);
    if (ready <= 0)
        return ready < 0 ? -errno : 0;

    struct status_record record = { 0 };
    struct iovec data = { .iov_base = &record, .iov_len = sizeof record };
    union {
        char buffer[CMSG_SPACE(STATUS_MAX_FDS * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct msghdr header = {
        .msg_iov = &data,
        .msg_iovlen = 1,
        .msg_control = control.buffer,
        .msg_controllen = sizeof control.buffer,
    };
    ssize_t received = recvmsg(socket, &header, MSG_CMSG_CLOEXEC);
    /* Somebody who was killed with our data unread resets the connection: that is an end like any other. */
    if (received < 0 && errno != ECONNRESET)
        return -errno;

    memset(message, 0, sizeof *message);
    message->fds[0] = message->fds[1] = -1;
    if (received != (ssize_t) sizeof record)
        return 1;
    message->kind = (int) record.kind;
    message->step = (int) record.step;
    message->error = record.error;
    message->wait_status = record.wait_status;
    message->user_time = record.usage.user_time;
    message->system_time = record.usage.system_time;
    message->max_rss = record.usage.max_rss;
    message->voluntary_switches = record.usage.voluntary_switches;
    message->involuntary_switches = record.usage.involuntary_switches;
    record.message[sizeof record.message - 1] = '\0';
    memcpy(message->message, record.message, sizeof message->message);

    struct cmsghdr *attached = CMSG_FIRSTHDR(&header);
    if (attached != NULL && attached->cmsg_level == SOL_SOCKET && attached->cmsg_type == SCM_RIGHTS)
        memcpy(message->fds, CMSG_DATA(attached), attached->cmsg_len - CMSG_LEN(0));
    return 1;
}

void
status_hang_up(int exit_socket)
{
    (void) shutdown(exit_socket, SHUT_WR);
}

/* Those that this process would die of or stop for. What it ignores, as under nohup(1), is not the command's either:
 * a blocked signal would be kept for signalfd(2) all the same. */
static void
relayed_signals(sigset_t *set)
{
    static const int numbers[] = { SIGHUP,  SIGINT,  SIGQUIT, SIGTERM, SIGUSR1,
                                   SIGUSR2, SIGALRM, SIGTSTP, SIGCONT, SIGWINCH };

    sigemptyset(set);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        struct sigaction action;
        if (sigaction(numbers[i], NULL, &action) == 0 && action.sa_handler != SIG_IGN)
            sigaddset(set, numbers[i]);
    }
}

void
block_relayed_signals(void)
{
    sigset_t relayed;
    relayed_signals(&relayed);
    pthread_sigmask(SIG_BLOCK, &relayed, NULL);
}

/* To the process group since Linux 6.9, before that to the command alone. */
static void
signal_group(int command_pidfd, int number)
{
    enum { PIDFD_SIGNAL_PROCESS_GROUP = 1 << 2 };
    if (syscall(__NR_pidfd_send_signal, command_pidfd, number, NULL, PIDFD_SIGNAL_PROCESS_GROUP) != 0 &&
        errno == EINVAL)
        (void) syscall(__NR_pidfd_send_signal, command_pidfd, number, NULL, 0);
}

int
relay_until_end(int exit_socket, int command_pidfd, struct status_message *message)
{
    sigset_t relayed;
    relayed_signals(&relayed);
    int signals = signalfd(-1, &relayed, SFD_CLOEXEC);
    if (signals < 0)
        return -errno;

    struct pollfd fds[] = { { .fd = exit_socket, .events = POLLIN }, { .fd = signals, .events = POLLIN } };
    while (poll(fds, 2, -1) >= 0 || errno == EINTR) {
        struct signalfd_siginfo received;
        if (fds[0].revents != 0)
            break;
        if (fds[1].revents == 0 || read(signals, &received, sizeof received) != (ssize_t) sizeof received)
            continue;
        signal_group(command_pidfd, (int) received.ssi_signo);
        if (received.ssi_signo == SIGTSTP) {
            (void) raise(SIGSTOP);
            signal_group(command_pidfd, SIGCONT);
        }
    }
    close(signals);
    return status_receive(exit_socket, -1, message);
}

void
execute_stage(void *block, size_t size, struct stage_failure *failure)
{
    struct status_record record = { 0 };
    struct spec spec;

    memset(failure, 0, sizeof *failure);
    const char *wrong = spec_load(&spec, block, size);
    if (wrong != NULL) {
        failure->is_setup = 1;
        failure->step = STEP_ARGUMENTS;
        failure->error = EINVAL;
        snprintf(failure->message, sizeof failure->message, "%s", wrong);
    } else {
        stage_execute(&spec, -1, &record);
        failure->is_setup = record.kind == STATUS_SETUP_FAILED;
        failure->step = (int) record.step;
        failure->error = record.error;
        memcpy(failure->message, record.message, sizeof failure->message);
    }
    spec_free(&spec);
}
