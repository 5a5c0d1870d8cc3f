"""`subprocess`, sandboxed: the same names, parameters and habits, and a policy."""

from __future__ import annotations

import errno
import io
import os
import selectors
import signal
import subprocess
import termios
import threading
import time
import warnings
from subprocess import DEVNULL, PIPE, STDOUT, CalledProcessError, TimeoutExpired
from types import GenericAlias
from typing import TYPE_CHECKING, Any, ClassVar

from pybwrap.launch.limits import Limits
from pybwrap.launch.process import SandboxedProcess, StandardStreamsOpen
from pybwrap.launch.request import command_for, start
from pybwrap.launch.result import CompletedProcess, Enforced, Outcome, Usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType
    from typing import IO, Self

    from pybwrap.launch.workspace_overlay import WorkspaceOverlay
    from pybwrap.policy import PermissionProfile, SandboxPolicy

    Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
    Arguments = Path | Sequence[Path]

__all__ = ["DEVNULL", "PIPE", "STDOUT", "CalledProcessError", "Popen", "TimeoutExpired", "check_output", "run"]

_CHUNK = 64 * 1024
_PIPE_BUF = 4096
"""As many bytes as a writable pipe takes without blocking (pipe(7))."""
_LONGEST_REPR = 80


class Popen:
    """A command in a sandbox, as `subprocess.Popen` is a command without.

    *policy* is a `SandboxPolicy` or a `PermissionProfile`, resolved against *cwd*. The environment comes only from
    *env*; None gives `core_environment()`, so that no secret goes in unasked. *pass_fds* keep their numbers and
    nothing else is inherited. *pty* gives the command a terminal of its own: reads and writes go through `stdin` and
    `stdout`, which are its other end. *limits* bound what it may use. *require* names layers ("userns", "netns",
    "seccomp", "landlock", "fresh_proc") that must be in force; *fallback* names what may take the place of a sandbox
    where no namespace can be made: "landlock", which guards files with Landlock and the network with the filter, and
    keeps neither the protected names nor processes apart. *allow_nested_sandboxes* lets the command build its own.

    *files* (contents by path, relative to *cwd*) are there for the command and nowhere else, and what it leaves in
    *cwd* that matches one of the patterns *collect* is in the attribute `files` when it has ended, at most
    *collect_limit* bytes of names and contents (default 64 MiB; more makes the outcome `OUTPUT_LIMIT`). With either,
    *cwd* is a private layer over the host's: whatever the policy says, nothing written in it reaches the host
    (docs/bytes.md).

    Raises what `subprocess.Popen` raises for the command and *cwd* (`FileNotFoundError`, `PermissionError`),
    `PolicyError` for the policy, `UnsupportedHostError` for a required layer that this machine lacks, `SetupError`
    when the sandbox cannot be built. Nothing has been run then.

    The sandbox ends with the process that owns it, however that ends; not with the thread that started it.

    >>> import pybwrap
    >>> policy = pybwrap.SandboxPolicy.read_only()
    >>> with pybwrap.Popen(["sort"], policy=policy, stdin=pybwrap.PIPE, stdout=pybwrap.PIPE, text=True) as process:
    ...     output, _ = process.communicate("pear apple fig".replace(" ", chr(10)))
    >>> output.split(), process.returncode, process.outcome.value
    (['apple', 'fig', 'pear'], 0, 'exited')
    """

    stdin: IO[Any] | None = None
    stdout: IO[Any] | None = None
    stderr: IO[Any] | None = None
    __class_getitem__: ClassVar[Any] = classmethod(GenericAlias)
    enforced: Enforced
    _process: SandboxedProcess | None = None
    _overlay: WorkspaceOverlay | None = None

    def __init__(
        self,
        args: Arguments,
        bufsize: int | None = -1,
        executable: Path | None = None,
        stdin: int | IO[Any] | None = None,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
        *,
        policy: SandboxPolicy | PermissionProfile,
        shell: bool = False,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        universal_newlines: bool | None = None,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        pass_fds: Iterable[int] = (),
        pty: bool = False,
        limits: Limits | None = None,
        require: Iterable[str] = (),
        fallback: Iterable[str] = (),
        allow_nested_sandboxes: bool = False,
        files: Mapping[str | os.PathLike[str], bytes] | None = None,
        collect: Iterable[str] = (),
        collect_limit: int | None = None,
    ) -> None:
        if text is not None and universal_newlines is not None and bool(text) != bool(universal_newlines):
            raise subprocess.SubprocessError("cannot disambiguate text and universal_newlines: both are given")
        if bufsize is None:
            bufsize = -1
        if not isinstance(bufsize, int):
            raise TypeError("bufsize must be an integer")
        self.args = args
        self.returncode: int | None = None
        self.encoding = encoding
        self.errors = errors
        self.text_mode: bool = bool(encoding or errors or text or universal_newlines)
        self.limits: Limits = Limits() if limits is None else limits
        self.outcome: Outcome | None = None
        self.usage: Usage | None = None
        self.files: dict[str, bytes] = {}
        self._kill_reason: Outcome | None = None
        self._waitpid_lock = threading.Lock()
        self._captured: dict[IO[Any], list[bytes]] = {}
        self._captured_size = 0
        self._input: memoryview = memoryview(b"")
        self._communicating = False
        self._result: tuple[Any, Any] | None = None
        self._encoding = encoding or "utf-8"
        self._owner = os.getpid()

        _take_abandoned()
        command = command_for(args, executable, cwd, env, pass_fds, self.limits, shell=shell, terminal=pty)
        if files or collect:
            from pybwrap.launch.workspace_overlay import WorkspaceOverlay

            self._overlay = WorkspaceOverlay(command.cwd, files or {}, collect, collect_limit)
        try:
            layer = None if self._overlay is None else self._overlay.layer
            with StandardStreamsOpen(), _Streams(stdin, stdout, stderr, pty=pty) as streams:
                # Before the launch, for an encoding that does not exist must not leave a sandbox that nobody has.
                self._open_streams(streams, bufsize)
                self._started = time.monotonic()
                self._process, self.enforced = start(
                    policy,
                    command,
                    streams.childs,
                    require=frozenset(require),
                    fallback=frozenset(fallback),
                    allow_nested_sandboxes=allow_nested_sandboxes,
                    private_layer=layer,
                )
        except BaseException as error:
            for stream in (self.stdin, self.stdout, self.stderr):
                if stream is not None:
                    stream.close()
            if self._overlay is not None:
                self._overlay.remove()
                self._overlay.explain(error)
            raise

    # --- The same as subprocess ---------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The monitor's pid on this machine; the command's own is the sandbox's business."""
        return self._sandbox.pid

    @property
    def pidfd(self) -> int:
        """A pidfd of the monitor: readable when the sandbox has ended. Closed by `wait` and `poll` then."""
        return self._sandbox.pidfd

    @property
    def _sandbox(self) -> SandboxedProcess:
        if self._process is None:
            raise ValueError("the command was not started")
        return self._process

    def poll(self) -> int | None:
        """The return code if the command has ended, else None."""
        if self.returncode is None and self._waitpid_lock.acquire(blocking=False):
            try:
                self._take_end(timeout=0)
            finally:
                self._waitpid_lock.release()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits until nothing of the sandbox is left. Negative for a signal. Raises `TimeoutExpired`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.returncode is None and (left := _left_until(deadline)) != 0:
            # Another thread may be waiting for the same end.
            if self._waitpid_lock.acquire(timeout=-1 if left is None else left):
                try:
                    if self.returncode is None:
                        self._take_end(_left_until(deadline))
                finally:
                    self._waitpid_lock.release()
        code = self.poll()
        if code is None:
            raise TimeoutExpired(self.args, timeout or 0.0)
        return code

    def _take_end(self, timeout: float | None) -> None:
        ended = self._sandbox.wait(timeout)
        if ended is None:
            return
        wall_time = time.monotonic() - self._started
        if ended.wait_status is None:
            code = -signal.SIGKILL
            outcome = self._kill_reason or (Outcome.TIMED_OUT if ended.timed_out else Outcome.KILLED)
        else:
            code = os.waitstatus_to_exitcode(ended.wait_status)
            outcome = Outcome.EXITED if code >= 0 else Outcome.SIGNALED
            if code == -signal.SIGXCPU and self.limits.cpu_time is not None:
                outcome = Outcome.CPU_LIMIT
            if self._kill_reason is Outcome.OUTPUT_LIMIT:
                outcome = Outcome.OUTPUT_LIMIT  # it ended by itself while it was being ended
        if self._overlay is not None:
            self.files, is_complete = self._overlay.collect()
            self._overlay.remove()
            if not is_complete and outcome in {Outcome.EXITED, Outcome.SIGNALED}:
                outcome = Outcome.OUTPUT_LIMIT
        self.outcome = outcome
        used = ended.usage
        self.usage = Usage(wall_time=wall_time) if used is None else Usage(*used[:2], wall_time, *used[2:])
        self.returncode = code

    def send_signal(self, sig: int) -> None:
        """Sends a signal to the command, which may have a handler for it. Does nothing when it has ended."""
        if self.poll() is None:
            self._sandbox.send_signal(sig)

    def terminate(self) -> None:
        """Sends SIGTERM to the command."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the whole sandbox at once: no process of it survives."""
        self._end(Outcome.KILLED)

    def _end(self, reason: Outcome) -> None:
        if self.returncode is None:
            self._kill_reason = self._kill_reason or reason
            self._sandbox.kill()

    def set_window_size(self, rows: int, columns: int) -> None:
        """Sets the size of the terminal that `pty=True` gave; the command gets SIGWINCH."""
        if self.stdout is None or not self.stdout.isatty():
            raise ValueError("there is no terminal: it was not asked for with pty=True, or is closed")
        termios.tcsetwinsize(self.stdout.fileno(), (rows, columns))

    def communicate(
        self,
        input: bytes | str | None = None,  # noqa: A002 - subprocess's name
        timeout: float | None = None,
    ) -> tuple[Any, Any]:
        """Writes *input*, reads until the ends of stdout and stderr, and waits. As `subprocess.Popen.communicate`.

        More output than `limits.output` ends the sandbox; what was read until then is returned. Raises
        `TimeoutExpired`; nothing is lost then and the call can be repeated.
        """
        if self._communicating and input:
            raise ValueError("Cannot send input after starting communication")
        if self._result is not None:
            return self._result
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self._communicating:
            if timeout is None and (stream := self._only_stream()) is not None:
                return self._read_through(stream)
            self._communicating = True
            self._prepare_communication(input)
        try:
            self._exchange(deadline)
            self.wait(_left_until(deadline))
        except TimeoutExpired:
            raise TimeoutExpired(
                self.args, timeout or 0.0, self._output(self.stdout) or None, self._output(self.stderr) or None
            ) from None
        return self._text(self._output(self.stdout)), self._text(self._output(self.stderr))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for stream in (self.stdout, self.stderr):
            if stream:
                stream.close()
        try:
            if self.stdin:
                self.stdin.close()
        finally:
            self.wait()

    def __del__(self) -> None:
        if self._process is not None and self.returncode is None:
            if self._owner == os.getpid():
                _abandoned.append((self._process, self._waitpid_lock))
            message = f"sandboxed process {self._process.pid} is still running"
            warnings.warn(message, ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        text = f"<{type(self).__name__}: returncode: {self.returncode} args: {self.args!r}>"
        return text if len(text) <= _LONGEST_REPR else f"{text[: _LONGEST_REPR - 4]}...>"

    # --- Streams ------------------------------------------------------------------------------------------------

    def _open_streams(self, streams: _Streams, bufsize: int) -> None:
        line_buffering = False
        if bufsize == 1:
            bufsize, line_buffering = -1, True
        for name, mode in (("stdin", "wb"), ("stdout", "rb"), ("stderr", "rb")):
            fd = streams.take(name)
            if fd is None:
                continue
            stream: IO[Any] = open(fd, mode, bufsize)  # noqa: SIM115 - belongs to this object
            setattr(self, name, stream)
            if self.text_mode:
                text = io.TextIOWrapper(
                    stream,
                    encoding=self.encoding,
                    errors=self.errors,
                    line_buffering=line_buffering and name == "stdin",
                    write_through=name == "stdin",
                )
                self._encoding = text.encoding
                setattr(self, name, text)

    def _only_stream(self) -> IO[Any] | None:
        """The one pipe, if there is one and it can be read to its end at once."""
        streams = [stream for stream in (self.stdin, self.stdout, self.stderr) if stream is not None]
        if len(streams) != 1 or streams[0] is self.stdin or streams[0].closed or self.limits.output is not None:
            return None
        return streams[0]

    def _read_through(self, stream: IO[Any]) -> tuple[Any, Any]:
        """Reads by the stream's own means, so that what it has read ahead is not lost."""
        output = stream.read()
        stream.close()
        self.wait()
        self._communicating = True
        self._result = (output, None) if stream is self.stdout else (None, output)
        return self._result

    def _prepare_communication(self, given: bytes | str | None) -> None:
        self._input = memoryview(self._encoded(given) or b"").cast("B")
        if self.stdin and not self.stdin.closed:
            _ignoring_broken_pipe(self.stdin.flush)
            if not self._input:
                _ignoring_broken_pipe(self.stdin.close)
        for stream in (self.stdout, self.stderr):
            if stream:
                self._captured[stream] = []

    def _exchange(self, deadline: float | None) -> None:
        """Moves bytes until all streams are at their end. Raises `TimeoutExpired`."""
        with selectors.PollSelector() as selector:
            if self.stdin and not self.stdin.closed and self._input:
                selector.register(self.stdin, selectors.EVENT_WRITE)
            for stream in self._captured:
                if not stream.closed:
                    selector.register(stream, selectors.EVENT_READ)
            while selector.get_map():
                left = _left_until(deadline)
                if left == 0:
                    raise TimeoutExpired(self.args, 0)
                for key, _ in selector.select(left):
                    if key.fileobj is self.stdin:
                        self._write_some(selector)
                    else:
                        self._read_some(selector, key)

    def _read_some(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
        stream: Any = key.fileobj
        chunk = _read_chunk(key.fd)
        if not chunk:
            selector.unregister(stream)
            stream.close()
            return
        self._capture(stream, chunk)

    def _capture(self, stream: IO[Any], chunk: bytes) -> None:
        """Keeps what was read, up to the limit; ends the sandbox that goes beyond."""
        if self.limits.output is not None:
            room = self.limits.output - self._captured_size
            if len(chunk) > room:
                chunk = chunk[:room]
                self._end(Outcome.OUTPUT_LIMIT)
        self._captured_size += len(chunk)
        self._captured[stream].append(chunk)

    def _write_some(self, selector: selectors.BaseSelector) -> None:
        assert self.stdin is not None  # noqa: S101 - it was registered
        try:
            self._input = self._input[os.write(self.stdin.fileno(), self._input[:_PIPE_BUF]) :]
        except BrokenPipeError:
            self._input = memoryview(b"")
        if not self._input:
            selector.unregister(self.stdin)
            _ignoring_broken_pipe(self.stdin.close)

    def _output(self, stream: IO[Any] | None) -> bytes | None:
        return b"".join(self._captured[stream]) if stream is not None and stream in self._captured else None

    def _encoded(self, given: bytes | str | None) -> bytes | None:
        if not isinstance(given, str):
            return given
        if not self.text_mode:
            raise TypeError("a bytes-like object is required, not 'str': open the process in text mode")
        return given.encode(self._encoding, self.errors or "strict")

    def _text(self, data: bytes | None) -> bytes | str | None:
        if data is None or not self.text_mode:
            return data
        text = data.decode(self._encoding, self.errors or "strict")
        return text.replace("\r\n", "\n").replace("\r", "\n")


_abandoned: list[tuple[SandboxedProcess, threading.Lock]] = []
"""Sandboxes whose `Popen` was dropped before their end was known. A later launch takes it, as in subprocess."""
os.register_at_fork(after_in_child=_abandoned.clear)


def _take_abandoned() -> None:
    for entry in list(_abandoned):
        process, lock = entry
        if lock.acquire(blocking=False):
            try:
                if process.wait(0) is not None:
                    _abandoned.remove(entry)
            except ValueError:
                pass  # another thread has just removed it
            finally:
                lock.release()


def _left_until(deadline: float | None) -> float | None:
    """Seconds until a time of the monotonic clock, 0 when it has passed; None for no deadline."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _read_chunk(fd: int) -> bytes:
    try:
        return os.read(fd, _CHUNK)
    except OSError as error:
        if error.errno == errno.EIO:  # how a terminal says that nobody holds its other end (pty(7))
            return b""
        raise


def _ignoring_broken_pipe(action: Any) -> None:  # noqa: ANN401 - flush or close of any stream
    try:
        action()
    except BrokenPipeError:
        pass


class _Streams:
    """The command's standard streams: what goes to it, and what stays here as the other ends of pipes."""

    def __init__(
        self,
        stdin: int | IO[Any] | None,
        stdout: int | IO[Any] | None,
        stderr: int | IO[Any] | None,
        *,
        pty: bool,
    ) -> None:
        self._mine: dict[str, int] = {}
        self._theirs: list[int] = []
        if pty and (stdin, stdout, stderr) != (None, None, None):
            raise ValueError("pty=True brings all three standard streams: give none of them")
        try:
            if pty:
                self.childs = self._terminal()
            else:
                child_in = self._child_end("stdin", stdin, 0)
                child_out = self._child_end("stdout", stdout, 1)
                child_err = child_out if stderr == STDOUT else self._child_end("stderr", stderr, 2)
                self.childs = (child_in, child_out, child_err)
        except BaseException:
            self.__exit__()
            raise

    def _terminal(self) -> tuple[int, int, int]:
        master, slave = os.openpty()
        self._theirs.append(slave)
        self._mine["stdout"] = master
        self._mine["stdin"] = os.dup(master)
        return slave, slave, slave

    def _child_end(self, name: str, given: int | IO[Any] | None, number: int) -> int:
        if given is None:
            return number
        if isinstance(given, int):
            if given == PIPE:
                reading, writing = os.pipe()
                mine, theirs = (writing, reading) if number == 0 else (reading, writing)
                self._mine[name] = mine
                self._theirs.append(theirs)
                return theirs
            if given == DEVNULL:
                fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                self._theirs.append(fd)
                return fd
            if given == STDOUT:
                raise ValueError("STDOUT can only be used for stderr")
            return given
        return given.fileno()

    def take(self, name: str) -> int | None:
        """Hands this side's end of a stream to the caller."""
        return self._mine.pop(name, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for fd in (*self._theirs, *self._mine.values()):
            os.close(fd)
        self._theirs.clear()
        self._mine.clear()


def run(
    args: Arguments,
    *,
    input: bytes | str | None = None,  # noqa: A002 - subprocess's name
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **kwargs: Any,  # noqa: ANN401 - Popen's
) -> CompletedProcess[Any]:
    """Runs a command in a sandbox, waits for it and returns what it came to, as `subprocess.run` does.

    Further parameters are `Popen`'s. Raises `TimeoutExpired` (with the output so far; the sandbox has ended),
    `CalledProcessError` with *check*, and what `Popen` raises.

    >>> import pybwrap
    >>> policy = pybwrap.SandboxPolicy.workspace_write()
    >>> done = pybwrap.run(["mkdir", ".aws/new"], policy=policy, stdout=pybwrap.PIPE, stderr=pybwrap.STDOUT, text=True)
    >>> done.returncode, "Read-only file system" in done.stdout
    (1, True)
    >>> try:
    ...     pybwrap.run(["sleep", "60"], policy=policy, timeout=0.1)
    ... except pybwrap.TimeoutExpired as error:
    ...     print(error)
    Command '['sleep', '60']' timed out after 0.1 seconds
    """
    use_pipes(kwargs, has_input=input is not None, capture_output=capture_output)
    with Popen(args, **kwargs) as process:
        try:
            stdout, stderr = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()
            process.wait()
            raise
    return completed(process, stdout, stderr, check=check)


def use_pipes(kwargs: dict[str, Any], *, has_input: bool, capture_output: bool) -> None:
    """Adds to the parameters of a `Popen` the pipes that *input* and *capture_output* of a `run` stand for."""
    if has_input:
        if kwargs.get("stdin") is not None:
            raise ValueError("stdin and input arguments may not both be used.")
        kwargs["stdin"] = PIPE
    if capture_output:
        if kwargs.get("stdout") is not None or kwargs.get("stderr") is not None:
            raise ValueError("stdout and stderr arguments may not be used with capture_output.")
        kwargs["stdout"] = kwargs["stderr"] = PIPE


def completed(
    process: Popen,
    stdout: Any,  # noqa: ANN401 - bytes or str
    stderr: Any,  # noqa: ANN401
    *,
    check: bool,
) -> CompletedProcess[Any]:
    """What a process that has ended came to. With *check*, raises `CalledProcessError` when that is a failure."""
    returncode = process.wait()
    if check and returncode:
        raise CalledProcessError(returncode, process.args, output=stdout, stderr=stderr)
    return CompletedProcess(
        process.args,
        returncode,
        stdout,
        stderr,
        outcome=process.outcome or Outcome.EXITED,
        usage=process.usage,
        enforced=process.enforced,
        files=process.files,
    )


def check_output(args: Arguments, *, timeout: float | None = None, **kwargs: Any) -> Any:  # noqa: ANN401 - as subprocess
    """What a command wrote to stdout; raises `CalledProcessError` if it failed. As `subprocess.check_output`.

    >>> import pybwrap
    >>> policy = pybwrap.SandboxPolicy.read_only()
    >>> pybwrap.check_output(["expr", "6", "*", "7"], policy=policy, text=True).strip()
    '42'
    >>> try:
    ...     pybwrap.check_output("exit 3", shell=True, policy=policy)
    ... except pybwrap.CalledProcessError as error:
    ...     print(error.returncode)
    3
    """
    if "stdout" in kwargs or "check" in kwargs:
        raise ValueError("stdout and check arguments not allowed, they will be overridden.")
    if "input" in kwargs and kwargs["input"] is None:
        kwargs["input"] = b""  # not what None is to `run`
    return run(args, stdout=PIPE, timeout=timeout, check=True, **kwargs).stdout
