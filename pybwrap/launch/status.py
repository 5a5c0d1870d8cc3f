"""What a launch reports, decoded (csrc/status.h)."""

from __future__ import annotations

import errno
import os
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from pybwrap._native import ffi, lib
from pybwrap.errors import SetupError

if TYPE_CHECKING:
    from pybwrap._native import CData

__all__ = [
    "SetupStep",
    "StatusKind",
    "StatusMessage",
    "StatusUsage",
    "hang_up",
    "receive",
    "receive_relaying_signals",
    "setup_error",
    "socketpair",
]


class StatusKind(IntEnum):
    """The kinds of records; END_OF_FILE is none."""

    END_OF_FILE = 0
    SETUP_FAILED = 1
    COMMAND_READY = 2
    EXEC_FAILED = 3
    COMMAND_ENDED = 4
    TIMED_OUT = 5
    KILLED = 6


class SetupStep(IntEnum):
    """The steps of a setup, in the order in which they are taken."""

    ARGUMENTS = 1
    NAMESPACES = 2
    NETWORK = 3
    IDENTITY = 4
    MOUNT = 5
    PROC = 6
    SYMLINK = 7
    WORKING_DIRECTORY = 8
    CAPABILITIES = 9
    FILE_DESCRIPTORS = 10
    RESOURCE_LIMITS = 11
    LANDLOCK = 12
    SECCOMP = 13
    PROCESS = 14


class StatusUsage(NamedTuple):
    """What everything inside has used: times in seconds, *max_rss* in bytes, of the largest process."""

    user_time: float
    system_time: float
    max_rss: int
    voluntary_context_switches: int
    involuntary_context_switches: int


class StatusMessage(NamedTuple):
    """One record. *error* is an errno; *fds* are descriptors that came along, the receiver's to close, or -1."""

    kind: StatusKind
    step: int
    error: int
    wait_status: int
    fds: tuple[int, int]
    message: str
    usage: StatusUsage


def socketpair() -> tuple[int, int]:
    """Two connected sockets for records, closed on exec. Raises `OSError`."""
    pair = ffi.new("int[2]")
    result = lib.status_socketpair(pair)
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return pair[0], pair[1]


def receive(socket: int, timeout: float | None = None) -> StatusMessage | None:
    """Waits for the next record, at most *timeout* seconds; None when the time is up. Signal handlers run meanwhile.

    Raises `OSError`.
    """
    record = ffi.new("struct status_message *")
    milliseconds = -1 if timeout is None else max(0, int(timeout * 1000 + 0.999))
    result = -errno.EINTR
    while result == -errno.EINTR:
        result = lib.status_receive(socket, milliseconds, record)
        if timeout is not None:
            break
    return _decoded(result, record)


def receive_relaying_signals(socket: int, command_pidfd: int) -> StatusMessage | None:
    """Waits for the next record, and hands this process's signals to the command's group meanwhile.

    Raises `OSError`.
    """
    record = ffi.new("struct status_message *")
    return _decoded(lib.relay_until_end(socket, command_pidfd, record), record)


def _decoded(result: int, record: CData) -> StatusMessage | None:
    if result in (0, -errno.EINTR):
        return None
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return StatusMessage(
        StatusKind(record.kind),
        record.step,
        record.error,
        record.wait_status,
        (record.fds[0], record.fds[1]),
        os.fsdecode(ffi.string(record.message)),
        StatusUsage(
            record.user_time / 1e6,
            record.system_time / 1e6,
            record.max_rss,
            record.voluntary_switches,
            record.involuntary_switches,
        ),
    )


def hang_up(exit_socket: int) -> None:
    """Asks the monitor to end the sandbox; its answer comes when nothing of it is left."""
    lib.status_hang_up(exit_socket)


_NAMESPACE_REMEDY = (
    "user namespaces are needed: check sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone and "
    "kernel.apparmor_restrict_unprivileged_userns, and the seccomp profile of a container; a chroot forbids them too"
)
_REMEDIES = {
    SetupStep.NAMESPACES: _NAMESPACE_REMEDY,
    SetupStep.IDENTITY: _NAMESPACE_REMEDY,
    SetupStep.NETWORK: _NAMESPACE_REMEDY,
    SetupStep.PROC: "a fresh /proc is refused where parts of the machine's own are covered; try --no-proc",
    SetupStep.WORKING_DIRECTORY: "the policy must let the command see its working directory",
    SetupStep.LANDLOCK: "report the kernel version: the rules were made for the Landlock it announced",
    SetupStep.SECCOMP: "the kernel must be built with CONFIG_SECCOMP_FILTER",
    SetupStep.CAPABILITIES: "the stage runs only where no capability is left; let pybwrap build the sandbox",
}


def setup_error(step: int, error: int, message: str) -> SetupError:
    """The exception for a setup that failed, with what to do about it."""
    try:
        known = SetupStep(step)
    except ValueError:
        return SetupError("unknown step", error, message)
    remedy = _REMEDIES.get(known, "")
    if error == errno.EAGAIN and known in {SetupStep.NAMESPACES, SetupStep.PROCESS}:
        remedy = "this user may run no more processes: raise ulimit -u, or end some"
    if error == errno.ENOSPC and known in {SetupStep.MOUNT, SetupStep.IDENTITY}:
        remedy = "free some space, or raise sysctl fs.mount-max"
    return SetupError(known.name.lower().replace("_", " "), error, message, remedy)
