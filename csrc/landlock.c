#include "landlock.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Written out here because the headers of a build machine may be older than the kernel that the wheel meets:
 * linux/landlock.h of Debian 12 ends at ABI 2, `scoped` came with ABI 6 (Linux 6.12). */
struct ruleset_attributes {
    uint64_t handled_access_fs;
    uint64_t handled_access_net;
    uint64_t scoped;
};

struct path_beneath_attributes {
    uint64_t allowed_access;
    int32_t parent_fd;
} __attribute__((packed));

enum { RULE_PATH_BENEATH = 1, CREATE_RULESET_VERSION = 1 };

int
landlock_abi(void)
{
    long version = syscall(__NR_landlock_create_ruleset, NULL, (size_t) 0, CREATE_RULESET_VERSION);
    return version < 0 ? 0 : (int) version;
}

int
landlock_restrict(const struct spec *spec, const char **failed)
{
    struct ruleset_attributes attributes = {
        .handled_access_fs = spec->header->landlock_filesystem,
        .scoped = spec->header->landlock_scoped,
    };
    /* A kernel refuses a structure with unknown bits set behind the end that it knows, not a shorter one. */
    size_t size = attributes.scoped != 0 ? sizeof attributes : sizeof attributes.handled_access_fs;
    int result = -1;
    int rule_fd = -1;

    *failed = "landlock_create_ruleset";
    int ruleset = (int) syscall(__NR_landlock_create_ruleset, &attributes, size, 0);
    if (ruleset < 0)
        return -1;

    for (uint32_t i = 0; i < spec->landlock_rule_count; i++) {
        *failed = spec_string(spec, spec->landlock_rules[i].path);
        rule_fd = open(*failed, O_PATH | O_CLOEXEC);
        /* What the view does not show needs no rule: without one it is refused. */
        if (rule_fd < 0 && errno == ENOENT)
            continue;
        if (rule_fd < 0)
            goto out;
        struct path_beneath_attributes rule = {
            .allowed_access = spec->landlock_rules[i].access,
            .parent_fd = rule_fd,
        };
        if (syscall(__NR_landlock_add_rule, ruleset, RULE_PATH_BENEATH, &rule, 0) != 0)
            goto out;
        close(rule_fd);
        rule_fd = -1;
    }

    *failed = "landlock_restrict_self";
    if (syscall(__NR_landlock_restrict_self, ruleset, 0) == 0)
        result = 0;

out:;
    int saved_errno = errno;
    if (rule_fd >= 0)
        close(rule_fd);
    close(ruleset);
    errno = saved_errno;
    return result;
}
