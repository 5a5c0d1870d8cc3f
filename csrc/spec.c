#include "spec.h"

#include <stdlib.h>
#include <string.h>

static void *
section_start(const struct spec_header *header, enum spec_section section)
{
    return (char *) header + header->sections[section].offset;
}

/* The section lies within the block, behind the header, aligned for the structures it may hold. */
static int
section_is_within(const struct spec_header *header, enum spec_section section)
{
    const struct spec_section_header *range = &header->sections[section];

    return range->offset >= sizeof *header && range->offset <= header->size && range->offset % 8 == 0 &&
           range->size <= header->size - range->offset;
}

static int
section_is_array(const struct spec_header *header, enum spec_section section, size_t element)
{
    return header->sections[section].size == (uint64_t) header->sections[section].count * element;
}

/* A NULL-terminated array of the section's strings, or NULL when it does not hold exactly `count` of them. */
static char **
section_strings(const struct spec_header *header, enum spec_section section)
{
    const struct spec_section_header *range = &header->sections[section];
    char *next = section_start(header, section);
    char *end = next + range->size;

    if (range->count > range->size)
        return NULL;

    char **strings = calloc((size_t) range->count + 1, sizeof *strings);
    if (strings == NULL)
        return NULL;

    for (uint32_t i = 0; i < range->count; i++) {
        char *terminator = memchr(next, 0, (size_t) (end - next));
        if (terminator == NULL) {
            free(strings);
            return NULL;
        }
        strings[i] = next;
        next = terminator + 1;
    }
    if (next != end) {
        free(strings);
        return NULL;
    }
    return strings;
}

const char *
spec_string(const struct spec *spec, uint32_t offset)
{
    return (const char *) section_start(spec->header, SPEC_STRINGS) + offset;
}

static int
string_is_within(const struct spec *spec, uint32_t offset)
{
    /* The section's last byte is NUL (checked before), so every offset below its size starts a string. */
    return offset < spec->header->sections[SPEC_STRINGS].size;
}

const char *
spec_load(struct spec *spec, void *block, size_t size)
{
    const struct spec_header *header = block;

    memset(spec, 0, sizeof *spec);
    if (size < sizeof *header || header->magic != SPEC_MAGIC || header->size != size)
        return "not a launch specification of this version";
    for (int section = 0; section < SPEC_SECTION_COUNT; section++)
        if (!section_is_within(header, section))
            return "a section lies outside the launch specification";
    if (!section_is_array(header, SPEC_SECCOMP_FILTER, sizeof(struct sock_filter)) ||
        !section_is_array(header, SPEC_LANDLOCK_RULES, sizeof(struct spec_landlock_rule)) ||
        !section_is_array(header, SPEC_RESOURCE_LIMITS, sizeof(struct spec_resource_limit)) ||
        !section_is_array(header, SPEC_INHERITED_FDS, sizeof(int32_t)) ||
        !section_is_array(header, SPEC_PLACEHOLDERS, sizeof(struct spec_placeholder)))
        return "a section of the launch specification has the wrong size";

    const struct spec_section_header *strings = &header->sections[SPEC_STRINGS];
    if (strings->size > 0 && ((const char *) section_start(header, SPEC_STRINGS))[strings->size - 1] != 0)
        return "the last string of the launch specification is not terminated";

    spec->header = header;
    spec->bubblewrap_arguments = section_strings(header, SPEC_BUBBLEWRAP_ARGUMENTS);
    spec->bubblewrap_argument_count = (int) header->sections[SPEC_BUBBLEWRAP_ARGUMENTS].count;
    spec->command = section_strings(header, SPEC_COMMAND);
    spec->environment = section_strings(header, SPEC_ENVIRONMENT);
    spec->pinned_symlinks = section_strings(header, SPEC_PINNED_SYMLINKS);
    if (spec->bubblewrap_arguments == NULL || spec->command == NULL || spec->environment == NULL ||
        spec->pinned_symlinks == NULL)
        return "the strings of the launch specification do not add up, or memory is exhausted";
    if (header->sections[SPEC_COMMAND].count < 2)
        return "the launch specification has no command";
    if ((header->flags & SPEC_BUBBLEWRAP) && header->sections[SPEC_BUBBLEWRAP_ARGUMENTS].count < 2)
        return "the launch specification has no bubblewrap arguments";
    if (header->sections[SPEC_WORKING_DIRECTORY].size > 0) {
        spec->working_directory = section_start(header, SPEC_WORKING_DIRECTORY);
        if (memchr(spec->working_directory, 0, header->sections[SPEC_WORKING_DIRECTORY].size) == NULL)
            return "the working directory of the launch specification is not terminated";
    }

    spec->seccomp_filter = section_start(header, SPEC_SECCOMP_FILTER);
    spec->seccomp_length = header->sections[SPEC_SECCOMP_FILTER].count;
    if (spec->seccomp_length > BPF_MAXINSNS)
        return "the seccomp filter is longer than the kernel accepts";
    spec->resource_limits = section_start(header, SPEC_RESOURCE_LIMITS);
    spec->resource_limit_count = header->sections[SPEC_RESOURCE_LIMITS].count;
    spec->inherited_fds = section_start(header, SPEC_INHERITED_FDS);
    spec->inherited_fd_count = header->sections[SPEC_INHERITED_FDS].count;

    spec->landlock_rules = section_start(header, SPEC_LANDLOCK_RULES);
    spec->landlock_rule_count = header->sections[SPEC_LANDLOCK_RULES].count;
    for (uint32_t i = 0; i < spec->landlock_rule_count; i++)
        if (!string_is_within(spec, spec->landlock_rules[i].path))
            return "a Landlock rule of the launch specification has no path";

    spec->placeholders = section_start(header, SPEC_PLACEHOLDERS);
    spec->placeholder_count = header->sections[SPEC_PLACEHOLDERS].count;
    for (uint32_t i = 0; i < spec->placeholder_count; i++)
        if (!string_is_within(spec, spec->placeholders[i].path) ||
            !string_is_within(spec, spec->placeholders[i].registry_path))
            return "a placeholder of the launch specification has no path";
    return NULL;
}

void
spec_free(struct spec *spec)
{
    free(spec->bubblewrap_arguments);
    free(spec->command);
    free(spec->environment);
    free(spec->pinned_symlinks);
    memset(spec, 0, sizeof *spec);
}
