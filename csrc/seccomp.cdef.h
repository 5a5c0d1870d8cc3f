/* What pybwrap._seccomp takes from libseccomp (>= 2.5), for CFFI's API mode; names and meanings: seccomp_init(3) and
 * the pages it leads to. `...` leaves values to <seccomp.h>, so that nothing is written down twice. */

#define SCMP_ARCH_NATIVE ...
#define SCMP_ARCH_X86_64 ...
#define SCMP_ARCH_AARCH64 ...

#define SCMP_ACT_ALLOW ...
#define SCMP_ACT_KILL_PROCESS ...
/* A macro in <seccomp.h>; API mode compiles a call, so it can be declared as the function it looks like. */
uint32_t SCMP_ACT_ERRNO(uint32_t errnum);

enum scmp_filter_attr { SCMP_FLTATR_ACT_BADARCH, SCMP_FLTATR_CTL_OPTIMIZE, ... };

enum scmp_compare { SCMP_CMP_NE, SCMP_CMP_GE, SCMP_CMP_MASKED_EQ, ... };

struct scmp_arg_cmp {
    unsigned int arg;
    enum scmp_compare op;
    uint64_t datum_a;
    uint64_t datum_b;
};

struct scmp_version {
    unsigned int major;
    unsigned int minor;
    unsigned int micro;
};

typedef void *scmp_filter_ctx;

const struct scmp_version *seccomp_version(void);
scmp_filter_ctx seccomp_init(uint32_t def_action);
void seccomp_release(scmp_filter_ctx ctx);
int seccomp_attr_set(scmp_filter_ctx ctx, enum scmp_filter_attr attr, uint32_t value);
uint32_t seccomp_arch_native(void);
int seccomp_arch_add(scmp_filter_ctx ctx, uint32_t arch_token);
int seccomp_arch_remove(scmp_filter_ctx ctx, uint32_t arch_token);
int seccomp_syscall_resolve_name_arch(uint32_t arch_token, const char *name);
int seccomp_rule_add_array(scmp_filter_ctx ctx, uint32_t action, int syscall, unsigned int arg_cnt,
                           const struct scmp_arg_cmp *arg_array);
int seccomp_export_bpf(scmp_filter_ctx ctx, int fd);
