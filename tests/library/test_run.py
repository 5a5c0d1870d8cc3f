"""`pybwrap.run`: what `subprocess.run` does, in a sandbox."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import pybwrap
from pybwrap import Limits, Outcome, SandboxPolicy

if TYPE_CHECKING:
    from pathlib import Path

READ_ONLY = SandboxPolicy.read_only()
MEBIBYTE = 1024 * 1024


def run(*words: str, **parameters: Any) -> pybwrap.CompletedProcess[Any]:  # noqa: ANN401 - as run has it
    return pybwrap.run(words, policy=READ_ONLY, **parameters)


def python(code: str, **parameters: Any) -> pybwrap.CompletedProcess[Any]:  # noqa: ANN401 - as run has it
    return run("/usr/bin/python3", "-c", code, **parameters)


# --- What subprocess does ---------------------------------------------------------------------------------------


def test_the_result_is_a_completed_process_of_subprocess_with_output_and_code() -> None:
    result = run("sh", "-c", "echo out; echo err >&2; exit 3", capture_output=True)
    assert isinstance(result, subprocess.CompletedProcess)
    assert (result.returncode, result.stdout, result.stderr) == (3, b"out\n", b"err\n")
    assert result.args == ("sh", "-c", "echo out; echo err >&2; exit 3")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        result.check_returncode()
    assert caught.value.stderr == b"err\n"


def test_text_mode_decodes_and_translates_line_ends() -> None:
    assert run("printf", r"a\r\nb\rc\n", stdout=pybwrap.PIPE, text=True).stdout == "a\nb\nc\n"
    assert run("printf", r"\351", stdout=pybwrap.PIPE, encoding="latin-1").stdout == "é"
    assert run("cat", input="é", stdout=pybwrap.PIPE, encoding="utf-8").stdout == "é"


def test_a_signal_is_a_negative_return_code() -> None:
    result = run("sh", "-c", "kill -TERM $$")
    assert result.returncode == -signal.SIGTERM
    assert result.outcome is Outcome.SIGNALED


def test_check_raises_called_process_error_with_the_output() -> None:
    with pytest.raises(pybwrap.CalledProcessError) as caught:
        run("sh", "-c", "echo out; exit 4", stdout=pybwrap.PIPE, check=True)
    assert (caught.value.returncode, caught.value.output) == (4, b"out\n")


def test_timeout_expired_carries_the_output_so_far_and_nothing_survives(workspace: Path) -> None:
    with pytest.raises(pybwrap.TimeoutExpired) as caught:
        pybwrap.run(
            ["sh", "-c", "echo out; (sleep 1.5; touch survivor) & wait"],
            policy=SandboxPolicy.workspace_write(),
            cwd=workspace,
            stdout=pybwrap.PIPE,
            timeout=0.5,
        )
    assert caught.value.output == b"out\n"
    time.sleep(1.5)
    assert not (workspace / "survivor").exists()


def test_input_larger_than_a_pipe_goes_in_and_comes_out() -> None:
    data = os.urandom(3 * MEBIBYTE)
    assert run("cat", input=data, stdout=pybwrap.PIPE).stdout == data


def test_a_command_that_does_not_read_its_input_is_no_error() -> None:
    assert run("true", input=b"x" * MEBIBYTE).returncode == 0


def test_stderr_can_go_where_stdout_goes() -> None:
    result = run("sh", "-c", "echo a; echo b >&2; echo c", stdout=pybwrap.PIPE, stderr=pybwrap.STDOUT)
    assert (result.stdout, result.stderr) == (b"a\nb\nc\n", None)


def test_streams_can_be_files_descriptors_and_nothing(workspace: Path) -> None:
    with (workspace / "out").open("wb") as out:
        run("sh", "-c", "cat; echo err >&2", stdin=pybwrap.DEVNULL, stdout=out, stderr=out.fileno())
    assert (workspace / "out").read_bytes() == b"err\n"


@pytest.mark.parametrize(
    ("words", "error"),
    [(["no-such-command"], FileNotFoundError), (["/etc/passwd"], PermissionError), (["/nowhere/x"], FileNotFoundError)],
)
def test_a_command_that_cannot_be_executed_raises_what_subprocess_raises(
    words: list[str], error: type[OSError]
) -> None:
    with pytest.raises(error) as caught:
        run(*words)
    assert caught.value.filename == words[0]


def test_a_missing_directory_raises_what_subprocess_raises(workspace: Path) -> None:
    with pytest.raises(FileNotFoundError):
        run("true", cwd=workspace / "missing")
    (workspace / "file").touch()
    with pytest.raises(NotADirectoryError):
        run("true", cwd=workspace / "file")


@pytest.mark.parametrize(
    "parameters",
    [{"env": {"A": "x\0y"}}, {"env": {"": "x"}}, {"env": {"A=B": "x"}}],
)
def test_an_impossible_environment_is_a_value_error(parameters: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"null byte|illegal environment"):
        run("true", **parameters)


def test_contradicting_parameters_are_refused_as_subprocess_refuses_them() -> None:
    with pytest.raises(ValueError, match="stdin and input"):
        run("true", stdin=pybwrap.PIPE, input=b"")
    with pytest.raises(ValueError, match="capture_output"):
        run("true", stdout=pybwrap.PIPE, capture_output=True)
    with pytest.raises(subprocess.SubprocessError):
        run("true", text=False, universal_newlines=True)


def test_executable_shell_and_check_output_are_as_in_subprocess() -> None:
    assert run("zero", "-c", "echo $0", executable="/bin/sh", stdout=pybwrap.PIPE).stdout == b"zero\n"
    parameters: dict[str, Any] = {"shell": True, "env": {"HOME": "/h"}}
    result = pybwrap.run("echo a; echo $HOME", policy=READ_ONLY, stdout=pybwrap.PIPE, **parameters)
    assert result.stdout == b"a\n/h\n"
    assert pybwrap.check_output(["echo", "x"], policy=READ_ONLY, text=True) == "x\n"


# --- What goes in -----------------------------------------------------------------------------------------------


def test_without_env_no_secret_of_the_parent_goes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", "a-secret")
    monkeypatch.setenv("LC_TIME", "C")
    names = {line.partition("=")[0] for line in run("env", stdout=pybwrap.PIPE, text=True).stdout.splitlines()}
    assert "API_TOKEN" not in names
    assert {"PATH", "PWD", "LC_TIME"} <= names


def test_with_env_exactly_that_goes_in_and_pwd(workspace: Path) -> None:
    lines = run("/usr/bin/env", env={"A": "1"}, cwd=workspace, stdout=pybwrap.PIPE, text=True).stdout.splitlines()
    assert sorted(lines) == ["A=1", f"PWD={workspace}"]


def test_only_passed_descriptors_go_in_and_they_keep_their_numbers() -> None:
    reading, writing = os.pipe()
    other = os.dup(reading)
    os.set_inheritable(other, True)
    try:
        result = python("import os; print(sorted(map(int, os.listdir('/proc/self/fd'))))", stdout=pybwrap.PIPE)
        assert result.stdout == b"[0, 1, 2, 3]\n"  # 3 is the listing itself
        run("bash", "-c", f"echo passed >&{writing}", pass_fds=[writing])
        assert os.read(reading, 100) == b"passed\n"
    finally:
        for fd in (reading, writing, other):
            os.close(fd)


SEARCH = """
import os, sys
needle = sys.stdin.buffer.read()
found = []
for pid in filter(str.isdigit, os.listdir("/proc")):
    for name in ("environ", "cmdline", "maps", "mem"):
        try:
            with open(f"/proc/{pid}/{name}", "rb") as file:
                if name == "mem":
                    if pid == str(os.getpid()):
                        continue  # the needle is here, to search with
                    for line in open(f"/proc/{pid}/maps"):
                        start, end = (int(x, 16) for x in line.split()[0].split("-"))
                        try:
                            file.seek(start)
                            if needle in file.read(end - start):
                                found.append((pid, name))
                        except (OSError, ValueError, OverflowError):
                            pass
                elif needle in file.read():
                    found.append((pid, name))
        except OSError:
            pass
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            if "secret" in os.readlink(f"/proc/{pid}/fd/{fd}"):
                found.append((pid, fd))
    except OSError:
        pass
print(found)
"""


def test_a_secret_of_the_parent_is_nowhere_in_the_sandbox(workspace: Path) -> None:
    (workspace / "secret").write_text("x")
    parent = f"""
import os, pybwrap, sys
secret = "".join(chr(ord(c) + 1) for c in "{"".join(chr(ord(c) - 1) for c in "correct-horse-battery-staple")}")
os.environ["A_SECRET"] = secret
keep = [secret.encode() for _ in range(1000)]
file = open({str(workspace / "secret")!r})
os.set_inheritable(file.fileno(), True)
result = pybwrap.run(["/usr/bin/python3", "-c", sys.argv[2]], policy=pybwrap.SandboxPolicy.read_only(),
                     input=secret.encode(), stdout=pybwrap.PIPE, stderr=pybwrap.STDOUT)
sys.stdout.buffer.write(result.stdout)
"""
    words = [sys.executable, "-c", parent, "correct-horse-battery-staple", SEARCH]
    assert subprocess.run(words, capture_output=True, check=True).stdout == b"[]\n"


# --- Limits, usage, outcome -------------------------------------------------------------------------------------


def test_cpu_time_is_limited_and_said() -> None:
    result = run("sh", "-c", "while :; do :; done", limits=Limits(cpu_time=1))
    assert result.outcome is Outcome.CPU_LIMIT
    assert 0.5 < result.usage.user_time + result.usage.system_time < 3


def test_wall_time_ends_the_sandbox_also_while_its_owner_does_nothing(workspace: Path) -> None:
    with pybwrap.Popen(
        ["sh", "-c", "sleep 1; touch late"],
        policy=SandboxPolicy.workspace_write(),
        cwd=workspace,
        limits=Limits(wall_time=0.3),
    ) as process:
        time.sleep(1.3)
    assert process.outcome is Outcome.TIMED_OUT
    assert process.returncode == -signal.SIGKILL
    assert not (workspace / "late").exists()


def test_memory_is_limited() -> None:
    result = python("x = bytearray(1 << 30)", limits=Limits(memory=256 * MEBIBYTE), stderr=pybwrap.PIPE)
    assert result.returncode == 1
    assert b"MemoryError" in result.stderr


def test_open_files_and_file_sizes_are_limited(workspace: Path) -> None:
    count = "n = 0\nimport os\ntry:\n while True: os.dup(0); n += 1\nexcept OSError as e: print(n, e.errno)"
    assert python(count, limits=Limits(open_files=20), stdout=pybwrap.PIPE).stdout == b"17 24\n"
    result = pybwrap.run(
        ["sh", "-c", "head -c 5000 /dev/zero > big"],
        policy=SandboxPolicy.workspace_write(),
        cwd=workspace,
        limits=Limits(file_size=1000),
        stderr=pybwrap.DEVNULL,
    )
    assert result.returncode != 0
    assert (workspace / "big").stat().st_size == 1000


@pytest.mark.unprivileged  # RLIMIT_NPROC does not bind root (setrlimit(2))
def test_processes_are_limited() -> None:
    fork = "import os\nn = 0\ntry:\n  while n < 50:\n    if os.fork() == 0: os.pause() if 0 else __import__('time').sleep(9)\n    n += 1\nexcept OSError: pass\nprint(n)"  # noqa: E501
    result = python(fork, limits=Limits(processes=10), stdout=pybwrap.PIPE)
    assert int(result.stdout) < 10


def test_more_output_than_allowed_ends_the_sandbox_and_keeps_what_was_allowed() -> None:
    result = run("yes", stdout=pybwrap.PIPE, limits=Limits(output=100_001))
    assert result.outcome is Outcome.OUTPUT_LIMIT
    assert len(result.stdout) == 100_001


def test_a_negative_limit_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="memory: must not be negative"):
        run("true", limits=Limits(memory=-1))


def test_usage_counts_everything_that_ran_inside_and_nothing_of_the_parent() -> None:
    ballast = bytearray(os.urandom(1)) * (300 * MEBIBYTE)
    code = "import os\nx = bytearray(os.urandom(1)) * (64 << 20)\n"
    usage = run("sh", "-c", f"/usr/bin/python3 -c '{code}'; true").usage
    assert 64 * MEBIBYTE < usage.max_rss < 150 * MEBIBYTE
    assert usage.user_time + usage.system_time > 0.005
    assert usage.wall_time > 0.005
    assert usage.voluntary_context_switches > 0
    del ballast


# --- What was enforced ------------------------------------------------------------------------------------------


def test_enforced_says_what_stood_between() -> None:
    enforced = run("true").enforced
    assert enforced is not None
    assert enforced.engine == "bubblewrap"
    assert {"user", "mount", "pid", "net"} <= set(enforced.namespaces)
    assert (enforced.network, enforced.seccomp) == ("isolated", "restricted")
    bare = pybwrap.run(["true"], policy=SandboxPolicy.danger_full_access()).enforced
    assert bare is not None
    assert (bare.engine, bare.namespaces, bare.seccomp, bare.landlock_abi) == ("stage", (), None, 0)


def test_a_required_layer_that_the_policy_does_not_have_is_an_error_before_anything_runs(workspace: Path) -> None:
    policy = SandboxPolicy.danger_full_access()
    with pytest.raises(pybwrap.UnsupportedHostError, match="seccomp, userns"):
        pybwrap.run(["touch", str(workspace / "ran")], policy=policy, require={"userns", "seccomp"})
    assert not (workspace / "ran").exists()
    with pytest.raises(pybwrap.PolicyError, match=r"require: expected some of .*; got sandwich"):
        run("true", require=["sandwich"])
    assert run("true", require={"userns", "netns", "seccomp"}).returncode == 0


def test_errors_of_this_package_are_picklable_and_below_one_base() -> None:
    for error in (
        pybwrap.PolicyError("x"),
        pybwrap.SetupError("mount", 1, "what", "remedy"),
        pybwrap.UnsupportedHostError("y"),
    ):
        assert isinstance(error, pybwrap.PybwrapError)
        again = pickle.loads(pickle.dumps(error))  # noqa: S301 - made on this line
        assert (type(again), str(again)) == (type(error), str(error))


# --- Many at once -----------------------------------------------------------------------------------------------


def test_sixteen_threads_run_sandboxes_at_once() -> None:
    outputs: list[bytes] = []

    def work(number: int) -> None:
        outputs.extend(run("echo", str(number), stdout=pybwrap.PIPE).stdout for _ in range(4))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outputs) == sorted(f"{number}\n".encode() for number in range(16) for _ in range(4))


def test_no_descriptor_stays_open_whatever_the_end() -> None:
    def failing(**parameters: Any) -> None:  # noqa: ANN401 - as run has it
        with pytest.raises((OSError, ValueError, subprocess.SubprocessError)):
            run("no-such-command" if not parameters else "true", capture_output=True, **parameters)

    run("true", capture_output=True)
    before = sorted(os.listdir("/proc/self/fd"))
    run("true", capture_output=True)
    failing()
    failing(env={"": "x"})
    with pytest.raises(pybwrap.TimeoutExpired):
        run("sleep", "9", capture_output=True, timeout=0.1)
    assert sorted(os.listdir("/proc/self/fd")) == before


# --- Where no namespace can be made -----------------------------------------------------------------------------

WITHOUT_NAMESPACES = """
import pybwrap, sys
policy = pybwrap.SandboxPolicy.workspace_write(exclude_slash_tmp=True, exclude_tmpdir_env_var=True)
script = "touch inside; touch /var/tmp/outside-$$ && echo outside; : </dev/tcp/127.0.0.1/9"
def attempt(**parameters):
    return pybwrap.run(["bash", "-c", script], policy=policy, capture_output=True, text=True, **parameters)
try:
    attempt()
except pybwrap.SetupError as error:
    print(error.step)
try:
    attempt(fallback=["landlock"], require=["netns"])
except pybwrap.UnsupportedHostError as error:
    print("netns" in str(error))
result = attempt(fallback=["landlock"])
print(result.stdout, result.stderr.count("ermi"))
enforced = result.enforced
print(enforced.engine, enforced.namespaces, enforced.seccomp, enforced.landlock_abi > 0, len(enforced.degradations))
"""


def test_the_landlock_tier_takes_over_only_where_it_is_allowed_and_says_so(workspace: Path) -> None:
    # In a user namespace whose limit on further ones is 0 nobody can make one.
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", forbid, "sh", sys.executable, "-c", WITHOUT_NAMESPACES],
        cwd=workspace,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["namespaces", "True", " 3", "stage () restricted True 2"]
    assert (workspace / "inside").exists()


def test_an_unknown_fallback_is_a_policy_error() -> None:
    with pytest.raises(pybwrap.PolicyError, match="fallback: expected some of landlock; got hope"):
        run("true", fallback=["hope"])
