"""`pybwrap bwrap`, and the functions of `pybwrap._native` below it: bubblewrap as its authors made it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.conftest import clean_environment, command_line, names_in

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import RunPybwrap, Word

BARE = ["--ro-bind", "/", "/", "--dev", "/dev"]


def test_it_is_the_pinned_version(pybwrap: RunPybwrap) -> None:
    done = pybwrap("bwrap", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, "bubblewrap 0.12.0\n", "")


def test_help_lists_its_options(pybwrap: RunPybwrap) -> None:
    done = pybwrap("bwrap", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: bwrap [OPTIONS...] [--] COMMAND [ARGS...]")
    assert "--ro-bind SRC DEST" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--frobnicate", "true"], "bwrap: Unknown option --frobnicate\n"),
        (["--ro-bind", "/"], "bwrap: --ro-bind takes two arguments\n"),
        (["--args", "nonsense", "true"], "bwrap: Invalid fd: nonsense\n"),
        (["--ro-bind", "/no/such/path", "/x", "true"], "bwrap: Can't find source path /no/such/path: No such file"),
        ([*BARE, "/no/such/command"], "bwrap: execvp /no/such/command: No such file or directory\n"),
    ],
)
def test_its_errors_are_its_own_and_end_with_1(pybwrap: RunPybwrap, arguments: list[str], message: str) -> None:
    done = pybwrap("bwrap", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


def test_without_a_command_it_shows_its_usage(pybwrap: RunPybwrap) -> None:
    done = pybwrap("bwrap")
    assert (done.returncode, done.stdout) == (1, "")
    assert "usage: bwrap" in done.stderr


def test_a_command_runs_where_the_options_say(pybwrap: RunPybwrap, workspace: Path) -> None:
    options = [*BARE, "--tmpfs", "/mnt", "--dir", "/mnt/new", "--setenv", "NEW", "value", "--chdir", "/mnt/new"]
    done = pybwrap("bwrap", *options, "--", "sh", "-c", 'pwd; echo "$NEW"; touch file /usr/file; ls')
    assert done.stdout == "/mnt/new\nvalue\nfile\n"
    assert "/usr/file" in done.stderr
    assert "Read-only file system" in done.stderr
    assert names_in(workspace) == []


@pytest.mark.parametrize("options", [[], ["--unshare-pid"], ["--unshare-all", "--as-pid-1"]])
@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 42", 42), ("exit 255", 255), ("kill -TERM $$; sleep 9", 143)]
)
def test_the_exit_status_comes_through(pybwrap: RunPybwrap, options: list[str], script: str, status: int) -> None:
    if "--as-pid-1" in options and "kill" in script:
        script = "sh -c 'kill -TERM $$'; exit $?"  # the kernel protects pid 1 from its own signals
    done = pybwrap("bwrap", *BARE, *options, "--", "sh", "-c", script)
    assert (done.returncode, done.stdout) == (status, "")


def test_standard_input_is_the_commands(pybwrap: RunPybwrap) -> None:
    done = pybwrap("bwrap", *BARE, "cat", stdin="text")
    assert (done.returncode, done.stdout, done.stderr) == (0, "text", "")


def test_arguments_that_are_not_utf_8_come_through(pybwrap: RunPybwrap) -> None:
    every_byte = bytes(range(1, 256))
    done = pybwrap("bwrap", *BARE, "printf", "%s", every_byte)
    assert os.fsencode(done.stdout) == every_byte


class TestDescriptors:
    def read(self, *arguments: Word, option: str) -> str:
        """What bubblewrap writes to the descriptor that *option* takes."""
        reader, writer = os.pipe()
        with os.fdopen(reader, encoding="utf-8") as pipe:
            try:
                subprocess.run(
                    command_line("bwrap", option, str(writer), *arguments),
                    pass_fds=[writer],
                    env=clean_environment(),
                    timeout=60,
                    check=False,
                )
            finally:
                os.close(writer)
            return pipe.read()

    def test_info_tells_the_pid(self) -> None:
        info = json.loads(self.read(*BARE, "--unshare-pid", "true", option="--info-fd"))
        assert info["child-pid"] > 1
        assert "pid-namespace" in info

    def test_status_tells_the_exit_code(self) -> None:
        lines = self.read(*BARE, "--unshare-pid", "sh", "-c", "exit 7", option="--json-status-fd").splitlines()
        status = {name: value for line in lines for name, value in json.loads(line).items()}
        assert status["exit-code"] == 7
        assert status["child-pid"] > 1

    def test_options_can_come_from_a_descriptor(self, pybwrap: RunPybwrap) -> None:
        reader, writer = os.pipe()
        os.write(writer, b"--setenv\0FROM\0a descriptor\0--ro-bind\0/\0/\0")
        os.close(writer)
        try:
            done = pybwrap("bwrap", "--args", str(reader), "sh", "-c", 'echo "$FROM"', pass_fds=[reader])
        finally:
            os.close(reader)
        assert (done.returncode, done.stdout, done.stderr) == (0, "a descriptor\n", "")

    def test_data_can_come_from_a_descriptor(self, pybwrap: RunPybwrap) -> None:
        reader, writer = os.pipe()
        os.write(writer, b"the data")
        os.close(writer)
        options = [*BARE, "--tmpfs", "/mnt", "--ro-bind-data", str(reader), "/mnt/file"]
        try:
            done = pybwrap("bwrap", *options, "cat", "/mnt/file", pass_fds=[reader])
        finally:
            os.close(reader)
        assert (done.returncode, done.stdout, done.stderr) == (0, "the data", "")


def test_the_command_has_the_default_signals_that_python_changes(pybwrap: RunPybwrap) -> None:
    done = pybwrap("bwrap", *BARE, "grep", "-E", "^Sig(Ign|Cgt|Blk)", "/proc/self/status")
    ignored_by_python = 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)
    masks = dict(line.split(":\t") for line in done.stdout.splitlines())
    assert int(masks["SigIgn"], 16) & ignored_by_python == 0
    assert int(masks["SigBlk"], 16) == 0


def test_a_broken_pipe_ends_the_command(workspace: Path) -> None:
    command = [sys.executable, "-m", "pybwrap", "bwrap", *BARE]
    script = '{ "$@" sh -c "yes; echo \\$? > /dev/stderr"; } | head -n 1'
    done = subprocess.run(
        ["sh", "-c", script, "sh", *command],
        cwd=workspace,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("y\n", f"{128 + signal.SIGPIPE}\n")


def test_ctrl_c_ends_it_without_a_traceback(workspace: Path) -> None:
    command = command_line("bwrap", *BARE, "--unshare-pid", "--die-with-parent", "sh", "-c", "echo ready; sleep 300")
    with subprocess.Popen(
        command, cwd=workspace, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        # The end of stdout: nothing that holds it is left.
        assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == -signal.SIGINT


class TestNative:
    PRELUDE = """
import os, sys
from pybwrap._native import ffi, lib

def arguments(*words):
    # The strings must live as long as the array of pointers to them.
    kept = [ffi.new("char[]", os.fsencode(word)) for word in ("bwrap", *words)]
    return kept, len(kept), ffi.new("char *[]", [*kept, ffi.NULL])

BARE = ("--ro-bind", "/", "/", "--dev", "/dev")
"""

    def run(self, script: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", self.PRELUDE + script],
            cwd=cwd,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def test_run_bwrap_main_returns_the_exit_status_to_its_caller_alone(self, workspace: Path) -> None:
        script = """
kept, count, argv = arguments(*BARE, "--unshare-pid", "sh", "-c", "echo inside; exit 7")
status = lib.run_bwrap_main(count, argv)
print("returned", status)
"""
        done = self.run(script, workspace)
        assert (done.returncode, done.stdout, done.stderr) == (0, "inside\nreturned 7\n", "")

    def test_run_bwrap_main_ends_the_process_where_bubblewrap_gives_up(self, workspace: Path) -> None:
        script = """
import atexit
atexit.register(print, "python ran on")
kept, count, argv = arguments("--frobnicate")
lib.run_bwrap_main(count, argv)
print("python ran on")
"""
        done = self.run(script, workspace)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", "bwrap: Unknown option --frobnicate\n")

    def test_fork_bwrap_main_leaves_the_caller_as_it_is(self, workspace: Path) -> None:
        script = """
import atexit
atexit.register(lambda: os.write(1, b"at exit\\n"))
sys.stdout.write("unwritten ")
kept, count, argv = arguments(*BARE, "sh", "-c", "exit 7")
pid = lib.fork_bwrap_main(count, argv, -1)
print("exit status", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
sys.stdout.flush()
"""
        done = self.run(script, workspace)
        assert (done.returncode, done.stdout, done.stderr) == (0, "unwritten exit status 7\nat exit\n", "")

    def test_fork_bwrap_main_captures_stderr_through_a_pipe(self, workspace: Path) -> None:
        script = """
for words in (("--frobnicate",), (*BARE, "sh", "-c", "echo from the command >&2")):
    reader, writer = os.pipe()
    kept, count, argv = arguments(*words)
    pid = lib.fork_bwrap_main(count, argv, writer)
    os.close(writer)
    with open(reader) as pipe:
        print(repr(pipe.read()), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
        done = self.run(script, workspace)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines() == [
            "'bwrap: Unknown option --frobnicate\\n' 1",
            "'from the command\\n' 0",
        ]

    def test_fork_bwrap_main_gives_the_command_default_signals(self, workspace: Path) -> None:
        script = """
import signal
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
signal.signal(signal.SIGUSR2, lambda *_: None)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR2})
kept, count, argv = arguments(*BARE, "grep", "-E", "^Sig(Ign|Blk)", "/proc/self/status")
pid = lib.fork_bwrap_main(count, argv, -1)
os.waitpid(pid, 0)
print(sorted(number.name for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())))
"""
        done = self.run(script, workspace)
        assert done.stdout == "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n['SIGTERM', 'SIGUSR2']\n"

    def test_fork_bwrap_main_works_beside_other_threads(self, workspace: Path) -> None:
        script = """
import threading
def job():
    kept, count, argv = arguments(*BARE, "--unshare-pid", "--proc", "/proc", "true")
    for _ in range(10):
        statuses.append(os.waitpid(lib.fork_bwrap_main(count, argv, -1), 0)[1])
statuses = []
threads = [threading.Thread(target=job) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(statuses == [0] * 80)
"""
        done = self.run(script, workspace)
        assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
