"""`pybwrap.Popen`: what `subprocess.Popen` does, in a sandbox."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import pybwrap
from pybwrap import PIPE, Outcome, SandboxPolicy
from tests.conftest import wait_until

if TYPE_CHECKING:
    from pathlib import Path

READ_ONLY = SandboxPolicy.read_only()


def popen(*words: str, **parameters: Any) -> pybwrap.Popen:  # noqa: ANN401 - as Popen has it
    return pybwrap.Popen(words, policy=READ_ONLY, **parameters)


def test_poll_wait_and_returncode() -> None:
    with popen("sh", "-c", "read line; exit 5", stdin=PIPE) as process:
        assert process.poll() is None
        assert process.returncode is None
        with pytest.raises(pybwrap.TimeoutExpired):
            process.wait(0.05)
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.wait(10) == 5
        assert process.poll() == 5
        assert process.wait() == 5


def test_a_conversation_through_pipes() -> None:
    with popen(
        "sh", "-c", "while read x; do echo got $x; done", stdin=PIPE, stdout=PIPE, text=True, bufsize=1
    ) as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        for word in ("one", "two"):
            shell.stdin.write(f"{word}\n")
            assert shell.stdout.readline() == f"got {word}\n"
        shell.stdin.close()
    assert shell.returncode == 0


def test_communicate_can_be_repeated_after_a_timeout_and_loses_nothing() -> None:
    with popen("sh", "-c", "echo a; sleep 0.5; echo b", stdout=PIPE) as process:
        with pytest.raises(pybwrap.TimeoutExpired) as caught:
            process.communicate(timeout=0.2)
        assert caught.value.output == b"a\n"
        assert process.communicate() == (b"a\nb\n", None)


def test_a_handler_of_the_command_runs_on_terminate() -> None:
    script = "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.02; done"
    with popen("sh", "-c", script, stdout=PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        assert process.stdout.read() == b"bye\n"
    assert (process.returncode, process.outcome) == (7, Outcome.EXITED)


def test_kill_ends_everything_inside(workspace: Path) -> None:
    script = "(setsid sh -c 'sleep 1; touch survivor' &) ; trap '' TERM; echo ready; sleep 9"
    with pybwrap.Popen(["sh", "-c", script], policy=SandboxPolicy.workspace_write(), cwd=workspace, stdout=PIPE) as end:
        assert end.stdout is not None
        end.stdout.readline()
        end.kill()
        end.kill()
    assert (end.returncode, end.outcome) == (-signal.SIGKILL, Outcome.KILLED)
    end.send_signal(signal.SIGTERM)  # of no consequence, as in subprocess
    time.sleep(1.2)
    assert not (workspace / "survivor").exists()


def test_the_end_can_be_polled_for_through_the_pidfd() -> None:
    process = popen("sleep", "0.1")
    poller = select.poll()
    poller.register(process.pidfd, select.POLLIN)
    assert poller.poll(10_000)
    assert process.wait() == 0


def test_sigchld_handlers_and_waiting_for_any_child_disturb_nothing() -> None:
    caught: list[int] = []
    previous = signal.signal(signal.SIGCHLD, lambda number, _: caught.append(number))
    stop = threading.Event()

    def reap_everything() -> None:
        while not stop.is_set():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)

    thief = threading.Thread(target=reap_everything)
    thief.start()
    try:
        codes = [popen("sh", "-c", f"exit {number}").wait() for number in range(20)]
    finally:
        stop.set()
        thief.join()
        signal.signal(signal.SIGCHLD, previous)
    assert codes == list(range(20))


def test_an_ignored_sigchld_disturbs_nothing() -> None:
    code = (
        "import pybwrap, signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN);"
        "print(pybwrap.run(['sh', '-c', 'exit 6'], policy=pybwrap.SandboxPolicy.read_only()).returncode)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"6\n"


def test_several_threads_can_wait_for_one_process() -> None:
    process = popen("sh", "-c", "sleep 0.2; exit 9")
    codes: list[int] = []
    threads = [threading.Thread(target=lambda: codes.append(process.wait())) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [9] * 5


def test_a_sandbox_outlives_the_thread_that_started_it() -> None:
    started: list[pybwrap.Popen] = []
    thread = threading.Thread(target=lambda: started.append(popen("sh", "-c", "sleep 0.4; exit 3")))
    thread.start()
    thread.join()
    assert started[0].wait() == 3


def test_launching_after_a_fork_works_in_the_child() -> None:
    code = """
import os, pybwrap, warnings
warnings.simplefilter("ignore")
policy = pybwrap.SandboxPolicy.read_only()
pybwrap.run(["true"], policy=policy)
pid = os.fork()
if pid == 0:
    os._exit(pybwrap.run(["sh", "-c", "exit 8"], policy=policy).returncode)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"8\n"


def test_a_terminal_of_its_own_with_job_control() -> None:
    with popen("bash", "-i", pty=True, env={"PS1": "", "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}) as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        shell.set_window_size(rows=33, columns=99)
        shell.stdin.write(b"stty -echo; stty size\n")
        shell.stdin.flush()
        assert wait_for(shell.stdout, b"33 99\r\n")
        shell.stdin.write(b"sleep 30\n")
        shell.stdin.flush()
        time.sleep(0.3)
        shell.stdin.write(b"\x03")  # Ctrl-C
        shell.stdin.write(b"echo still here; [[ $- == *m* ]] && echo jobs; exit\n")
        shell.stdin.flush()
        assert wait_for(shell.stdout, b"still here\r\njobs\r\n")
        shell.kill()


def wait_for(stream: Any, expected: bytes) -> bool:  # noqa: ANN401 - any file
    seen = b""

    def arrives() -> bool:
        nonlocal seen
        if select.select([stream.fileno()], [], [], 0)[0]:
            seen += os.read(stream.fileno(), 4096)
        return expected in seen

    return wait_until(arrives, seconds=10)


def test_the_terminal_of_the_caller_cannot_be_reached() -> None:
    master, slave = os.openpty()
    code = (
        "import pybwrap; pybwrap.run(['sh', '-c', 'exec 2>&1; : < /dev/tty; echo $?'],"
        "policy=pybwrap.SandboxPolicy.read_only())"
    )
    subprocess.run(
        [sys.executable, "-c", code], stdin=slave, stdout=slave, stderr=slave, start_new_session=True, check=True
    )
    os.close(slave)
    shown = os.read(master, 4096)
    os.close(master)
    assert b"No such device or address" in shown


def test_one_that_is_dropped_while_it_runs_warns() -> None:
    process = popen("sleep", "0.2")
    pid = process.pid
    with pytest.warns(ResourceWarning, match=f"{pid} is still running"):  # noqa: PT031 - whichever collects it
        del process
        gc.collect()
    os.waitpid(pid, 0)


def test_repr_says_how_it_ended() -> None:
    with popen("true") as process:
        assert repr(process) == "<Popen: returncode: None args: ('true',)>"
    assert repr(process) == "<Popen: returncode: 0 args: ('true',)>"
