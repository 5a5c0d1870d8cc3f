/* The launch specification: everything the C side needs to know, packed by pybwrap.plan.spec and read here.
 *
 * One flat block: a header, then sections. Strings are NUL-terminated; offsets count from the start of the block.
 * Everything is checked while it is loaded, before the first process is created. */
#ifndef PYBWRAP_SPEC_H
#define PYBWRAP_SPEC_H

#include <linux/filter.h>
#include <stddef.h>
#include <stdint.h>

#define SPEC_MAGIC 0x31574250u /* "PBW1" */

enum spec_flag {
    SPEC_BUBBLEWRAP = 1 << 0,          /* build the sandbox with bubblewrap; otherwise the stage alone */
    SPEC_REFUSE_CAPABILITIES = 1 << 1, /* fail when any capability is left */
    SPEC_NO_NEW_PRIVS = 1 << 2,
    SPEC_PROCESS_GROUP = 1 << 3,     /* the command leads a process group of its own */
    SPEC_TERMINAL = 1 << 4,          /* its standard input is a terminal, which becomes its controlling one */
    SPEC_DROP_CAPABILITIES = 1 << 5, /* give up every capability, as bubblewrap does when it builds the sandbox */
};

enum spec_section {
    SPEC_BUBBLEWRAP_ARGUMENTS, /* strings, argv[0] included */
    SPEC_COMMAND,              /* strings: the file to execute, then argv */
    SPEC_ENVIRONMENT,          /* strings: NAME=value */
    SPEC_WORKING_DIRECTORY,    /* one string, or none: only without bubblewrap, which has --chdir */
    SPEC_SECCOMP_FILTER,       /* struct sock_filter */
    SPEC_LANDLOCK_RULES,       /* struct spec_landlock_rule */
    SPEC_RESOURCE_LIMITS,      /* struct spec_resource_limit */
    SPEC_INHERITED_FDS,        /* int32_t: what the command keeps besides 0, 1 and 2 */
    SPEC_PINNED_SYMLINKS,      /* strings: symlinks that the command must not replace */
    SPEC_PLACEHOLDERS,         /* struct spec_placeholder */
    SPEC_STRINGS,              /* what the offsets in the structures above point to */
    SPEC_SECTION_COUNT,
};

struct spec_section_header {
    uint32_t offset;
    uint32_t size;  /* bytes */
    uint32_t count; /* strings or structures */
};

struct spec_header {
    uint32_t magic;
    uint32_t size; /* of the whole block, bytes */
    uint32_t flags;
    int32_t setup_socket;
    int32_t exit_socket;
    int32_t owner_pidfd;          /* -1: nobody to outlive */
    uint64_t wall_time;           /* milliseconds until the sandbox is ended; 0: no limit */
    uint64_t landlock_filesystem; /* handled_access_fs of the ruleset; 0 and 0 below: no Landlock */
    uint64_t landlock_scoped;
    struct spec_section_header sections[SPEC_SECTION_COUNT];
};

struct spec_landlock_rule {
    uint64_t access;
    uint32_t path; /* offset */
    uint32_t reserved;
};

struct spec_resource_limit {
    uint32_t resource; /* RLIMIT_* */
    uint32_t reserved;
    uint64_t soft;
    uint64_t hard;
};

/* How a placeholder is recognised, here as in pybwrap.plan.placeholder: where a symlink leads, and the sticky bit of a
 * directory that only its owner can write to. */
#define PLACEHOLDER_TARGET "/dev/null/pybwrap-placeholder"
enum { PLACEHOLDER_MODE_MASK = 07022, PLACEHOLDER_MODE_MARK = 01000 };

enum placeholder_kind { PLACEHOLDER_DIRECTORY = 0, PLACEHOLDER_SYMLINK = 1 };

/* An object that stands at a missing protected path for as long as sandboxes need it there. */
struct spec_placeholder {
    int32_t lock_fd; /* shared flock(2) of this launch on the registry's file */
    uint32_t kind;
    uint32_t path;          /* offset */
    uint32_t registry_path; /* offset */
};

struct spec {
    const struct spec_header *header;
    char **bubblewrap_arguments;
    int bubblewrap_argument_count;
    char **command; /* [0] is the file, [1...] is argv */
    char **environment;
    const char *working_directory;
    struct sock_filter *seccomp_filter;
    uint32_t seccomp_length;
    const struct spec_landlock_rule *landlock_rules;
    uint32_t landlock_rule_count;
    const struct spec_resource_limit *resource_limits;
    uint32_t resource_limit_count;
    const int32_t *inherited_fds;
    uint32_t inherited_fd_count;
    char **pinned_symlinks;
    const struct spec_placeholder *placeholders;
    uint32_t placeholder_count;
};

/* Checks the block and points `spec` into it; the block must outlive the spec. Returns NULL, or what is wrong. */
const char *spec_load(struct spec *spec, void *block, size_t size);

void spec_free(struct spec *spec);

const char *spec_string(const struct spec *spec, uint32_t offset);

#endif
