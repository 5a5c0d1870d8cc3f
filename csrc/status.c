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
status_send(int socket, const struct status_record *record, int fd)
{
    if (socket < 0)
        return;

    /* write(2), not sendmsg(2): after the filter is loaded only the former is sure to be allowed. */
    if (fd < 0) {
        ssize_t written = write(socket, record, sizeof *record);
        (void) written;
        return;
    }

    struct iovec data = { .iov_base = (void *) record, .iov_len = sizeof *record };
    union {
        char buffer[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = { 0 };
    struct msghdr message = {
        .msg_iov = &data,
        .msg_iovlen = 1,
        .msg_control = control.buffer,
        .msg_controllen = sizeof control.buffer,
    };
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    (void) sendmsg(socket, &message, MSG_NOSIGNAL);
}
