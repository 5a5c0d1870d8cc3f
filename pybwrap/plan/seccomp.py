"""Which system calls a sandboxed command is refused, and why: the seccomp policy as plain data.

`RULES` is the whole policy. A system call without a rule is allowed: a list of everything that compilers, Node, Java
and Go may ever need could not be finished. Calls that need a capability are left to the kernel, which refuses them to
a command that has none; only the mount family is listed all the same, as a second lock on the view of the filesystem.

Two facts shape the conditions. The kernel reads only the lower 32 bits of an `int` argument, so a rule that recognises
a value must mask the upper half, or a bit set there gets past it (CVE-2019-10063); a rule that refuses all but a few
values need not, because stray bits then only get a call refused. And a filter sees registers, never memory: it cannot
judge what a `struct msghdr` or a `struct clone_args` says.
"""

# No `from __future__ import annotations`: it makes NamedTuple compile every annotation again, a millisecond in all.
from enum import Enum
from typing import NamedTuple


class SeccompMode(Enum):
    """What the filter must enforce beside the hardening that every mode has. No filter at all is None, not a mode."""

    RESTRICTED = "restricted"
    """No network: only connected pairs of local stream sockets work."""
    PROXY_ONLY = "proxy-only"
    """Internet sockets only, in a network namespace whose one way out is the proxy."""
    VSOCK_ONLY = "vsock-only"
    """The network is open, but not the sockets that reach a hypervisor or kernel services beside it."""


class Action(Enum):
    """What the kernel does with a system call: seccomp(2), SECCOMP_RET_*."""

    ALLOW = "allow"
    EPERM = "EPERM"
    ENOSYS = "ENOSYS"
    KILL_PROCESS = "kill process"


DEFAULT_ACTION = Action.ALLOW

FOREIGN_ARCHITECTURE_ACTION = Action.KILL_PROCESS
"""For i386 and x32 calls on x86_64 and 32-bit Arm calls on aarch64: their other numbers would pass by every rule."""


class Operator(Enum):
    """How an argument is compared. NE and GE see all 64 bits."""

    NE = "!="
    GE = ">="
    MASKED_EQ = "masked =="


class Comparison(NamedTuple):
    """One comparison of a system call argument with `value`; `mask` matters to MASKED_EQ alone."""

    operator: Operator
    value: int
    mask: int = 0


class Condition(NamedTuple):
    """When a rule applies: at least one comparison holds for the argument at index `argument` (from 0)."""

    text: str
    argument: int
    any_of: tuple[Comparison, ...]


class Rule(NamedTuple):
    """One row of the policy: what is done with these system calls, when, in which modes, and why."""

    syscalls: tuple[str, ...]
    reason: str
    modes: tuple[SeccompMode, ...]
    condition: Condition | None = None
    action: Action = Action.EPERM
    needed_to_nest: bool = False
    """A bubblewrap inside the sandbox needs these calls."""


NUMBERS = {"mount_setattr": 442, "quotactl_fd": 443, "open_tree_attr": 467}
"""Numbers of system calls that a supported libseccomp may not know by name (2.5.0 ends at Linux 5.8, 2.5.4 at 5.17).

Since Linux 5.1 a new system call has one number on every architecture.
"""


def _equals(argument: int, name: str, **values: int) -> Condition:
    comparisons = tuple(Comparison(Operator.MASKED_EQ, value, 0xFFFF_FFFF) for value in values.values())
    return Condition(f"{name} is {' or '.join(values)}", argument, comparisons)


def _any_flag(argument: int, name: str, **flags: int) -> Condition:
    comparisons = tuple(Comparison(Operator.MASKED_EQ, flag, flag) for flag in flags.values())
    return Condition(f"{name} has {' or '.join(flags)}", argument, comparisons)


def _other_than(argument: int, name: str, **value: int) -> Condition:
    ((label, number),) = value.items()
    return Condition(f"{name} is not {label}", argument, (Comparison(Operator.NE, number),))


def _outside(argument: int, name: str, *, low_bits: int | None = None, **allowed: int) -> Condition:
    """Condition for every value but the allowed ones; *low_bits* limits the comparison to that many bits.

    The kernel has no masked "not equal" and libseccomp no two comparisons of one argument in a rule, so the complement
    is spelt out as a route table would be: wherever the binary tree of the allowed values has only one branch, one
    masked comparison refuses the other branch.
    """
    bits = low_bits or max(allowed.values()).bit_length()
    comparisons = [] if low_bits else [Comparison(Operator.GE, 1 << bits)]
    for shift in reversed(range(bits)):
        branches = {value >> shift for value in allowed.values()}
        refused = sorted({branch ^ 1 for branch in branches} - branches)
        mask = (1 << bits) - (1 << shift)
        comparisons += [Comparison(Operator.MASKED_EQ, branch << shift, mask) for branch in refused]
    return Condition(f"{name} is not {' or '.join(allowed)}", argument, tuple(comparisons))


# ABI constants, equal on x86_64 and aarch64; not from `socket` and `termios`, whose import costs time.
_NAMESPACES = {
    "CLONE_NEWNS": 0x0002_0000,
    "CLONE_NEWCGROUP": 0x0200_0000,
    "CLONE_NEWUTS": 0x0400_0000,
    "CLONE_NEWIPC": 0x0800_0000,
    "CLONE_NEWUSER": 0x1000_0000,
    "CLONE_NEWPID": 0x2000_0000,
    "CLONE_NEWNET": 0x4000_0000,
}
_CONNECTED_TYPES = {"SOCK_STREAM": 1, "SOCK_SEQPACKET": 5}
_SOCK_TYPE_BITS = 4
"""SOCK_TYPE_MASK is 0xf (include/linux/net.h); SOCK_NONBLOCK and SOCK_CLOEXEC lie above it."""

_EVERY_MODE = tuple(SeccompMode)
_RESTRICTED = (SeccompMode.RESTRICTED,)
_PROXY_ONLY = (SeccompMode.PROXY_ONLY,)
_VSOCK_ONLY = (SeccompMode.VSOCK_ONLY,)

RULES = (
    # Sockets.
    Rule(
        ("connect", "bind", "listen", "accept", "accept4"),
        "would reach a socket outside, or offer one",
        _RESTRICTED,
    ),
    Rule(
        ("sendmmsg", "recvmmsg"),
        "batches serve datagram traffic, which this mode does not have",
        _RESTRICTED,
    ),
    Rule(
        ("sendto",),
        "names a destination; send() on a socketpair, which event loops wake up with, passes NULL",
        _RESTRICTED,
        _other_than(4, "address", NULL=0),
    ),
    Rule(
        ("socket",),
        "every other family leads to a network, to a device or into rarely used kernel code",
        _RESTRICTED,
        _other_than(0, "domain", AF_UNIX=1),
    ),
    Rule(
        ("socket",),
        "sendmsg() on a datagram socket can name a socket of the host, in memory that a filter cannot read; the kernel "
        "makes SOCK_RAW a datagram socket too; a stream refuses an address and seqpacket ignores it",
        _RESTRICTED,
        _outside(1, "type", low_bits=_SOCK_TYPE_BITS, **_CONNECTED_TYPES),
    ),
    Rule(
        ("socketpair",),
        "only local sockets come in pairs",
        (*_RESTRICTED, *_PROXY_ONLY),
        _other_than(0, "domain", AF_UNIX=1),
    ),
    Rule(
        ("socketpair",),
        "one of a datagram pair can send elsewhere, as any datagram socket",
        (*_RESTRICTED, *_PROXY_ONLY),
        _outside(1, "type", low_bits=_SOCK_TYPE_BITS, **_CONNECTED_TYPES),
    ),
    Rule(
        ("setsockopt",),
        "other levels configure networks and filters",
        _RESTRICTED,
        _other_than(1, "level", SOL_SOCKET=1),
    ),
    Rule(
        ("setsockopt",),
        "other options attach BPF programs or concern networks; a socketpair has no use for them",
        _RESTRICTED,
        _outside(
            2,
            "option",
            SO_SNDBUF=7,
            SO_RCVBUF=8,
            SO_PASSCRED=16,
            SO_RCVTIMEO_OLD=20,
            SO_SNDTIMEO_OLD=21,
            SO_RCVTIMEO_NEW=66,
            SO_SNDTIMEO_NEW=67,
        ),
    ),
    Rule(
        ("socket",),
        "only internet traffic can reach the proxy; a local socket could reach a service of the host",
        _PROXY_ONLY,
        _outside(0, "domain", AF_INET=2, AF_INET6=10),
    ),
    Rule(
        ("socket", "socketpair"),
        "AF_VSOCK reaches the hypervisor and other machines whatever the network namespace; AF_ALG is rarely used "
        "kernel code with a record of root exploits (CVE-2026-31431)",
        _VSOCK_ONLY,
        _equals(0, "domain", AF_ALG=38, AF_VSOCK=40),
    ),
    # Other processes.
    Rule(
        ("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp"),
        "reads, changes or takes descriptors from other processes of the same user",
        _EVERY_MODE,
    ),
    Rule(
        ("ioctl",),
        "types commands into the terminal, for the shell outside to run (CVE-2017-5226, CVE-2023-28100)",
        _EVERY_MODE,
        _equals(1, "request", TIOCSTI=0x5412, TIOCLINUX=0x541C),
    ),
    # The view of the filesystem.
    Rule(
        (
            *("mount", "umount2", "pivot_root", "move_mount", "mount_setattr", "open_tree", "open_tree_attr"),
            *("fsopen", "fsconfig", "fsmount", "fspick"),
        ),
        "would change the mounts that the policy is made of",
        _EVERY_MODE,
        needed_to_nest=True,
    ),
    Rule(
        ("open_by_handle_at",),
        "opens files without walking the path that mounts hide; capabilities in a user namespace can be enough for it",
        _EVERY_MODE,
    ),
    # Namespaces.
    Rule(
        ("setns",),
        "would enter namespaces that are not the sandbox's",
        _EVERY_MODE,
        needed_to_nest=True,
    ),
    Rule(
        ("unshare",),
        "a new user namespace gives every capability in it, and with them reach into kernel code meant for root",
        _EVERY_MODE,
        _any_flag(0, "flags", **_NAMESPACES, CLONE_NEWTIME=0x80),
        needed_to_nest=True,
    ),
    Rule(
        ("clone",),
        "as unshare(); CLONE_NEWTIME is no flag of clone(), whose low byte is the exit signal",
        _EVERY_MODE,
        _any_flag(0, "flags", **_NAMESPACES),
        needed_to_nest=True,
    ),
    Rule(
        ("clone3",),
        "its flags are in memory that a filter cannot read; on ENOSYS every libc falls back to clone()",
        _EVERY_MODE,
        action=Action.ENOSYS,
        needed_to_nest=True,
    ),
    # Kernel code that ordinary programs do not use.
    Rule(
        ("io_uring_setup", "io_uring_enter", "io_uring_register"),
        "does file and socket operations that no filter sees, and is a frequent source of kernel exploits",
        _EVERY_MODE,
    ),
    Rule(
        ("bpf", "perf_event_open", "userfaultfd"),
        "frequent means of kernel exploits, where sysctl settings leave them to ordinary users",
        _EVERY_MODE,
    ),
    Rule(
        ("keyctl", "add_key", "request_key"),
        "the command inherits the caller's session keyring, whose keys no mount can hide",
        _EVERY_MODE,
    ),
    Rule(
        ("ioctl",),
        "loads line discipline modules into the kernel (CVE-2017-2636, CVE-2023-6546)",
        _EVERY_MODE,
        _equals(1, "request", TIOCSETD=0x5423),
    ),
    Rule(
        ("modify_ldt",),
        "16-bit segments: kernel code that its own Kconfig entry calls an attack surface; x86_64 only",
        _EVERY_MODE,
    ),
    Rule(
        ("syslog",),
        "reads the host's kernel log, addresses and all, where kernel.dmesg_restrict is 0",
        _EVERY_MODE,
    ),
    Rule(
        ("quotactl", "quotactl_fd"),
        "acts on the host's filesystems as a whole",
        _EVERY_MODE,
    ),
)
"""The policy. Its order has no meaning: the conditions of one system call are alternatives."""


def filter_rules(mode: SeccompMode, *, allow_nested_sandboxes: bool = False) -> tuple[Rule, ...]:
    """Return the rules of *mode*.

    *allow_nested_sandboxes* (default False) leaves out those that a bubblewrap inside would break: namespaces and
    mounts. The command can then have every capability in a user namespace of its own, and the kernel code that comes
    with them.
    """
    return tuple(rule for rule in RULES if mode in rule.modes and not (allow_nested_sandboxes and rule.needed_to_nest))
