/* What Python sees of the shared object. */

/* Plain bubblewrap, in this process: it becomes the monitor of the sandbox. Returns the exit status of the
   sandbox; where bubblewrap itself gives up, it writes its line to stderr and the process ends with status 1. */
int run_bwrap_main(int argc, char **argv);

/* As run_bwrap_main in a forked child, with the child's stderr on `stderr_fd` unless that is -1.
   Returns the child's pid, or -errno. */
int fork_bwrap_main(int argc, char **argv, int stderr_fd);

struct spawn_result {
    int pid;
    int pidfd;
    int error; /* errno of what could not be done; 0 */
};

/* Starts `helper` with the specification on `spec_fd`: vfork semantics, empty environment, default signals, and
   nothing inherited but `streams` (as 0, 1, 2), `spec_fd` and `kept_fds`. */
void spawn_helper(const char *helper, int spec_fd, const int streams[3], const int *kept_fds, int kept_fd_count,
                  struct spawn_result *result);

/* The same from a fork of this process, where no helper can be executed. */
void fork_launch(void *block, size_t size, const int streams[3], struct spawn_result *result);

/* A pair of SOCK_SEQPACKET sockets that are closed on exec. Returns 0 or -errno. */
int status_socketpair(int pair[2]);

struct status_message {
    int kind; /* enum status_kind; 0: end of file */
    int step;
    int error;
    int wait_status;
    int fds[2];                   /* that came along, or -1 */
    unsigned long long user_time; /* microseconds, as the next */
    unsigned long long system_time;
    unsigned long long max_rss; /* bytes */
    unsigned long long voluntary_switches;
    unsigned long long involuntary_switches;
    char message[496];
};

/* Waits for a record at most `timeout` milliseconds (-1: for ever). Returns 1 for a record or end of file, 0 when
   the time is up, -errno otherwise; -EINTR lets the caller's signal handlers run. */
int status_receive(int socket, int timeout, struct status_message *message);

/* Asks the monitor to end the sandbox: nothing of it is left when it answers. */
void status_hang_up(int exit_socket);

/* For a program whose signals are the command's: blocks those that can be relayed, so that none is lost while the
   sandbox is built. */
void block_relayed_signals(void);

/* Hands them to the command's process group until the sandbox ends, as status_receive. Stopping this process from
   its terminal stops the command too. */
int relay_until_end(int exit_socket, int command_pidfd, struct status_message *message);

struct stage_failure {
    int is_setup; /* a restriction could not be had; otherwise execve(2) failed */
    int step;
    int error; /* errno */
    char message[496];
};

/* The last stage in this process: it becomes the command. Returns only on failure. */
void execute_stage(void *block, size_t size, struct stage_failure *failure);

/* 0: no Landlock. */
int landlock_abi(void);
