#include "symlink_pins.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/stat.h>
#include <unistd.h>

static int
pin_symlink(int root, const char *path)
{
    struct open_how how = { .flags = O_PATH | O_NOFOLLOW | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT };
    char self[64];
    struct stat found;

    int fd = (int) syscall(__NR_openat2, root, path, &how, sizeof how);
    if (fd < 0)
        return -1;

    int result = -1;
    if (fstat(fd, &found) != 0)
        goto out;
    if (!S_ISLNK(found.st_mode)) {
        errno = ESTALE; /* replaced since the plan was made */
        goto out;
    }
    snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    result = mount(self, self, NULL, MS_BIND, NULL);

out:;
    int saved_errno = errno;
    close(fd);
    errno = saved_errno;
    return result;
}

int
pin_symlinks(const struct spec *spec)
{
    if (spec->pinned_symlinks[0] == NULL)
        return 0;

    int root = open("/newroot", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root < 0)
        return -1;

    int result = 0;
    for (char **path = spec->pinned_symlinks; result == 0 && *path != NULL; path++)
        result = pin_symlink(root, *path);

    int saved_errno = errno;
    close(root);
    errno = saved_errno;
    return result;
}
