"""Whose death ends a sandbox, whose does not, and that nothing of it is left in the process that ran it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import clean_environment, wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

PREAMBLE = """
import os, signal, sys, threading, time
from pybwrap import SandboxPolicy
from pybwrap.cli.execution import plan_here
from pybwrap.launch import process as launching
from pybwrap.plan.spec import Command

profile = SandboxPolicy.workspace_write(exclude_slash_tmp=True, exclude_tmpdir_env_var=True).to_profile()
cwd = os.getcwd()
null = os.open(os.devnull, os.O_RDWR)

def start(script, stdout=1):
    command = Command("sh", ("sh", "-c", script), cwd, dict(os.environ))
    return launching.launch(plan_here(profile, cwd), command, streams=(null, stdout, 2))

def descriptors():
    return sorted(os.listdir("/proc/self/fd"))[:-1]
"""

BEAT = "while :; do date +%N > beat; sleep 0.01; done"


def script_command(script: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", PREAMBLE + textwrap.dedent(script), *arguments]


def run_script(script: str, cwd: Path, *arguments: str) -> list[str]:
    """Runs *script* after the preamble, and returns the lines that it prints; stderr must stay empty."""
    done = subprocess.run(
        script_command(script, *arguments),
        cwd=cwd,
        env=clean_environment(PYTHONUNBUFFERED="1"),  # what it prints and what its commands print are one text
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout.splitlines()


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(entry.name))
        except OSError:
            continue  # it has just ended
    return found


def beats(workspace: Path) -> bool:
    """Whether something inside still writes the file `beat`."""
    beat = workspace / "beat"
    beat.unlink(missing_ok=True)
    return wait_until(beat.exists, 0.5)


class Started:
    """A script that has launched a sandbox, and the processes of that."""

    def __init__(self, script: str, cwd: Path) -> None:
        self.process = subprocess.Popen(
            script_command(script), cwd=cwd, env=clean_environment(), stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.monitor = int(self.process.stdout.readline())
        (self.init,) = children(self.monitor)
        self.inside = [self.init, *children(self.init)]

    def close(self) -> str:
        self.process.kill()
        return self.process.communicate(timeout=30)[0]


# --- Who dies -----------------------------------------------------------------------------------------------------


def test_a_sandbox_dies_with_its_owner(workspace: Path) -> None:
    started = Started(f"process = start({BEAT!r}); print(process.pid, flush=True); process.wait()", workspace)
    assert beats(workspace)

    started.close()

    assert wait_until(lambda: all(map(has_ended, (started.monitor, *started.inside))))
    assert not beats(workspace)
    assert wait_until(lambda: [path.name for path in workspace.iterdir()] in ([], ["beat"]))


def test_a_sandbox_dies_with_its_owner_although_a_fork_of_that_lives_on(workspace: Path) -> None:
    script = f"""
        process = start({BEAT!r})
        child = os.fork()
        if child == 0:
            os.close(1)
            os.dup2(null, 1)
            time.sleep(60)
            os._exit(0)
        print(process.pid, flush=True)
        print(child, flush=True)
        time.sleep(60)
    """
    started = Started(script, workspace)
    assert started.process.stdout is not None
    child = int(started.process.stdout.readline())
    try:
        assert beats(workspace)
        started.close()
        assert wait_until(lambda: all(map(has_ended, started.inside)))
        assert not has_ended(child)
        assert not beats(workspace)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_sandbox_outlives_the_thread_that_launched_it(workspace: Path) -> None:
    script = """
        started = []
        thread = threading.Thread(target=lambda: started.append(start("sleep 0.5; echo alive; exit 4")))
        thread.start()
        thread.join()
        ended = started[0].wait()
        print(os.waitstatus_to_exitcode(ended.wait_status))
    """

    assert run_script(script, workspace) == ["alive", "4"]


@pytest.mark.parametrize("victim", ["monitor", "init"])
def test_everything_inside_dies_with_the_monitor_or_the_init_and_the_owner_is_told(
    workspace: Path, victim: str
) -> None:
    script = f"""
        process = start("setsid sh -c {BEAT!r} & sleep 60")
        print(process.pid, flush=True)
        print(process.wait().wait_status, flush=True)
        print(descriptors(), flush=True)
    """
    started = Started(script, workspace)
    assert beats(workspace)
    inside = [*started.inside, *(pid for process in started.inside[1:] for pid in children(process))]

    os.kill(getattr(started, victim), signal.SIGKILL)

    assert started.process.stdout is not None
    assert started.process.stdout.readline() == "None\n"
    assert wait_until(lambda: all(map(has_ended, inside)), 1)
    assert not beats(workspace)
    started.close()


def test_a_command_that_ends_takes_its_children_along_before_its_end_is_told(workspace: Path) -> None:
    script = """
        process = start("(trap '' HUP TERM; setsid sleep 60) > /dev/null 2>&1 & exit 0")
        init = open(f"/proc/{process.pid}/task/{process.pid}/children").read().split()
        process.wait()
        print([pid for pid in init if os.path.exists(f"/proc/{pid}")], os.path.exists(f"/proc/{process.pid}"))
    """

    assert run_script(script, workspace) == ["[] False"]


# --- What is left in the owner ------------------------------------------------------------------------------------


def test_two_hundred_launches_leave_no_child_and_no_descriptor(workspace: Path) -> None:
    script = """
        start("true").wait()
        before = descriptors()
        for number in range(200):
            process = start(f"exit {number % 7}")
            if number % 10 == 0:
                process.kill()
            ended = process.wait()
            assert number % 10 == 0 or os.waitstatus_to_exitcode(ended.wait_status) == number % 7
        print(descriptors() == before)
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            print("no children")
    """

    assert run_script(script, workspace) == ["True", "no children"]


def test_a_launch_that_fails_leaves_no_child_and_no_descriptor(workspace: Path) -> None:
    script = """
        from pybwrap import SetupError
        start("true").wait()
        before = descriptors()
        for number in range(20):
            for executable, directory in (("/nonexistent", cwd), ("true", "/nonexistent")):
                try:
                    launching.launch(plan_here(profile, cwd), Command(executable, ("x",), directory, {}))
                except OSError as error:
                    assert error.errno == 2, error
                else:
                    raise AssertionError("was launched")
        print(descriptors() == before)
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            print("no children")
    """

    assert run_script(script, workspace) == ["True", "no children"]


def test_sixteen_threads_launch_at_once(workspace: Path) -> None:
    script = """
        barrier = threading.Barrier(16)
        codes = {}
        before = descriptors()

        def run(number):
            barrier.wait()
            for turn in range(3):
                ended = start(f"exit {number}").wait()
                codes[number, turn] = os.waitstatus_to_exitcode(ended.wait_status)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(codes == {(number, turn): number for number in range(16) for turn in range(3)})
        print(descriptors() == before)
    """

    assert run_script(script, workspace) == ["True", "True"]


def test_no_thread_hands_its_descriptors_to_the_sandbox_of_another(workspace: Path) -> None:
    script = """
        outputs = []
        def run(number):
            for _ in range(5):
                reading, writing = os.pipe()
                process = start("echo out; ls /proc/self/fd | wc -l; sleep 0.05", writing)
                os.close(writing)
                with os.fdopen(reading) as file:
                    # Ends only when nobody else holds the pipe.
                    outputs.append(file.read())
                process.wait()
        threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(set(outputs))
    """

    assert run_script(script, workspace) == [repr({"out\n4\n"})]


def test_a_child_of_fork_can_launch_as_its_parent_can(workspace: Path) -> None:
    script = """
        start("exit 0").wait()
        child = os.fork()
        code = os.waitstatus_to_exitcode(start("exit 5").wait().wait_status)
        if child == 0:
            os._exit(code)
        print(code, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """

    assert run_script(script, workspace) == ["5 5"]


def test_wait_tells_the_exit_status_although_a_handler_reaps_every_child(workspace: Path) -> None:
    script = """
        def reap(*_):
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                pass

        signal.signal(signal.SIGCHLD, reap)
        print([os.waitstatus_to_exitcode(start(f"exit {n}").wait().wait_status) for n in range(10)])
    """

    assert run_script(script, workspace) == ["[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]"]


def test_wait_tells_the_exit_status_although_a_thread_waits_for_every_child(workspace: Path) -> None:
    script = """
        stop = threading.Event()
        reaped = []

        def reap():
            while not stop.is_set():
                try:
                    reaped.append(os.waitpid(-1, 0)[0])
                except ChildProcessError:
                    time.sleep(0.001)

        thread = threading.Thread(target=reap)
        thread.start()
        print([os.waitstatus_to_exitcode(start(f"sleep 0.01; exit {n}").wait().wait_status) for n in range(10)])
        stop.set()
        thread.join()
        print(len(reaped) > 0)
    """

    assert run_script(script, workspace) == ["[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]", "True"]


def test_ignored_children_do_not_hide_the_exit_status(workspace: Path) -> None:
    script = """
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        print([os.waitstatus_to_exitcode(start(f"exit {n}").wait().wait_status) for n in range(5)])
    """

    assert run_script(script, workspace) == ["[0, 1, 2, 3, 4]"]


def test_signals_handled_while_waiting_do_not_end_the_wait(workspace: Path) -> None:
    script = """
        handled = []
        signal.signal(signal.SIGALRM, lambda *_: handled.append(1))
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        print(os.waitstatus_to_exitcode(start("sleep 0.5; exit 3").wait().wait_status))
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(len(handled) > 5)
    """

    assert run_script(script, workspace) == ["3", "True"]


# --- Where the helper cannot be executed --------------------------------------------------------------------------

NO_HELPER = """
launching.HELPER = os.path.join(cwd, "helper")
with open(launching.HELPER, "w"):
    pass  # without any permission to execute it
"""


@pytest.mark.parametrize("preparation", ["", NO_HELPER], ids=["helper", "fork"])
class TestBothWays:
    """A launch ends alike and gives nothing away whether the helper was executed or this process was forked."""

    def run(self, workspace: Path, preparation: str, script: str, *arguments: str) -> Sequence[str]:
        return run_script(preparation + textwrap.dedent(script), workspace, *arguments)

    def test_results_are_the_same(self, workspace: Path, preparation: str) -> None:
        script = """
            print(os.waitstatus_to_exitcode(start("exit 3").wait().wait_status))
            print(os.waitstatus_to_exitcode(start("kill -9 $$").wait().wait_status))
            print(start("ls /proc/self/fd | wc -l; sed -n /^Sig[BI]/p /proc/self/status").wait().wait_status)
            try:
                launching.launch(plan_here(profile, cwd), Command("/nonexistent", ("x",), cwd, {}))
            except launching.ExecError as error:
                print(error.errno)
            try:
                launching.launch(plan_here(profile, cwd), Command("true", ("true",), "/nonexistent", {}))
            except OSError as error:
                print(error.errno, error.step)
            process = start("sleep 60")
            process.kill()
            print(process.wait().wait_status)
        """
        zero = "0" * 16

        lines = self.run(workspace, preparation, script)

        assert list(lines) == [
            *("3", "-9", "4", f"SigBlk:\t{zero}", f"SigIgn:\t{zero}", "0"),
            *("2", "2 working directory", "None"),
        ]

    def test_nothing_of_the_owner_can_be_read_inside(self, workspace: Path, preparation: str) -> None:
        script = """
            reading, writing = os.pipe()
            inside = (
                "for p in /proc/[0-9]*; do cat $p/environ $p/maps $p/cmdline $p/task/*/environ; done 2>/dev/null;"
                "head -c 1000 /proc/1/mem 2>/dev/null; env; echo end"
            )
            command = Command("sh", ("sh", "-c", inside), cwd, {"ONLY": "this", "PATH": "/usr/bin:/bin"})
            process = launching.launch(plan_here(profile, cwd), command, streams=(null, writing, null))
            os.close(writing)
            with os.fdopen(reading, errors="replace") as file:
                seen = file.read()
            process.wait()
            print("ONLY=this" in seen, seen.endswith("end\\n"))
            secrets = {"environment": os.environ["SECRET"], "arguments": sys.argv[1]}
            print([name for name, value in secrets.items() if value in seen])
        """
        secrets = [os.urandom(8).hex() for _ in range(2)]

        done = subprocess.run(
            script_command(preparation + textwrap.dedent(script), secrets[0]),
            cwd=workspace,
            env=clean_environment(SECRET=secrets[1]),
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )

        assert done.stdout == "True True\n[]\n"

    def test_the_handlers_and_buffers_of_the_owner_are_its_own(self, workspace: Path, preparation: str) -> None:
        script = """
            import atexit
            atexit.register(lambda: print("at exit", flush=True))
            sys.stdout.write("buffered ")
            wakeup, signalled = os.pipe()
            os.set_blocking(signalled, False)
            signal.set_wakeup_fd(signalled)
            signal.signal(signal.SIGTERM, lambda *_: print("handled"))
            process = start("sleep 60")
            os.kill(process.pid, signal.SIGTERM)
            ended = process.wait()
            print(ended.wait_status)
        """

        assert self.run(workspace, preparation, script) == ["buffered None", "at exit"]
