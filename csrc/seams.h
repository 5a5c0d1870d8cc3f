/* Everything that this project changes about bubblewrap, in one place.
 *
 * Upstream's files are compiled as they are, with this header included before their first line.
 * Three mechanisms are enough:
 *
 *   rename   a call of the C library becomes a call of ours (`execvp` -> `seam_execvp`);
 *   weak     a function that upstream defines becomes a weak symbol, so that the definition in csrc/ is the one
 *            that is linked, also for calls from upstream's own file. A rename could not do that: it would rename
 *            the definition too;
 *   wrap     as weak, but ours calls upstream's: there, in the file that defines it, it gets another name.
 *
 * Every seam does what upstream does unless a launch is under way (launch_is_active), so that `run_bwrap_main` and
 * the raw `bwrap` command stay plain bubblewrap. There are two exceptions: `exit` never runs the host program's exit
 * handlers, and `bind_mount_fd` is as fast for everybody.
 */
#ifndef PYBWRAP_SEAMS_H
#define PYBWRAP_SEAMS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <poll.h>
#include <stdbool.h>
#include <sys/types.h>

int bwrap_main(int argc, char **argv);

/* Never flushes or runs what belongs to a host program that forked to get here. */
void seam_exit(int status) __attribute__((noreturn));
void seam_assert_fail(const char *assertion, const char *file, unsigned int line, const char *function)
    __attribute__((noreturn));

/* Upstream's only exec: the stage takes over from here. */
int seam_execvp(const char *file, char *const argv[]);

/* Namespaces and process tree: the monitor, the sandbox's init, the command. */
pid_t seam_fork(void);
pid_t seam_wait(int *status);
pid_t seam_waitpid(pid_t pid, int *status, int options);
int seam_poll(struct pollfd *fds, nfds_t count, int timeout);
int seam_prctl(int option, ...);

/* Which mount failed, told by the call itself and not by the text of a message. */
int seam_mount(const char *source, const char *target, const char *type, unsigned long flags, const void *data);

/* Upstream's definitions that are replaced as a whole. Upstream declares them itself. */
#ifndef PYBWRAP_UPSTREAM
void die(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
void die_with_error(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
void die_with_mount_error(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
void die_oom(void) __attribute__((noreturn));
/* `result` is upstream's bind_mount_result; upstream prints a phrase for it, here the failing path and errno do. */
void die_with_bind_result(int result, int error, const char *failing_path, const char *format, ...)
    __attribute__((noreturn, format(printf, 4, 5)));
int raw_clone(unsigned long flags, void *child_stack);
int fdwalk(int (*callback)(void *data, int fd), void *data);
int write_file_at(int directory, const char *path, const char *content);
void loopback_setup(void);
int bind_mount_fd(int source, int destination, int options, char **failing_path);
#else

/* The system's own declarations come first: below, their names mean ours. */
#include <assert.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define main bwrap_main
#define exit seam_exit
#define __assert_fail seam_assert_fail
#define execvp seam_execvp
#define fork seam_fork
#define wait seam_wait
#define waitpid seam_waitpid
#define poll seam_poll
#define prctl seam_prctl
#define mount seam_mount

/* The build defines PYBWRAP_FILE_<name> for the file that is being compiled. */
#ifdef PYBWRAP_FILE_bind_mount
#define bind_mount_fd upstream_bind_mount_fd
#endif

#pragma weak die
#pragma weak die_with_error
#pragma weak die_with_mount_error
#pragma weak die_oom
#pragma weak die_with_bind_result
#pragma weak raw_clone
#pragma weak fdwalk
#pragma weak write_file_at
#pragma weak loopback_setup

#endif /* PYBWRAP_UPSTREAM */

#endif
