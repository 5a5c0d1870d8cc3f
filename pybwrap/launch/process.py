"""One launch: from a plan and a command to a process in a sandbox, and to how it ended."""

from __future__ import annotations

import errno
import os
import signal
import threading
from typing import TYPE_CHECKING, NamedTuple

from pybwrap._native import ffi, lib
from pybwrap.errors import SetupError, UnsupportedHostError
from pybwrap.launch import leftovers, placeholders, proc_fallback
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

__all__ = [
    "HELPER",
    "Ended",
    "ExecError",
    "SandboxedProcess",
    "StandardStreamsOpen",
    "become",
    "block_relayed_signals",
    "launch",
]

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

    def __init__(self, plan: SandboxPlan, monitor: _Spawned, command: _Executed, exit_socket: int) -> None:
        self.plan = plan
        self.pid: int = monitor.pid
        self.pidfd: int = monitor.pidfd
        self._command = command
        self._exit_socket = exit_socket
        self.ended: Ended | None = None
        self._lock = threading.RLock()  # a signal handler may send while the end is being taken
        """Held to use descriptors or to close them: one thread may wait while another sends a signal."""

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
            self._take(receive_relaying_signals(self._exit_socket, self._command.pidfd))
        return self.ended

    def _take(self, message: StatusMessage | None) -> None:
        if message is None:
            return
        if message.kind is StatusKind.END_OF_FILE:
            # The monitor was killed. Its end of the socket closes before the kernel has ended all that was inside.
            _wait_for_end(self._command.init_pidfd)
        _reap(self.pid)
        if message.kind is StatusKind.END_OF_FILE:
            leftovers.reclaim()
        with self._lock:
            self.ended = Ended(
                message.wait_status if message.kind is StatusKind.COMMAND_ENDED else None,
                message.kind is StatusKind.TIMED_OUT,
                message.usage if message.kind is not StatusKind.END_OF_FILE else None,
            )
            for fd in (self.pidfd, self._command.pidfd, self._command.init_pidfd, self._exit_socket):
                if fd >= 0:
                    os.close(fd)

    def send_signal(self, number: int) -> None:
        """Sends a signal to the command, which handles it as it likes. Does nothing when the command has ended."""
        with self._lock:
            if self.ended is None:
                try:
                    signal.pidfd_send_signal(self._command.pidfd, number)
                except ProcessLookupError:
                    pass

    def kill(self) -> None:
        """Has the monitor end the whole sandbox: with its init, the kernel kills whatever runs inside."""
        with self._lock:
            if self.ended is None:
                hang_up(self._exit_socket)


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass  # somebody else waited for all children of this process


def _wait_for_end(pidfd: int) -> None:
    if pidfd >= 0:
        from select import POLLIN, poll

        ended = poll()
        ended.register(pidfd, POLLIN)
        ended.poll()


def block_relayed_signals() -> None:
    """Blocks, in this thread, the signals that `SandboxedProcess.wait_relaying_signals` relays."""
    lib.block_relayed_signals()


def launch(
    plan: SandboxPlan,
    command: Command,
    *,
    streams: tuple[int, int, int] = (0, 1, 2),
    require_fresh_proc: bool = False,
) -> SandboxedProcess:
    """Starts *command* under *plan* and returns when it has been executed; *streams* become its standard streams.

    Where a fresh /proc is refused it goes on without one, unless *require_fresh_proc*.

    Raises `SetupError` when the sandbox could not be built, `ExecError` when the command could not be executed,
    `UnsupportedHostError` and `PolicyError` as planning and filters do. Nothing runs then and nothing is left.
    """
    if plan.allow_nested_sandboxes and os.geteuid() == 0:
        # verify_root_map() in kernel/user_namespace.c; to leave the capability in would let the command plant files
        # whose capabilities count outside.
        raise UnsupportedHostError(
            "nested sandboxes need an unprivileged user: only with CAP_SETFCAP may one map root again, and nobody "
            "inside has that"
        )
    leftovers.reclaim()
    if plan.fresh_proc and not require_fresh_proc and proc_fallback.is_refused():
        plan = plan.without_fresh_proc()
    try:
        with StandardStreamsOpen():
            try:
                return _launch_once(plan, command, streams)
            except SetupError as error:
                # Nothing has been executed, so the failed launch was its own preflight.
                if require_fresh_proc or not plan.fresh_proc or error.step != SetupStep.PROC.name.lower():
                    raise
                proc_fallback.remember_refusal(error)
                return _launch_once(plan.without_fresh_proc(), command, streams)
    except (SetupError, ExecError):
        raise
    except OSError as error:
        raise setup_error(SetupStep.FILE_DESCRIPTORS, error.errno or 0, "preparing the launch") from None


class StandardStreamsOpen:
    """Keeps 0 to 2 occupied, by nothing where this process was started without them.

    Otherwise a descriptor of the launch would get such a number and be the command's.
    """

    def __enter__(self) -> None:
        self.fillers: list[int] = []
        while (fd := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) < 3:  # noqa: PLR2004 - the standard streams
            self.fillers.append(fd)
        os.close(fd)

    def __exit__(self, *exception: object) -> None:
        for fd in self.fillers:
            os.close(fd)


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
    mine: list[int] = []  # closed here unless the command runs
    theirs: list[int] = []  # the monitor's, closed here as soon as it has them, so that their closing can be seen
    try:
        for _ in ("setup", "exit"):
            here, there = socketpair()
            mine.append(here)
            theirs.append(there)
        theirs.append(os.pidfd_open(os.getpid()))
        setup_socket, exit_socket = mine
        spec = pack_spec(
            plan,
            command,
            seccomp_filter=seccomp_filter,
            setup_socket=theirs[0],
            exit_socket=theirs[1],
            owner_pidfd=theirs[2],
            claims=claims,
        )
        monitor = _spawn(spec, streams, [*theirs, *command.inherited_fds, *(claim.lock_fd for claim in claims)])
        mine.append(monitor.pidfd)
        _close(theirs)
        executed = _await_command(setup_socket, exit_socket, monitor, command)
        mine[:] = [setup_socket]
        return SandboxedProcess(plan, monitor, executed, exit_socket)
    finally:
        _close(mine)
        _close(theirs)


def _close(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


class _Spawned(NamedTuple):
    """The monitor."""

    pid: int
    pidfd: int


class _Executed(NamedTuple):
    """The command that runs, and the init of its sandbox; -1 without one, or while it is not known."""

    pidfd: int
    init_pidfd: int


def _spawn(spec: bytes, streams: tuple[int, int, int], control_fds: list[int]) -> _Spawned:
    """Starts the monitor: the helper, or a fork of this process where no helper can be executed."""
    result = ffi.new("struct spawn_result *")
    spec_fd = os.memfd_create("pybwrap-spec", os.MFD_CLOEXEC)
    try:
        os.write(spec_fd, spec)
        lib.spawn_helper(os.fsencode(HELPER), spec_fd, list(streams), control_fds, len(control_fds), result)
    finally:
        os.close(spec_fd)
    if result.error in _CANNOT_EXECUTE:
        block = bytearray(spec)
        lib.fork_launch(ffi.from_buffer(block), len(block), list(streams), result)
    if result.error:
        raise setup_error(SetupStep.PROCESS, result.error, "starting the process that builds the sandbox")
    return _Spawned(result.pid, result.pidfd)


def _await_command(setup_socket: int, exit_socket: int, monitor: _Spawned, command: Command) -> _Executed:
    """Waits until the command has been executed. Otherwise the monitor is gone on return."""
    try:
        executed, failure = _read_setup(setup_socket, exit_socket)
    except BaseException:
        signal.pidfd_send_signal(monitor.pidfd, signal.SIGKILL)
        _reap(monitor.pid)
        raise
    if failure is None:
        return executed

    _reap(monitor.pid)
    _close([fd for fd in executed if fd >= 0])
    if failure.kind is StatusKind.EXEC_FAILED:
        raise ExecError(failure.error, os.strerror(failure.error), command.executable)
    if failure.kind is StatusKind.SETUP_FAILED:
        raise setup_error(failure.step, failure.error, failure.message)
    raise setup_error(SetupStep.PROCESS, 0, "the processes that set it up were killed")


def _read_setup(setup_socket: int, exit_socket: int) -> tuple[_Executed, StatusMessage | None]:
    """The command and its init, as far as they were announced, and what failed, if anything did."""
    executed = _Executed(-1, -1)
    while (message := receive(setup_socket)) is not None and message.kind is StatusKind.COMMAND_READY:
        executed = _Executed(*message.fds)
    if message is not None and message.kind is not StatusKind.END_OF_FILE:
        return executed, message
    if executed.pidfd >= 0:
        return executed, None
    # The monitor speaks on the other socket once it has left this one to the command.
    return executed, receive(exit_socket)


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
