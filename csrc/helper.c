/* The helper executable: reads one launch specification and runs it.
 *
 *     pybwrap-sandbox FD      the specification is on FD; everything else is in it
 *     bwrap ARGUMENT...       plain bubblewrap, by this or any other name */
#include "launch.h"
#include "seams.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int
refuse(const char *why)
{
    fprintf(stderr, "pybwrap helper: %s; it is started by the pybwrap library, not by hand\n", why);
    return 125;
}

int
main(int argc, char **argv)
{
    /* Whatever else it is called: bubblewrap is also started again as /proc/self/exe. */
    if (argc < 1 || strcmp(argv[0], HELPER_NAME) != 0)
        return bwrap_main(argc, argv);

    char *end = NULL;
    long fd = argc == 2 ? strtol(argv[1], &end, 10) : -1;
    struct stat found;
    if (end == NULL || *end != '\0' || fd < 3 || fstat((int) fd, &found) != 0)
        return refuse("expected the number of an open file descriptor");

    size_t size = (size_t) found.st_size;
    void *block = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, (int) fd, 0);
    if (block == MAP_FAILED)
        return refuse(strerror(errno));
    close((int) fd);

    struct spec spec;
    const char *wrong = spec_load(&spec, block, size);
    if (wrong != NULL)
        return refuse(wrong);
    launch_run(&spec);
}
