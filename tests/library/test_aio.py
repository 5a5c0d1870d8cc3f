"""`pybwrap.aio`: sandboxes under an event loop. Each test starts real ones, and must leave nothing behind."""

from __future__ import annotations

import asyncio
import asyncio.subprocess
import concurrent.futures
import contextlib
import gc
import inspect
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from pybwrap import Limits, Outcome, PolicyError, SandboxPolicy, aio
from pybwrap.launch.process import launch

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

Result = TypeVar("Result")

READ_ONLY = SandboxPolicy.read_only()
MANY = 200


def children() -> set[str]:
    """The pids of this process's children, zombies included."""
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.update((task / "children").read_text().split())
    return found


def open_fds() -> dict[str, str]:
    found = {}
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[fd.name] = str(fd.readlink())
    return found


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    fds, processes = open_fds(), children()
    yield
    assert children() <= processes
    assert open_fds() == fds


def in_loop(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """What a coroutine returns. It must have let go of every sandbox by then, and the loop have no complaint."""
    before = children()
    complaints: list[dict[str, Any]] = []

    async def main() -> Result:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        result = await coroutine
        assert children() <= before
        return result

    try:
        return asyncio.run(main())
    finally:
        gc.collect()  # which is when an exception that nobody has looked at is complained of
        assert complaints == []


async def sleeper(**kwargs: Any) -> aio.Process:  # noqa: ANN401 - create_subprocess_exec's
    return await aio.create_subprocess_exec("sleep", "60", policy=READ_ONLY, **kwargs)


# --- run ----------------------------------------------------------------------------------------------------------


def test_run_returns_what_the_command_came_to() -> None:
    command = ["sh", "-c", "echo out; echo err >&2; exit 3"]
    done = in_loop(aio.run(command, policy=READ_ONLY, capture_output=True))
    assert (done.args, done.returncode, done.stdout, done.stderr) == (command, 3, b"out\n", b"err\n")
    assert done.outcome is Outcome.EXITED
    assert done.usage.wall_time > 0
    assert done.enforced is not None
    assert done.enforced.engine == "bubblewrap"


def test_run_speaks_text_when_asked_to() -> None:
    done = in_loop(aio.run(["cat"], policy=READ_ONLY, input="grün\n", text=True, stdout=aio.PIPE))
    assert done.stdout == "grün\n"


def test_run_refuses_text_as_input_of_bytes() -> None:
    with pytest.raises(TypeError, match="bytes-like"):
        in_loop(aio.run(["cat"], policy=READ_ONLY, input="text"))


def test_run_with_check_raises_for_a_failure() -> None:
    with pytest.raises(subprocess.CalledProcessError) as raised:
        in_loop(aio.run(["sh", "-c", "echo out; exit 7"], policy=READ_ONLY, stdout=aio.PIPE, check=True))
    assert (raised.value.returncode, raised.value.output) == (7, b"out\n")


@pytest.mark.parametrize("given", [{"stdin": aio.PIPE, "input": b""}, {"stdout": aio.PIPE, "capture_output": True}])
def test_run_refuses_parameters_that_contradict_each_other(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="may not"):
        in_loop(aio.run(["true"], policy=READ_ONLY, **given))


def test_a_timeout_ends_the_sandbox_and_brings_the_output_so_far() -> None:
    command = ["sh", "-c", "echo out; echo err >&2; sleep 60"]
    with pytest.raises(subprocess.TimeoutExpired) as raised:
        in_loop(_expecting_nothing_left(aio.run(command, policy=READ_ONLY, capture_output=True, timeout=0.5)))
    assert (raised.value.cmd, raised.value.timeout) == (command, 0.5)
    assert (raised.value.output, raised.value.stderr) == (b"out\n", b"err\n")


def test_the_timeout_of_a_caller_ends_the_sandbox_too() -> None:
    async def main() -> None:
        async with asyncio.timeout(0.3):
            await _expecting_nothing_left(aio.run(["sleep", "60"], policy=READ_ONLY))

    with pytest.raises(TimeoutError):
        in_loop(main())


async def _expecting_nothing_left(coroutine: Coroutine[Any, Any, Result]) -> Result:
    before = children()
    try:
        return await coroutine
    finally:
        assert children() <= before


def test_output_beyond_the_limit_ends_the_sandbox() -> None:
    done = in_loop(aio.run(["yes"], policy=READ_ONLY, stdout=aio.PIPE, limits=Limits(output=100_001)))
    assert (len(done.stdout), done.outcome) == (100_001, Outcome.OUTPUT_LIMIT)


def test_the_limit_counts_both_streams_together() -> None:
    command = ["sh", "-c", "yes & yes >&2"]
    done = in_loop(aio.run(command, policy=READ_ONLY, capture_output=True, limits=Limits(output=50_000)))
    assert (len(done.stdout) + len(done.stderr), done.outcome) == (50_000, Outcome.OUTPUT_LIMIT)


def test_wall_time_ends_the_sandbox_without_an_exception() -> None:
    done = in_loop(aio.run(["sleep", "60"], policy=READ_ONLY, limits=Limits(wall_time=0.2)))
    assert (done.returncode, done.outcome) == (-signal.SIGKILL, Outcome.TIMED_OUT)


# --- Cancellation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 3])
def test_a_cancelled_run_raises_when_nothing_of_the_sandbox_is_left(times: int) -> None:
    async def main() -> None:
        # More output than is read ahead, and more input than a pipe takes: there is something to give up.
        command = ["sh", "-c", "yes & sleep 60"]
        process = _expecting_nothing_left(
            aio.run(command, policy=READ_ONLY, capture_output=True, input=bytes(1_000_000))
        )
        task = asyncio.create_task(process)
        await asyncio.sleep(0.3)
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task

    in_loop(main())


@pytest.mark.parametrize("milliseconds", [0, 0.5, 1, 2, 3, 4, 6, 8])
def test_a_launch_that_is_cancelled_leaves_no_sandbox(milliseconds: float) -> None:
    async def main() -> None:
        task = asyncio.create_task(sleeper(stdin=aio.PIPE, stdout=aio.PIPE, stderr=aio.PIPE))
        await asyncio.sleep(milliseconds / 1000)
        task.cancel()
        try:
            process = await task
        except asyncio.CancelledError:
            return
        process.kill()
        await process.wait()

    for _ in range(5):
        in_loop(main())


def test_a_launch_that_is_cancelled_more_than_once_leaves_no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    under_way = threading.Event()

    def slow_launch(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        under_way.set()
        time.sleep(0.2)
        return launch(*args, **kwargs)

    async def main() -> None:
        task = asyncio.create_task(_expecting_nothing_left(sleeper(stdout=aio.PIPE)))
        await asyncio.to_thread(under_way.wait)
        for _ in range(10):
            task.cancel()
            await asyncio.sleep(0.03)
        with pytest.raises(asyncio.CancelledError):
            await task

    monkeypatch.setattr("pybwrap.launch.request.launch", slow_launch)
    in_loop(main())


def test_a_launch_that_fails_after_it_was_cancelled_is_a_cancelled_one(monkeypatch: pytest.MonkeyPatch) -> None:
    under_way = threading.Event()

    def failing_launch(*_: object, **__: object) -> None:
        under_way.set()
        time.sleep(0.1)
        raise PolicyError("late")

    async def main() -> None:
        task = asyncio.create_task(sleeper())
        await asyncio.to_thread(under_way.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    monkeypatch.setattr("pybwrap.launch.request.launch", failing_launch)
    in_loop(main())


def test_a_launch_that_is_cancelled_before_its_turn_never_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(1))
        turn = threading.Event()
        busy = loop.run_in_executor(None, turn.wait)
        task = asyncio.create_task(sleeper())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        turn.set()
        await busy

    monkeypatch.setattr("pybwrap.launch.request.launch", lambda *_, **__: launches.append(1))
    in_loop(main())
    assert not launches


def test_a_wait_that_is_cancelled_leaves_the_command_running() -> None:
    async def main() -> None:
        process = await aio.create_subprocess_exec("cat", policy=READ_ONLY, stdin=aio.PIPE)
        waiting = [asyncio.create_task(process.wait()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        assert process.returncode is None
        assert process.stdin
        process.stdin.close()
        assert await asyncio.gather(*waiting[1:]) == [0, 0]

    in_loop(main())


def test_a_communicate_that_is_cancelled_loses_nothing() -> None:
    async def main() -> None:
        process = await aio.create_subprocess_shell(
            "cat; echo first; sleep 0.5; echo second", policy=READ_ONLY, stdin=aio.PIPE, stdout=aio.PIPE
        )
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(process.communicate(b"input\n"), 0.2)
        with pytest.raises(ValueError, match="after starting communication"):
            await process.communicate(b"more")
        assert await process.communicate() == (b"input\nfirst\nsecond\n", None)

    in_loop(main())


# --- Process --------------------------------------------------------------------------------------------------------


def test_a_conversation() -> None:
    async def main() -> None:
        process = await aio.create_subprocess_exec("cat", policy=READ_ONLY, stdin=aio.PIPE, stdout=aio.PIPE)
        assert process.stdin
        assert process.stdout
        assert process.stderr is None
        for line in (b"one\n", b"two\n"):
            process.stdin.write(line)
            await process.stdin.drain()
            assert await process.stdout.readline() == line
        assert (process.returncode, process.outcome, process.usage) == (None, None, None)
        process.stdin.close()
        await process.stdin.wait_closed()
        assert await process.stdout.read() == b""
        assert await process.wait() == process.returncode == 0
        assert process.outcome is Outcome.EXITED
        assert process.usage
        assert process.enforced.engine == "bubblewrap"
        assert repr(process) == f"<Process {process.pid}>"

    in_loop(main())


def test_megabytes_go_in_and_come_out() -> None:
    data = os.urandom(1_000_000) * 5
    done = in_loop(aio.run(["cat"], policy=READ_ONLY, input=data, stdout=aio.PIPE))
    assert done.stdout == data


def test_a_command_need_not_read_its_input() -> None:
    done = in_loop(aio.run(["true"], policy=READ_ONLY, input=bytes(5_000_000)))
    assert done.returncode == 0


def test_communicate_closes_stdin_without_input() -> None:
    async def main() -> None:
        process = await aio.create_subprocess_exec("cat", policy=READ_ONLY, stdin=aio.PIPE, stdout=aio.PIPE)
        assert await process.communicate() == (b"", None)

    in_loop(main())


def test_output_that_is_not_read_yet_waits_for_its_reader() -> None:
    async def main() -> None:
        command = ("head", "-c", "1000000", "/dev/zero")
        process = await aio.create_subprocess_exec(*command, policy=READ_ONLY, stdout=aio.PIPE, limit=1000)
        await asyncio.sleep(0.2)
        assert process.returncode is None
        assert process.stdout
        assert await process.stdout.read() == bytes(1_000_000)
        assert await process.wait() == 0

    in_loop(main())


def test_the_limit_bounds_a_line() -> None:
    async def main() -> None:
        process = await aio.create_subprocess_exec("echo", "x" * 300, policy=READ_ONLY, stdout=aio.PIPE, limit=100)
        assert process.stdout
        with pytest.raises(ValueError, match="limit"):
            await process.stdout.readline()
        await process.communicate()

    in_loop(main())


def test_signals_reach_the_command() -> None:
    async def main() -> None:
        script = "trap 'echo term' TERM; trap 'echo usr; exit 4' USR1; echo up; while :; do sleep 0.05; done"
        process = await aio.create_subprocess_shell(script, policy=READ_ONLY, stdout=aio.PIPE)
        assert process.stdout
        assert await process.stdout.readline() == b"up\n"
        process.terminate()
        assert await process.stdout.readline() == b"term\n"
        process.send_signal(signal.SIGUSR1)
        assert await process.communicate() == (b"usr\n", None)
        assert process.returncode == 4

    in_loop(main())


def test_kill_ends_everything_inside() -> None:
    async def main() -> None:
        process = await aio.create_subprocess_shell(
            "setsid sleep 60 & trap '' TERM; sleep 60", policy=READ_ONLY, stdout=aio.PIPE
        )
        process.kill()
        assert await process.communicate() == (b"", None)  # nobody holds the pipe any more
        assert (process.returncode, process.outcome) == (-signal.SIGKILL, Outcome.KILLED)

    in_loop(main())


def test_a_command_that_has_ended_is_no_process() -> None:
    async def main() -> None:
        process = await aio.create_subprocess_exec("true", policy=READ_ONLY)
        await process.wait()
        for action in (process.kill, process.terminate, lambda: process.send_signal(signal.SIGUSR1)):
            with pytest.raises(ProcessLookupError):
                action()
        assert process.returncode == 0

    in_loop(main())


def test_a_terminal_is_read_and_written_like_pipes() -> None:
    async def main() -> None:
        process = await aio.create_subprocess_shell(
            "test -t 0 && test -t 1 && test -t 2 && read line && echo got $line", policy=READ_ONLY, pty=True
        )
        stdout, stderr = await process.communicate(b"word\n")
        assert stdout is not None
        assert stdout.replace(b"\r", b"") == b"word\ngot word\n"
        assert stderr is None
        assert process.returncode == 0

    in_loop(main())


def test_a_terminal_that_nobody_reads_is_closed_with_its_sandbox() -> None:
    async def main() -> None:
        process = await aio.create_subprocess_exec("sleep", "0.2", policy=READ_ONLY, pty=True)
        await process.communicate(bytes(1_000_000))  # more than it takes
        assert process.returncode == 0

    in_loop(main())


def test_streams_go_where_they_are_sent(workspace: Path) -> None:
    async def main() -> None:
        with (workspace / "output").open("wb") as file:
            process = await aio.create_subprocess_shell(
                "cat; echo out; echo err >&2", aio.DEVNULL, file, aio.STDOUT, policy=READ_ONLY
            )
        assert (process.stdin, process.stdout, process.stderr) == (None, None, None)
        assert await process.communicate() == (None, None)

    in_loop(main())
    assert (workspace / "output").read_bytes() == b"out\nerr\n"


def test_the_sandbox_parameters_are_those_of_popen(workspace: Path) -> None:
    async def main(writing: int) -> None:
        process = await aio.create_subprocess_shell(
            f"pwd; echo $WORD; ulimit -n; echo passed >/dev/fd/{writing}; touch made",
            stdout=aio.PIPE,
            policy=SandboxPolicy.workspace_write(),
            cwd=workspace,
            env={"WORD": "word"},
            pass_fds=[writing],
            limits=Limits(open_files=50),
            require=["seccomp"],
        )
        assert await process.communicate() == (f"{workspace}\nword\n50\n".encode(), None)

    with os.fdopen(os.memfd_create("passed"), "rb+") as file:
        in_loop(main(file.fileno()))
        file.seek(0)
        assert file.read() == b"passed\n"
    assert (workspace / "made").exists()


def test_what_a_command_leaves_is_collected(workspace: Path) -> None:
    async def main() -> dict[str, bytes]:
        process = await aio.create_subprocess_shell(
            "cat given >made", policy=READ_ONLY, cwd=workspace, files={"given": b"content"}, collect=["made"]
        )
        assert process.files == {}
        await process.wait()
        return process.files

    assert in_loop(main()) == {"made": b"content"}
    assert list(workspace.iterdir()) == []


# --- What goes wrong ------------------------------------------------------------------------------------------------


def test_a_program_that_does_not_exist_is_an_error_as_in_asyncio() -> None:
    with pytest.raises(FileNotFoundError) as raised:
        in_loop(aio.create_subprocess_exec("/no/such/program", policy=READ_ONLY, stdin=aio.PIPE, stdout=aio.PIPE))
    assert raised.value.filename == "/no/such/program"


def test_a_required_layer_that_is_unknown_is_an_error() -> None:
    with pytest.raises(PolicyError, match="require: expected some of"):
        in_loop(sleeper(require=["magic"]))


@pytest.mark.parametrize("parameter", ["text", "shell", "bufsize", "universal_newlines"])
def test_parameters_that_asyncio_refuses_are_refused(parameter: str) -> None:
    with pytest.raises(TypeError, match=parameter):
        in_loop(sleeper(**{parameter: True}))


def test_a_shell_command_is_one_string() -> None:
    command: Any = ["echo", "word"]
    with pytest.raises(ValueError, match="must be a string"):
        in_loop(aio.create_subprocess_shell(command, policy=READ_ONLY))


# --- The loop -------------------------------------------------------------------------------------------------------


def test_the_loop_runs_on_while_a_sandbox_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow_launch(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        time.sleep(0.3)
        return launch(*args, **kwargs)

    async def main() -> int:
        steps = 0
        task = asyncio.create_task(aio.run(["true"], policy=READ_ONLY))
        while not task.done():
            await asyncio.sleep(0.01)
            steps += 1
        await task
        return steps

    monkeypatch.setattr("pybwrap.launch.request.launch", slow_launch)
    assert in_loop(main()) > 10


def test_a_sandbox_outlives_the_thread_that_started_it() -> None:
    async def main() -> None:
        executor = concurrent.futures.ThreadPoolExecutor(1)
        asyncio.get_running_loop().set_default_executor(executor)
        process = await aio.create_subprocess_exec("cat", policy=READ_ONLY, stdin=aio.PIPE, stdout=aio.PIPE)
        executor.shutdown(wait=True)
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"still here\n")
        assert await process.stdout.readline() == b"still here\n"
        assert await process.communicate() == (b"", None)

    in_loop(main())


def test_any_thread_may_have_the_loop() -> None:
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        command = ["sh", "-c", "sleep 0.1; echo done"]
        tasks = [
            threads.submit(asyncio.run, aio.run(command, policy=READ_ONLY, stdout=aio.PIPE, env={})) for _ in range(2)
        ]
        assert [task.result().stdout for task in tasks] == [b"done\n"] * 2


def test_two_hundred_sandboxes_live_under_one_loop() -> None:
    async def main() -> None:
        processes = await asyncio.gather(*(sleeper(stdout=aio.PIPE) for _ in range(MANY)))
        assert len({process.pid for process in processes}) == MANY
        assert all(process.returncode is None for process in processes)
        for process in processes:
            process.kill()
        ends = await asyncio.gather(*(process.communicate() for process in processes))
        assert ends == [(b"", None)] * MANY

    in_loop(main())


def test_two_hundred_runs_at_once_each_get_their_own_output() -> None:
    async def main() -> None:
        runs = (aio.run(["echo", str(number)], policy=READ_ONLY, stdout=aio.PIPE) for number in range(MANY))
        assert [int(done.stdout) for done in await asyncio.gather(*runs)] == list(range(MANY))

    in_loop(main())


def test_a_group_of_tasks_that_fails_ends_all_its_sandboxes() -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(30):
                group.create_task(aio.run(["sleep", "60"], policy=READ_ONLY))
            await asyncio.sleep(0.05)  # some are running, some are being built, some wait for a thread
            raise ZeroDivisionError

    with pytest.raises(ExceptionGroup):
        in_loop(_expecting_nothing_left(main()))


def test_a_process_that_nobody_waited_for_ends_with_its_loop() -> None:
    def leave_one() -> int:
        async def main() -> int:
            return (await sleeper()).pid

        pid = asyncio.run(main())
        gc.collect()
        return pid

    with pytest.warns(ResourceWarning, match="still running"):
        pid = leave_one()
    assert str(pid) not in children()


# --- Faces ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["create_subprocess_exec", "create_subprocess_shell"])
def test_the_functions_have_the_parameters_of_asyncio(name: str) -> None:
    theirs = inspect.signature(getattr(asyncio, name)).parameters
    ours = inspect.signature(getattr(aio, name)).parameters
    for parameter in theirs.values():
        if parameter.kind is not parameter.VAR_KEYWORD:
            mine = ours[parameter.name]
            assert (mine.kind, mine.default) == (parameter.kind, parameter.default)


def test_a_process_has_the_names_of_asyncio() -> None:
    async def main() -> None:
        ours = await aio.create_subprocess_exec("true", policy=READ_ONLY)
        theirs = await asyncio.create_subprocess_exec("true")
        assert {name for name in dir(theirs) if not name.startswith("_")} <= set(dir(ours))
        await asyncio.gather(ours.wait(), theirs.wait())

    in_loop(main())


def test_importing_pybwrap_does_not_import_asyncio() -> None:
    program = "import sys, pybwrap, pybwrap.launch.popen; sys.exit('asyncio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
