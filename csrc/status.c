#include "status.h"

#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

static uint64_t
microseconds(struct timeval time)
{
    return (uint64_t) time.tv_sec * 1000000 + (uint64_t) time.tv_usec;
}

struct status_usage
status_usage(const struct rusage *used)
{
    return (struct status_usage){
        .user_time = microseconds(used->ru_utime),
        .system_time = microseconds(used->ru_stime),
        .max_rss = (uint64_t) used->ru_maxrss * 1024,
        .voluntary_switches = (uint64_t) used->ru_nvcsw,
        .involuntary_switches = (uint64_t) used->ru_nivcsw,
    };
}

void
status_send(int socket, const struct status_record *record)
{
    /* write(2), not sendmsg(2): after the filter is loaded only the former is sure to be allowed. */
    ssize_t written = write(socket, record, sizeof *record);
    (void) written;
}

void
status_send_fds(int socket, const struct status_record *record, const int *fds, size_t count)
{
    struct iovec data = { .iov_base = (void *) record, .iov_len = sizeof *record };
    union {
        char buffer[CMSG_SPACE(STATUS_MAX_FDS * sizeof(int))];
        struct cmsghdr align;
    } control = { 0 };
    struct msghdr message = {
        .msg_iov = &data,
        .msg_iovlen = 1,
        .msg_control = control.buffer,
        .msg_controllen = CMSG_SPACE(count * sizeof *fds),
    };
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(count * sizeof *fds);
    memcpy(CMSG_DATA(header), fds, count * sizeof *fds);
    (void) sendmsg(socket, &message, MSG_NOSIGNAL);
}
