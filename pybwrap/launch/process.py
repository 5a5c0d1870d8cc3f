"""One launch: from a plan and a command to a process in a sandbox, and to how it ended."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from typing import TYPE_CHECKING, NamedTuple

from pybwrap._native import ffi, lib
from pybwrap.errors import SetupError
from pybwrap.launch import placeholders, proc_fallback
from pybwrap.launch.seccomp_filter import compile_filter
from pybwrap.launch.status import (
    SetupStep,
    StatusKind,
    StatusMessage,
    StatusUsage,
    hang_up,
    receive,
    receive_relaying_signals,
    setup_error,
    socketpair,
)
from pybwrap.plan.sandbox import Engine, SandboxPlan
from pybwrap.plan.spec import Command, pack_spec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from pybwrap.plan.spec import Claim

__all__ = ["HELPER", "Ended", "ExecError", "SandboxedProcess", "become", "block_relayed_signals", "launch"]

HELPER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "_helper")
"""The executable that builds sandboxes: it brings nothing of this process along, and starts as fast at any size."""

_CANNOT_EXECUTE = frozenset({errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.ENOENT})
"""What execve(2) says where the helper lies on a noexec mount, or has lost its mode: fork instead."""


class ExecError(OSError):
    """Raised when the command could not be executed; *errno* says why, *filename* is the command."""


class Ended(NamedTuple):
    """How a sandbox ended.

    *wait_status* is the command's as wait(2) gives it, or None when the sandbox was ended before the command was;
    *timed_out* says that this was so because its wall time was up. *usage* is what everything inside has used, or
    None when the monitor was killed and could not tell.
    """

    wait_status: int | None
    timed_out: bool
    usage: StatusUsage | None


class SandboxedProcess:
    """A command that runs in a sandbox. *pid* and *pidfd* are its monitor's, on the host."""

    def __init__(
        self, plan: SandboxPlan, pid: int, pidfd: int, command_pidfd: int, exit_socket: int, *, has_claims: bool
    ) -> None:
        self.plan = plan
        self.pid = pid
        self.pidfd = pidfd
        self._command_pidfd = command_pidfd
        self._exit_socket = exit_socket
        self._has_claims = has_claims
        self.ended: Ended | None = None

    def fileno(self) -> int:
        """A descriptor that is readable when nothing of the sandbox is left, until `wait` has said so."""
        return self._exit_socket

    def wait(self, timeout: float | None = None) -> Ended | None:
        """Waits until nothing of the sandbox is left, at most *timeout* seconds; None when the time is up."""
        if self.ended is None:
            self._take(receive(self._exit_socket, timeout))
        return self.ended

    def wait_relaying_signals(self) -> Ended:
        """Waits, and hands the signals that this process gets to the command's process group.

        Only those that were blocked by `block_relayed_signals` before the launch.
        """
        while self.ended is None:
            self._take(receive_relaying_signals(self._exit_socket, self._command_pidfd))
        return self.ended

    def _take(self, message: StatusMessage | None) -> None:
        if message is None:
            return
        self._reap()
        self.ended = Ended(
            message.wait_status if message.kind is StatusKind.COMMAND_ENDED else None,
            message.kind is StatusKind.TIMED_OUT,
            message.usage if message.kind is not StatusKind.END_OF_FILE else None,
        )

    def send_signal(self, number: int) -> None:
        """Sends a signal to the command, which handles it as it likes. Does nothing when the command has ended."""
        if self.ended is None:
            try:
                signal.pidfd_send_signal(self._command_pidfd, number)
            except ProcessLookupError:
                pass

    def kill(self) -> None:
        """Has the monitor end the whole sandbox: with its init, the kernel kills whatever runs inside."""
        if self.ended is None:
            hang_up(self._exit_socket)

    def _reap(self) -> None:
        try:
            _, status = os.waitpid(self.pid, 0)
        except ChildProcessError:
            status = 0  # somebody else waited for all children of this process
        if self._has_claims and os.WIFSIGNALED(status):
            placeholders.reclaim()
        for fd in (self.pidfd, self._command_pidfd, self._exit_socket):
            os.close(fd)


def block_relayed_signals() -> None:
    """Blocks, in this thread, the signals that `SandboxedProcess.wait_relaying_signals` relays."""
    lib.block_relayed_signals()


def launch(
    plan: SandboxPlan,
    command: Command,
    *,
    streams: tuple[int, int, int] = (0, 1, 2),
) -> SandboxedProcess:
    """Starts *command* under *plan* and returns when it has been executed; *streams* become its standard streams.

    Raises `SetupError` when the sandbox could not be built, `ExecError` when the command could not be executed,
    `UnsupportedHostError` and `PolicyError` as planning and filters do. Nothing runs then and nothing is left.
    """
    if plan.fresh_proc and proc_fallback.is_refused():
        plan = plan.without_fresh_proc()
    try:
        return _launch_once(plan, command, streams)
    except SetupError as error:
        # Nothing has been executed, so the failed launch was its own preflight.
        if not plan.fresh_proc or error.step != SetupStep.PROC.name.lower():
            raise
        proc_fallback.remember_refusal(error)
        return _launch_once(plan.without_fresh_proc(), command, streams)


def _launch_once(plan: SandboxPlan, command: Command, streams: tuple[int, int, int]) -> SandboxedProcess:
    seccomp_filter = b""
    if plan.seccomp is not None:
        seccomp_filter = compile_filter(plan.seccomp, allow_nested_sandboxes=plan.allow_nested_sandboxes)
    claims = placeholders.claim(plan.filesystem.placeholders) if plan.filesystem is not None else []
    try:
        process = _start(plan, command, seccomp_filter, streams, claims)
    except BaseException:
        placeholders.release(claims)
        raise
    for claim in claims:
        os.close(claim.lock_fd)
    return process


def _start(
    plan: SandboxPlan,
    command: Command,
    seccomp_filter: bytes,
    streams: tuple[int, int, int],
    claims: Sequence[Claim],
) -> SandboxedProcess:
    opened: list[int] = []  # what this process has no use for once the monitor runs, or has failed to
    kept: list[int] = []  # what it keeps if the command runs

    def own(fd: int, into: list[int]) -> int:
        # 0 to 2 are the command's; they are free here when this process was started without them.
        while fd < 3:  # noqa: PLR2004 - the standard streams
            into.append(fd)
            fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        into.append(fd)
        return fd

    try:
        setup_end, exit_end = socketpair(), socketpair()
        setup_socket, exit_socket = own(setup_end[0], opened), own(exit_end[0], kept)
        spec = pack_spec(
            plan,
            command,
            seccomp_filter=seccomp_filter,
            setup_socket=own(setup_end[1], opened),
            exit_socket=own(exit_end[1], opened),
            owner_pidfd=own(os.pidfd_open(os.getpid()), opened),
            claims=claims,
        )
        control_fds = [*opened[1:], *command.inherited_fds, *(claim.lock_fd for claim in claims)]
        placed = [fd if _is_open(fd) else own(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), opened) for fd in streams]
        result = _spawn(spec, placed, control_fds)
        kept.append(result.pidfd)
        # The ends that the monitor has must be its alone, so that their closing can be seen.
        for fd in opened[1:]:
            os.close(fd)
        del opened[1:]
        command_pidfd = _await_command(setup_socket, exit_socket, result, command)
        process = SandboxedProcess(plan, result.pid, result.pidfd, command_pidfd, exit_socket, has_claims=bool(claims))
        kept.clear()
        return process
    finally:
        for fd in (*opened, *kept):
            os.close(fd)


class _Spawned(NamedTuple):
    pid: int
    pidfd: int


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _spawn(spec: bytes, streams: list[int], control_fds: list[int]) -> _Spawned:
    """Starts the monitor: the helper, or a fork of this process where no helper can be executed."""
    result = ffi.new("struct spawn_result *")
    spec_fd = os.memfd_create("pybwrap-spec", os.MFD_CLOEXEC)
    try:
        if spec_fd < 3:  # noqa: PLR2004 - the standard streams
            spec_fd, low = fcntl.fcntl(spec_fd, fcntl.F_DUPFD_CLOEXEC, 3), spec_fd
            os.close(low)
        os.write(spec_fd, spec)
        lib.spawn_helper(os.fsencode(HELPER), spec_fd, streams, control_fds, len(control_fds), result)
    finally:
        os.close(spec_fd)
    if result.error in _CANNOT_EXECUTE:
        block = bytearray(spec)
        lib.fork_launch(ffi.from_buffer(block), len(block), streams, result)
    if result.error:
        raise setup_error(SetupStep.PROCESS, result.error, "starting the process that builds the sandbox")
    return _Spawned(result.pid, result.pidfd)


def _await_command(setup_socket: int, exit_socket: int, monitor: _Spawned, command: Command) -> int:
    """Waits until the command has been executed, and returns its pidfd. Otherwise the monitor is gone on return."""
    try:
        command_pidfd, failure = _read_setup(setup_socket, exit_socket)
    except BaseException:
        signal.pidfd_send_signal(monitor.pidfd, signal.SIGKILL)
        _reap_monitor(monitor)
        raise
    if failure is None:
        return command_pidfd

    if command_pidfd >= 0:
        os.close(command_pidfd)
    _reap_monitor(monitor)
    if failure.kind is StatusKind.EXEC_FAILED:
        raise ExecError(failure.error, os.strerror(failure.error), command.executable)
    if failure.kind is StatusKind.SETUP_FAILED:
        raise setup_error(failure.step, failure.error, failure.message)
    raise setup_error(SetupStep.PROCESS, 0, "the processes that set it up were killed")


def _read_setup(setup_socket: int, exit_socket: int) -> tuple[int, StatusMessage | None]:
    """The command's pidfd (-1 before it was announced), and what failed, if anything did."""
    command_pidfd = -1
    while (message := receive(setup_socket)) is not None and message.kind is StatusKind.COMMAND_READY:
        command_pidfd = message.fd
    if message is not None and message.kind is not StatusKind.END_OF_FILE:
        return command_pidfd, message
    if command_pidfd >= 0:
        return command_pidfd, None
    # The monitor speaks on the other socket once it has left this one to the command.
    return command_pidfd, receive(exit_socket)


def _reap_monitor(monitor: _Spawned) -> None:
    try:
        os.waitid(os.P_PIDFD, monitor.pidfd, os.WEXITED)
    except ChildProcessError:
        pass  # somebody else waited for all children of this process


def become(plan: SandboxPlan, command: Command, *, refuse_capabilities: bool = False) -> NoReturn:
    """Applies *plan*, which must need no namespaces, to this process, and executes *command* in it.

    Raises `SetupError` or `ExecError`; some of the restrictions may have been applied by then.
    """
    if plan.engine is not Engine.STAGE:
        raise ValueError("a plan with namespaces needs a process of its own: use launch()")
    seccomp_filter = compile_filter(plan.seccomp) if plan.seccomp is not None else b""
    block = bytearray(
        pack_spec(
            plan,
            command,
            seccomp_filter=seccomp_filter,
            process_group=False,
            refuse_capabilities=refuse_capabilities,
        )
    )
    failure = ffi.new("struct stage_failure *")
    lib.execute_stage(ffi.from_buffer(block), len(block), failure)
    if failure.is_setup:
        raise setup_error(failure.step, failure.error, os.fsdecode(ffi.string(failure.message)))
    raise ExecError(failure.error, os.strerror(failure.error), command.executable)
