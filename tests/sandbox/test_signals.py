"""Signals reach the command, the exit status tells about them, and whatever is killed, nothing survives."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import clean_environment, command_line, names_in, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.conftest import Completed, RunPolicy, Word

READ_ONLY: dict[str, object] = {"type": "read-only"}
WORKSPACE_WRITE: dict[str, object] = {"type": "workspace-write", "exclude_slash_tmp": True}
FULL_ACCESS: dict[str, object] = {"type": "danger-full-access"}
EXTERNAL: dict[str, object] = {"type": "external-sandbox", "network_access": "restricted"}

Process = subprocess.Popen[str]


def policy_command(policy: Mapping[str, object], cwd: Path, *command: Word) -> list[Word]:
    return command_line("--sandbox-policy-cwd", cwd, "--sandbox-policy", json.dumps(policy), "--", *command)


@contextmanager
def started(command: Sequence[Word], cwd: Path) -> Iterator[Process]:
    """A process that has said `ready`, with its stdout; it is killed at the end if it still runs."""
    with subprocess.Popen(
        command,
        cwd=cwd,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def ended(process: Process) -> tuple[int, str, str]:
    """The exit status and output, once nothing is left that holds the output."""
    stdout, stderr = process.communicate(timeout=30)
    return process.returncode, stdout, stderr


def children(pid: int) -> list[int]:
    found = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        pass  # it has ended meanwhile, and has no children any more
    return found


def is_running(pid: int) -> bool:
    try:
        return state(pid) not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def descendants(pid: int) -> list[int]:
    below = children(pid)
    return below + [further for child in below for further in descendants(child)]


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


RECEIVER = """if True:
    import os, signal, sys, time

    def handle(number, frame):
        os.write(1, signal.Signals(number).name.encode() + b"\\n")  # print() cannot be entered twice
        if number in final:
            sys.exit(40 + number)

    final = {int(number) for number in sys.argv[1].split()}
    for number in (*final, *map(int, sys.argv[2].split())):
        signal.signal(number, handle)
    os.write(1, b"ready\\n")
    while True:
        time.sleep(0.02)
"""


def receiver(*final: int, also: Sequence[int] = ()) -> list[Word]:
    """A command that names the signals it gets, and ends with 40 + N after one of *final*."""
    return [
        *(sys.executable, "-I", "-c", RECEIVER),
        *(" ".join(str(int(number)) for number in numbers) for numbers in (final, also)),
    ]


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2]
)
@pytest.mark.parametrize("policy", [READ_ONLY, FULL_ACCESS, EXTERNAL], ids=lambda policy: policy["type"])
def test_a_handler_of_the_command_runs_and_decides_the_exit_status(
    workspace: Path, policy: dict[str, object], number: signal.Signals
) -> None:
    with started(policy_command(policy, workspace, *receiver(number)), workspace) as process:
        process.send_signal(number)
        assert ended(process) == (40 + number, f"{number.name}\n", "")


def test_a_command_that_lives_through_a_signal_goes_on(workspace: Path) -> None:
    command = receiver(signal.SIGUSR1, also=[signal.SIGTERM])
    with started(policy_command(READ_ONLY, workspace, *command), workspace) as process:
        assert process.stdout is not None
        for _ in range(3):
            process.send_signal(signal.SIGTERM)
            assert process.stdout.readline() == "SIGTERM\n"
        process.send_signal(signal.SIGUSR1)
        assert ended(process) == (40 + signal.SIGUSR1, "SIGUSR1\n", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGALRM])
def test_a_signal_that_ends_the_command_is_128_and_its_number(workspace: Path, number: signal.Signals) -> None:
    command = policy_command(WORKSPACE_WRITE, workspace, "sh", "-c", "echo ready; exec sleep 300")
    with started(command, workspace) as process:
        process.send_signal(number)
        assert ended(process) == (128 + number, "", "")
    assert names_in(workspace) == []


def test_a_signal_reaches_the_children_of_the_command(workspace: Path) -> None:
    script = 'trap "wait; echo parent; exit 5" TERM; "$@" & wait'
    command: list[Word] = ["sh", "-c", script, "sh", *receiver(signal.SIGTERM)]
    with started(policy_command(READ_ONLY, workspace, *command), workspace) as process:
        process.send_signal(signal.SIGTERM)
        assert ended(process) == (5, "SIGTERM\nparent\n", "")


def test_a_signal_during_the_setup_is_not_lost(workspace: Path) -> None:
    for delay in range(0, 100, 5):
        command = policy_command(WORKSPACE_WRITE, workspace, "sleep", "300")
        with subprocess.Popen(command, cwd=workspace, env=clean_environment(), stderr=subprocess.PIPE) as process:
            try:
                time.sleep(delay / 1000)
                process.send_signal(signal.SIGTERM)
                assert process.wait(30) in {-signal.SIGTERM, 128 + signal.SIGTERM}
            finally:
                process.kill()
        assert names_in(workspace) == []


class TestKilled:
    SCRIPT = "setsid sleep 300 & sleep 300 & (sleep 300 &) ; echo ready; exec sleep 300"

    def test_what_is_inside_ends_with_the_process_that_owns_it(self, workspace: Path) -> None:
        command = policy_command(WORKSPACE_WRITE, workspace, "sh", "-c", self.SCRIPT)
        with started(command, workspace) as process:
            assert ".git" in os.listdir(workspace)
            process.kill()
            # The end of the output: everything inside has it, and nothing else.
            assert ended(process) == (-signal.SIGKILL, "", "")
        assert wait_until(lambda: names_in(workspace) == [])

    @pytest.mark.parametrize("generation", [1, 2], ids=["monitor", "init"])
    def test_what_is_inside_ends_with_the_processes_that_hold_it(self, workspace: Path, generation: int) -> None:
        command = policy_command(WORKSPACE_WRITE, workspace, "sh", "-c", self.SCRIPT)
        with started(command, workspace) as process:
            target = process.pid
            for _ in range(generation):
                (target,) = children(target)
            os.kill(target, signal.SIGKILL)
            status, stdout, stderr = ended(process)
        assert (status, stdout) == (125, "")
        assert stderr == "pybwrap: the sandbox was killed from outside before its command ended\n"
        assert names_in(workspace) == []

    def test_nothing_stays_of_a_sandbox_whose_monitor_is_killed_while_it_is_built(self, workspace: Path) -> None:
        command = policy_command(WORKSPACE_WRITE, workspace, "sleep", "300")
        for _ in range(40):
            inits: list[int] = []
            with subprocess.Popen(
                command, cwd=workspace, env=clean_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            ) as process:
                try:
                    # As soon as the init is there: the monitor has not given it its identity yet.
                    while process.poll() is None and not inits:
                        for monitor in children(process.pid):
                            inits = children(monitor)
                            if inits:
                                os.kill(monitor, signal.SIGKILL)
                    has_ended = wait_until(lambda: process.poll() is not None, seconds=10)
                    has_left_nothing = wait_until(lambda: not any(map(is_running, inits)), seconds=5)  # noqa: B023
                finally:
                    process.kill()
                    for pid in filter(is_running, inits):
                        os.kill(pid, signal.SIGKILL)
            if not (has_ended and has_left_nothing):
                # What the test has found it must not leave behind; the next run removes the placeholders.
                subprocess.run([*command[:-2], "true"], cwd=workspace, env=clean_environment(), check=False)
            assert (has_ended, has_left_nothing) == (True, True)
        assert wait_until(lambda: names_in(workspace) == [])

    def test_everything_killed_at_once_leaves_what_the_next_run_removes(self, workspace: Path) -> None:
        command = policy_command(WORKSPACE_WRITE, workspace, "sh", "-c", self.SCRIPT)
        with started(command, workspace) as process:
            (monitor,) = children(process.pid)
            for pid in (process.pid, monitor):
                os.kill(pid, signal.SIGSTOP)
            for pid in (monitor, process.pid):
                os.kill(pid, signal.SIGKILL)
            assert ended(process) == (-signal.SIGKILL, "", "")
        done = subprocess.run(
            policy_command(READ_ONLY, workspace, "ls", "-A"),
            cwd=workspace,
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert names_in(workspace) == []

    def test_the_command_killed_from_outside_is_reported_as_such(self, workspace: Path) -> None:
        with started(
            policy_command(READ_ONLY, workspace, "sh", "-c", "echo ready; exec sleep 300"), workspace
        ) as process:
            os.kill(descendants(process.pid)[-1], signal.SIGKILL)
            assert ended(process) == (137, "", "")


class TestSurvivors:
    @pytest.mark.parametrize(
        "left", ["sleep 300 &", "setsid sleep 300 &", "(setsid sh -c 'trap \"\" TERM HUP; sleep 300' &);"]
    )
    @pytest.mark.parametrize("options", [[], ["--no-proc"]], ids=["", "no-proc"])
    def test_children_in_the_background_end_with_the_command(
        self, run_policy: RunPolicy, left: str, options: list[str]
    ) -> None:
        start = time.monotonic()
        # The output ends only when the last process that holds it has.
        done = run_policy(READ_ONLY, ["sh", "-c", f"{left} echo done"], options=options)
        assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
        assert time.monotonic() - start < 30

    def test_a_placeholder_is_gone_when_the_command_has_ended(self, run_policy: RunPolicy, workspace: Path) -> None:
        for _ in range(5):
            assert run_policy(WORKSPACE_WRITE, ["sh", "-c", "sleep 300 & exit 3"]).returncode == 3
            assert names_in(workspace) == []


class TestTerminal:
    @contextmanager
    def on_terminal(self, workspace: Path, *command: Word) -> Iterator[tuple[Process, int]]:
        """The process with a new terminal as its controlling one, and the terminal's other side."""
        master, slave = pty.openpty()
        try:
            with subprocess.Popen(
                ["setsid", "--ctty", *policy_command(READ_ONLY, workspace, *command)],
                cwd=workspace,
                env=clean_environment(),
                stdin=slave,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as process:
                os.close(slave)
                slave = -1
                try:
                    yield process, master
                finally:
                    process.kill()
        finally:
            os.close(master)
            if slave >= 0:
                os.close(slave)

    @pytest.mark.parametrize(("key", "number"), [(b"\x03", signal.SIGINT), (b"\x1c", signal.SIGQUIT)])
    def test_a_key_that_interrupts_reaches_the_command(
        self, workspace: Path, key: bytes, number: signal.Signals
    ) -> None:
        with self.on_terminal(workspace, *receiver(number)) as (process, terminal):
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            os.write(terminal, key)
            assert ended(process) == (40 + number, f"{number.name}\n", "")

    def test_ctrl_c_ends_a_command_without_a_handler(self, workspace: Path) -> None:
        with self.on_terminal(workspace, "sh", "-c", "echo ready; exec sleep 300") as (process, terminal):
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            os.write(terminal, b"\x03")
            assert ended(process) == (128 + signal.SIGINT, "", "")

    def test_the_command_can_read_from_it_but_has_no_controlling_one(self, workspace: Path) -> None:
        script = 'test -t 0 && echo terminal; (: < /dev/tty) 2>/dev/null || echo none; read line; echo "$line"'
        with self.on_terminal(workspace, "sh", "-c", script) as (process, terminal):
            os.write(terminal, b"typed\n")
            assert ended(process) == (0, "terminal\nnone\ntyped\n", "")


class TestStopped:
    def test_a_stop_from_the_terminal_stops_the_command_and_continues_it(self, workspace: Path) -> None:
        script = "echo ready; sleep 0.3; echo slept; exit 6"
        with started(policy_command(READ_ONLY, workspace, "sh", "-c", script), workspace) as process:
            (*_, command) = [pid for pid in descendants(process.pid) if "sleep 0.3; echo" in arguments(pid)]
            process.send_signal(signal.SIGTSTP)
            assert wait_until(lambda: state(process.pid) == "T")
            assert wait_until(lambda: state(command) == "T")
            time.sleep(0.5)
            assert (state(process.pid), state(command)) == ("T", "T")
            process.send_signal(signal.SIGCONT)
            assert ended(process) == (6, "slept\n", "")

    def test_a_stop_that_cannot_be_caught_does_not_lose_the_status(self, workspace: Path) -> None:
        with started(
            policy_command(READ_ONLY, workspace, "sh", "-c", "echo ready; sleep 0.1; exit 6"), workspace
        ) as process:
            process.send_signal(signal.SIGSTOP)
            assert wait_until(lambda: state(process.pid) == "T")
            time.sleep(0.3)
            process.send_signal(signal.SIGCONT)
            assert ended(process) == (6, "", "")


def arguments(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


class TestDispositions:
    EXECUTE = "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"
    IGNORE_AND_BLOCK = """if True:
        import os, signal, sys
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
            try:
                signal.signal(number, signal.SIG_IGN)
            except OSError:
                pass
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        os.execvp(sys.argv[1], sys.argv[1:])
    """

    @pytest.mark.parametrize(
        "policy", [READ_ONLY, WORKSPACE_WRITE, FULL_ACCESS, EXTERNAL], ids=lambda policy: policy["type"]
    )
    def test_they_are_the_default_whatever_the_caller_ignores_and_blocks(
        self, workspace: Path, policy: dict[str, object]
    ) -> None:
        done = subprocess.run(
            [
                *(sys.executable, "-c", self.IGNORE_AND_BLOCK),
                *policy_command(policy, workspace, "grep", "-E", "^Sig(Ign|Blk):", "/proc/self/status"),
            ],
            cwd=workspace,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stderr == ""
        assert done.stdout == "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"

    def test_a_caller_that_ignores_its_children_gets_the_status(self, workspace: Path) -> None:
        ignore = f"import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); {self.EXECUTE}"
        done = subprocess.run(
            [sys.executable, "-c", ignore, *policy_command(WORKSPACE_WRITE, workspace, "sh", "-c", "exit 7")],
            cwd=workspace,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (7, "", "")
        assert names_in(workspace) == []

    @pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])
    def test_a_signal_that_the_caller_ignores_is_not_handed_on(self, workspace: Path, number: signal.Signals) -> None:
        # nohup ignores HUP; a shell that runs a program with `&` ignores INT and QUIT for it.
        ignore = f"import signal; signal.signal({number.value}, signal.SIG_IGN); {self.EXECUTE}"
        inside = receiver(signal.SIGUSR1, also=[number])
        command = [sys.executable, "-c", ignore, *policy_command(READ_ONLY, workspace, *inside)]
        with started(command, workspace) as process:
            process.send_signal(number)
            time.sleep(0.2)
            process.send_signal(signal.SIGUSR1)
            assert ended(process) == (40 + signal.SIGUSR1, "SIGUSR1\n", "")


def test_many_sandboxes_at_once_do_not_disturb_each_other(workspace: Path) -> None:
    command = policy_command({"type": "workspace-write"}, workspace, "sh", "-c", "ls -A; sleep 0.1; exit $0")
    running = [
        subprocess.Popen(
            [*command, str(number)],
            cwd=workspace,
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(12)
    ]
    results = []
    for process in running:
        with process:
            results.append((process.communicate(timeout=60)[0].split(), process.returncode))
    assert results == [([".agents", ".aws", ".codex", ".git"], number) for number in range(12)]
    assert names_in(workspace) == []


def test_sandboxes_that_come_and_go_share_their_placeholders(workspace: Path) -> None:
    command = policy_command({"type": "workspace-write"}, workspace, "sh", "-c", "! mkdir .codex 2>/dev/null")

    def job(_: int) -> Completed:
        return subprocess.run(
            command, cwd=workspace, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False
        )

    with ThreadPoolExecutor(8) as pool:
        results = {(done.returncode, done.stderr) for done in pool.map(job, range(120))}
    assert results == {(0, "")}
    assert names_in(workspace) == []
