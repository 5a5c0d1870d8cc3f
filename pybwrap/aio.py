"""`asyncio.subprocess`, sandboxed: the same names, parameters and habits, and a policy.

There is no child watcher and no SIGCHLD handler: the loop watches a descriptor that says when nothing of a sandbox is
left, so any loop in any thread will do. Building a sandbox takes some milliseconds of waiting, which are spent in the
loop's default executor; the sandbox does not depend on that thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import functools
from subprocess import DEVNULL, PIPE, STDOUT, TimeoutExpired
from typing import TYPE_CHECKING, Any

from pybwrap.launch.popen import Popen, completed, use_pipes

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping
    from typing import IO, Required, TypedDict, Unpack

    from pybwrap.launch.limits import Limits
    from pybwrap.launch.popen import Arguments, Path
    from pybwrap.launch.result import CompletedProcess, Enforced, Outcome, Usage
    from pybwrap.policy import PermissionProfile, SandboxPolicy

    class _SandboxParameters(TypedDict, total=False):
        policy: Required[SandboxPolicy | PermissionProfile]
        cwd: Path | None
        env: Mapping[str, str] | None
        pass_fds: Iterable[int]
        pty: bool
        limits: Limits | None
        require: Iterable[str]
        allow_nested_sandboxes: bool
        files: Mapping[str | os.PathLike[str], bytes] | None
        collect: Iterable[str]
        collect_limit: int | None


__all__ = ["DEVNULL", "PIPE", "STDOUT", "Process", "create_subprocess_exec", "create_subprocess_shell", "run"]

_STREAM_LIMIT = 2**16
"""How many bytes a `StreamReader` holds before it stops reading, by asyncio's default."""


class Process:
    """A command in a sandbox, as `asyncio.subprocess.Process` is a command without. Not made by hand.

    *stdin*, *stdout* and *stderr* are None unless they were `PIPE`, or the process has a terminal of its own.

    >>> import asyncio, pybwrap
    >>> from pybwrap import aio
    >>> async def first_line():
    ...     process = await aio.create_subprocess_exec(
    ...         "yes", policy=pybwrap.SandboxPolicy.read_only(), stdout=aio.PIPE, stderr=aio.STDOUT
    ...     )
    ...     line = await process.stdout.readline()
    ...     process.kill()
    ...     return line.strip(), await process.wait(), process.outcome.value
    >>> asyncio.run(first_line())
    (b'y', -9, 'killed')
    """

    def __init__(
        self,
        popen: _WatchedPopen,
        stdin: asyncio.StreamWriter | None,
        stdout: asyncio.StreamReader | None,
        stderr: asyncio.StreamReader | None,
    ) -> None:
        self._popen = popen
        self._communicating = False
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.pid: int = popen.pid
        """The monitor's pid on this machine; the command's own is the sandbox's business."""
        self.enforced: Enforced = popen.enforced

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.pid}>"

    @property
    def returncode(self) -> int | None:
        """None while something of the sandbox is left; negative for a signal."""
        return self._popen.returncode

    @property
    def outcome(self) -> Outcome | None:
        """Why the command ended; None before."""
        return self._popen.outcome

    @property
    def usage(self) -> Usage | None:
        """What everything inside has used together; None before the end."""
        return self._popen.usage

    @property
    def files(self) -> dict[str, bytes]:
        """What was collected, by path relative to the working directory; empty before the end."""
        return self._popen.files

    async def wait(self) -> int:
        """Waits until nothing of the sandbox is left.

        Who has pipes and does not read them may wait for ever: a command stops when they are full.
        """
        return await asyncio.shield(self._popen.ended)

    async def communicate(
        self,
        input: bytes | bytearray | memoryview | None = None,  # noqa: A002 - asyncio's name
    ) -> tuple[bytes | None, bytes | None]:
        """Writes *input*, reads until the ends of stdout and stderr, and waits. None for what is not a pipe.

        More output than `limits.output` ends the sandbox; what was read until then is returned. Nothing is lost when
        this is cancelled, and the call can be repeated, without *input*.
        """
        if self._communicating and input:
            raise ValueError("Cannot send input after starting communication")
        self._communicating = True
        popen = self._popen
        await asyncio.gather(
            self._feed_stdin(input),
            popen.capture_all(popen.stdout, self.stdout),
            popen.capture_all(popen.stderr, self.stderr),
        )
        await self.wait()
        popen.close_streams()
        return popen.captured(popen.stdout), popen.captured(popen.stderr)

    async def _feed_stdin(self, data: bytes | bytearray | memoryview | None) -> None:
        if self.stdin is None:
            return
        try:
            if data:
                self.stdin.write(data)
            await self.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            pass  # the command need not read it all
        self.stdin.close()

    def send_signal(self, signal: int) -> None:
        """Sends a signal to the command, which may have a handler for it. Raises `ProcessLookupError` at the end."""
        self._running().send_signal(signal)

    def terminate(self) -> None:
        """Sends SIGTERM to the command. Raises `ProcessLookupError` when it has ended."""
        self._running().terminate()

    def kill(self) -> None:
        """Ends the whole sandbox at once: no process of it survives. Raises `ProcessLookupError` when it has ended."""
        self._running().kill()

    def _running(self) -> _WatchedPopen:
        if self.returncode is not None:
            raise ProcessLookupError
        return self._popen


async def create_subprocess_exec(
    program: Path,
    *args: Path,
    stdin: int | IO[Any] | None = None,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
    limit: int = _STREAM_LIMIT,
    policy: SandboxPolicy | PermissionProfile,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    pass_fds: Iterable[int] = (),
    pty: bool = False,
    limits: Limits | None = None,
    require: Iterable[str] = (),
    allow_nested_sandboxes: bool = False,
    files: Mapping[str | os.PathLike[str], bytes] | None = None,
    collect: Iterable[str] = (),
    collect_limit: int | None = None,
) -> Process:
    """Starts a command in a sandbox, as `asyncio.create_subprocess_exec` does without one.

    *limit* is how many bytes the readers of stdout and stderr buffer, and the longest line that they return. *policy*
    and what follows are `pybwrap.Popen`'s, and so are the errors. Cancelling leaves nothing of the sandbox behind.

    >>> import asyncio, pybwrap
    >>> from pybwrap import aio
    >>> async def upper_case(text):
    ...     process = await aio.create_subprocess_exec(
    ...         "tr", "a-z", "A-Z", policy=pybwrap.SandboxPolicy.read_only(), stdin=aio.PIPE, stdout=aio.PIPE
    ...     )
    ...     return (await process.communicate(text))[0]
    >>> asyncio.run(upper_case(b"hello"))
    b'HELLO'
    """
    popen = await _launch(
        functools.partial(
            _WatchedPopen,
            (program, *args),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            policy=policy,
            cwd=cwd,
            env=env,
            pass_fds=pass_fds,
            pty=pty,
            limits=limits,
            require=require,
            allow_nested_sandboxes=allow_nested_sandboxes,
            files=files,
            collect=collect,
            collect_limit=collect_limit,
        )
    )
    try:
        return await popen.connect(limit)
    except (Exception, asyncio.CancelledError):
        await popen.finish()
        raise


async def create_subprocess_shell(
    cmd: str | bytes,
    stdin: int | IO[Any] | None = None,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
    limit: int = _STREAM_LIMIT,
    **parameters: Unpack[_SandboxParameters],
) -> Process:
    """Has /bin/sh run *cmd* in a sandbox. Everything else is as in `create_subprocess_exec`.

    >>> import asyncio, pybwrap
    >>> from pybwrap import aio
    >>> async def exit_status(line):
    ...     policy = pybwrap.SandboxPolicy.read_only()
    ...     return await (await aio.create_subprocess_shell(line, policy=policy, stdin=aio.DEVNULL)).wait()
    >>> asyncio.run(exit_status("exit 3"))
    3
    """
    if not isinstance(cmd, (str, bytes)):
        raise ValueError("cmd must be a string")  # noqa: TRY004 - as asyncio has it
    return await create_subprocess_exec(
        "/bin/sh", "-c", cmd, stdin=stdin, stdout=stdout, stderr=stderr, limit=limit, **parameters
    )


async def run(
    args: Arguments,
    *,
    input: bytes | str | None = None,  # noqa: A002 - subprocess's name
    capture_output: bool = False,
    timeout: float | None = None,  # noqa: ASYNC109 - subprocess's name, and its exception
    check: bool = False,
    **kwargs: Any,  # noqa: ANN401 - Popen's
) -> CompletedProcess[Any]:
    """Runs a command in a sandbox, waits for it and returns what it came to. `pybwrap.run` for a coroutine.

    Further parameters are `pybwrap.Popen`'s, *text* and *encoding* among them. *timeout* is in seconds from when the
    command runs. Raises `TimeoutExpired` (with the output so far), `CalledProcessError` with *check*, and what
    `pybwrap.Popen` raises. Nothing of the sandbox is left when this returns or raises, `CancelledError` included.

    >>> import asyncio, pybwrap
    >>> from pybwrap import aio
    >>> asyncio.run(aio.run(["cat"], policy=pybwrap.SandboxPolicy.read_only(), input="hi", stdout=aio.PIPE, text=True))
    CompletedProcess(args=['cat'], returncode=0, stdout='hi', outcome='exited')
    """
    use_pipes(kwargs, has_input=input is not None, capture_output=capture_output)
    popen = await _launch(functools.partial(_WatchedPopen, args, **kwargs))
    try:
        process = await popen.connect(_STREAM_LIMIT)
        try:
            async with asyncio.timeout(timeout):
                stdout, stderr = await process.communicate(popen.encoded(input))
        except TimeoutError:
            popen.kill()
            stdout, stderr = await process.communicate()
            raise TimeoutExpired(args, timeout or 0.0, stdout, stderr) from None
    except (Exception, asyncio.CancelledError):
        await popen.finish()
        raise
    return completed(popen, popen.decoded(stdout), popen.decoded(stderr), check=check)


async def _launch(start: Callable[[], _WatchedPopen]) -> _WatchedPopen:
    """Runs *start* in a thread, and has the running loop watch what it returns. Cancelled, it leaves no sandbox."""
    # Not the executor's own future: cancelling that one while the thread works would lose the sandbox.
    launching: concurrent.futures.Future[_WatchedPopen] = concurrent.futures.Future()

    def work() -> None:
        if launching.set_running_or_notify_cancel():
            try:
                launching.set_result(start())
            except BaseException as error:  # noqa: BLE001 - it is raised where the result is awaited
                launching.set_exception(error)

    asyncio.get_running_loop().run_in_executor(None, work)
    try:
        popen = await asyncio.wrap_future(launching)
    except asyncio.CancelledError:
        if not launching.cancel():
            under_way = asyncio.wrap_future(launching)
            await _outlast(under_way)
            if under_way.exception() is None:
                popen = under_way.result()
                popen.watch()
                await popen.finish()
        raise
    popen.watch()
    return popen


async def _outlast(future: asyncio.Future[Any]) -> None:
    """Waits until *future* is done, however often this task is cancelled meanwhile."""
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            pass  # the caller raises the one that it is handling


class _WatchedPopen(Popen):
    """A `Popen` whose end an event loop sees. Made in any thread; from `watch` on it belongs to the loop's."""

    ended: asyncio.Future[int]

    def watch(self) -> None:
        """Has the running loop take the end when it comes."""
        self._loop = asyncio.get_running_loop()
        self.ended = self._loop.create_future()
        self._closers = {
            name: stream.close
            for name, stream in (("stdin", self.stdin), ("stdout", self.stdout), ("stderr", self.stderr))
            if stream is not None
        }
        self._loop.add_reader(self._sandbox.fileno(), self._on_end)

    def _on_end(self) -> None:
        fd = self._sandbox.fileno()
        self._loop.remove_reader(fd)  # it is closed when the end is taken
        if self._sandbox.wait(0) is None:  # a signal came between
            self._loop.add_reader(fd, self._on_end)
        elif self._overlay is None:
            self.ended.set_result(super().wait())
        else:  # collecting what the command has left may take a while
            self._loop.run_in_executor(None, super().wait).add_done_callback(self._publish)

    def _publish(self, collected: asyncio.Future[int]) -> None:
        if error := collected.exception():
            self.ended.set_exception(error)
        else:
            self.ended.set_result(collected.result())

    def poll(self) -> int | None:
        """The return code if the end is known. Taking it is for the loop, which watches a descriptor until then."""
        return self.returncode

    def __del__(self) -> None:
        # The loop keeps what it watches. It has been closed, then, and nobody will take the end.
        try:
            super().__del__()
        finally:
            if self._process is not None and self.returncode is None:
                self.kill()
                self.wait()

    async def finish(self) -> None:
        """Ends the sandbox, waits until nothing of it is left, whatever is cancelled meanwhile, and closes streams."""
        self.kill()
        await _outlast(self.ended)
        for close in self._closers.values():
            close()

    def close_streams(self) -> None:
        """Closes this side of the pipes now: the end of a file may not have come through the loop yet."""
        for close in self._closers.values():
            close()

    async def connect(self, limit: int) -> Process:
        """The process as a coroutine sees it, with this object's streams handed over to the loop."""
        stdout = await self._reader("stdout", self.stdout, limit)
        stderr = await self._reader("stderr", self.stderr, limit)
        # Last, for a writer that is dropped when this is cancelled would complain.
        stdin = await self._writer(self.stdin)
        return Process(self, stdin, stdout, stderr)

    async def _writer(self, stream: IO[Any] | None) -> asyncio.StreamWriter | None:
        if stream is None:
            return None
        loop = self._loop
        transport, protocol = await loop.connect_write_pipe(
            lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader(loop=loop), loop=loop), stream
        )
        writer = asyncio.StreamWriter(transport, protocol, None, loop)
        self._closers["stdin"] = functools.partial(_abort, transport)
        # This holds the writer, too, which would close when the caller drops it: the command may still be reading.
        self.ended.add_done_callback(lambda _: _abort(writer.transport))
        return writer

    async def _reader(self, name: str, stream: IO[Any] | None, limit: int) -> asyncio.StreamReader | None:
        if stream is None:
            return None
        loop = self._loop
        reader = asyncio.StreamReader(limit=limit, loop=loop)
        transport, _ = await loop.connect_read_pipe(lambda: _ReaderProtocol(reader, loop=loop), stream)
        self._closers[name] = transport.close
        return reader

    # What a coroutine does with `Popen`'s means, for its own have other names inside.

    async def capture_all(self, stream: IO[Any] | None, reader: asyncio.StreamReader | None) -> None:
        """Reads until the end, and keeps it as the output of *stream*."""
        if stream is None or reader is None:
            return
        self._captured.setdefault(stream, [])
        while chunk := await reader.read(_STREAM_LIMIT):
            self._capture(stream, chunk)

    def captured(self, stream: IO[Any] | None) -> bytes | None:
        """What was read of *stream*; None where nothing was to be read."""
        return self._output(stream)

    def encoded(self, given: bytes | str | None) -> bytes | None:
        """Input as it is written: text only in text mode, else `TypeError`."""
        return self._encoded(given)

    def decoded(self, output: bytes | None) -> bytes | str | None:
        """Output as the caller wants it."""
        return self._text(output)


class _ReaderProtocol(asyncio.StreamReaderProtocol):
    def connection_lost(self, exc: Exception | None) -> None:
        # EIO is how a terminal says that nobody holds its other end (pty(7)).
        super().connection_lost(None if isinstance(exc, OSError) and exc.errno == errno.EIO else exc)


def _abort(transport: asyncio.WriteTransport) -> None:
    """Closes at once, with what is not yet written: nobody is left to read it."""
    if not transport.is_closing() or transport.get_write_buffer_size():
        transport.abort()
