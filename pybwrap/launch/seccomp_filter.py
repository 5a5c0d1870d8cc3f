"""Compile the seccomp policy of `pybwrap.plan.seccomp` into the BPF program that the stage installs.

libseccomp does the work, on the host side, once per process and policy.
"""

from __future__ import annotations

import errno
import functools
import os
import struct
from typing import TYPE_CHECKING

from pybwrap.errors import UnsupportedHostError
from pybwrap.plan.seccomp import (
    DEFAULT_ACTION,
    FOREIGN_ARCHITECTURE_ACTION,
    NUMBERS,
    Action,
    Condition,
    Operator,
    SeccompMode,
    filter_rules,
)

if TYPE_CHECKING:
    from pybwrap._seccomp import CData, Lib

_INSTRUCTION = struct.Struct("=HBBI")
"""struct sock_filter: code, instructions to skip if true and if false, constant."""
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
"""BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K and BPF_RET | BPF_K of linux/bpf_common.h."""
_MAX_INSTRUCTIONS = 4096
"""BPF_MAXINSNS: the kernel takes no longer program."""
_UNKNOWN_SYSCALL = -1
"""__NR_SCMP_ERROR: seccomp_syscall_resolve_name(3)."""

_MEANINGS = {
    errno.EACCES: "the rule conflicts with the filter",
    errno.ECANCELED: "the system failed it",
    errno.EDOM: "impossible on this architecture",
    errno.EEXIST: "unknown to this version, or there already",
    errno.EFAULT: "internal error, or a system call it cannot translate",
    errno.EINVAL: "not in this version",
    errno.ENOMEM: "out of memory",
    errno.EOPNOTSUPP: "not on this kernel",
}
"""What libseccomp means by an errno, which is not what strerror() says: seccomp_attr_set(3), seccomp_rule_add(3)."""


def compile_filter(
    mode: SeccompMode, *, architecture: str | None = None, allow_nested_sandboxes: bool = False
) -> bytes:
    """Return the BPF program of *mode*: an array of struct sock_filter in this machine's byte order.

    *architecture* is a name as `uname -m` prints it, by default this machine's; another one is for inspection.
    *allow_nested_sandboxes* is explained at `pybwrap.plan.seccomp.filter_rules`. Compiled once per process. Raises
    UnsupportedHostError for an architecture other than x86_64 and aarch64, and where libseccomp is missing, too old
    or fails.
    """
    return _compile(mode, architecture or os.uname().machine, allow_nested_sandboxes)


@functools.cache
def _compile(mode: SeccompMode, architecture: str, allow_nested_sandboxes: bool) -> bytes:  # noqa: FBT001
    lib = _libseccomp()
    tokens = {"x86_64": lib.SCMP_ARCH_X86_64, "aarch64": lib.SCMP_ARCH_AARCH64}
    if architecture not in tokens:
        raise UnsupportedHostError(f"no seccomp filter for {architecture}: only x86_64 and aarch64 are supported")
    token = tokens[architecture]
    actions = {
        Action.ALLOW: lib.SCMP_ACT_ALLOW,
        Action.EPERM: lib.SCMP_ACT_ERRNO(errno.EPERM),
        Action.ENOSYS: lib.SCMP_ACT_ERRNO(errno.ENOSYS),
        Action.KILL_PROCESS: lib.SCMP_ACT_KILL_PROCESS,
    }

    context = lib.seccomp_init(actions[DEFAULT_ACTION])
    if not context:
        _check(-errno.ENOMEM, "seccomp_init")
    try:
        if token != lib.seccomp_arch_native():
            _check(lib.seccomp_arch_add(context, token), "seccomp_arch_add")
            _check(lib.seccomp_arch_remove(context, lib.SCMP_ARCH_NATIVE), "seccomp_arch_remove")
        for attribute, value in (
            (lib.SCMP_FLTATR_ACT_BADARCH, actions[FOREIGN_ARCHITECTURE_ACTION]),
            (lib.SCMP_FLTATR_CTL_OPTIMIZE, 2),  # a binary tree of numbers instead of one comparison after another
        ):
            _check(lib.seccomp_attr_set(context, attribute, value), "seccomp_attr_set")

        unknown = {}
        for rule in filter_rules(mode, allow_nested_sandboxes=allow_nested_sandboxes):
            for syscall in rule.syscalls:
                number = lib.seccomp_syscall_resolve_name_arch(token, syscall.encode())
                if number == _UNKNOWN_SYSCALL:
                    unknown[syscall] = actions[rule.action]
                elif number >= 0:  # otherwise a pseudo number: the architecture has no such call
                    # Rules take this machine's numbers; libseccomp translates them to the filter's architecture.
                    number = lib.seccomp_syscall_resolve_name_arch(lib.SCMP_ARCH_NATIVE, syscall.encode())
                    for tests in _tests(lib, rule.condition):
                        status = lib.seccomp_rule_add_array(context, actions[rule.action], number, len(tests), tests)
                        _check(status, f"seccomp_rule_add_array for {syscall}")
        return _refuse_by_number(unknown) + _export(lib, context)
    finally:
        lib.seccomp_release(context)


def _tests(lib: Lib, condition: Condition | None) -> list[list[tuple[int, int, int, int]]]:
    """Arrays of struct scmp_arg_cmp, one per rule that libseccomp needs: its rules are alternatives."""
    if condition is None:
        return [[]]
    operators = {
        Operator.NE: lib.SCMP_CMP_NE,
        Operator.GE: lib.SCMP_CMP_GE,
        Operator.MASKED_EQ: lib.SCMP_CMP_MASKED_EQ,
    }
    tests = []
    for operator, value, mask in condition.any_of:
        first, second = (mask, value) if operator is Operator.MASKED_EQ else (value, 0)
        tests.append([(condition.argument, operators[operator], first, second)])
    return tests


def _refuse_by_number(actions: dict[str, int]) -> bytes:
    """Instructions that go before libseccomp's, for system calls whose names it does not know.

    It could take a bare number for this machine but not translate one for another. No check of the architecture comes
    first: these numbers are the same everywhere.
    """
    if not actions:
        return b""
    instructions = [(_LOAD, 0, 0, 0)]
    for syscall, action in actions.items():
        if syscall not in NUMBERS:
            raise UnsupportedHostError(f"libseccomp {_version()} does not know {syscall}: 2.5 or newer is needed")
        instructions += [(_JUMP_IF_EQUAL, 0, 1, NUMBERS[syscall]), (_RETURN, 0, 0, action)]
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in instructions)


def _export(lib: Lib, context: CData) -> bytes:
    # Not a pipe: its capacity can be less than a program (pipe(7), pipe-user-pages-soft).
    fd = os.memfd_create("seccomp")
    try:
        _check(lib.seccomp_export_bpf(context, fd), "seccomp_export_bpf")
        return os.pread(fd, _MAX_INSTRUCTIONS * _INSTRUCTION.size, 0)
    finally:
        os.close(fd)


def _libseccomp() -> Lib:
    """Load libseccomp only now: a host without it can do everything that needs no filter."""
    try:
        from pybwrap._seccomp import lib
    except ModuleNotFoundError:
        raise  # a broken installation of pybwrap, not a matter of libseccomp
    except ImportError as error:
        raise UnsupportedHostError(
            f"libseccomp cannot be loaded ({error}); install it: apt-get install libseccomp2"
        ) from error
    return lib


def _version() -> str:
    version = _libseccomp().seccomp_version()
    return f"{version.major}.{version.minor}.{version.micro}"


def _check(status: int, call: str) -> None:
    """Raise UnsupportedHostError if a libseccomp call returned a negative errno."""
    if status < 0:
        meaning = _MEANINGS.get(-status, os.strerror(-status))
        raise UnsupportedHostError(
            f"libseccomp {_version()}: {call}: {errno.errorcode.get(-status, -status)} ({meaning})"
        )
