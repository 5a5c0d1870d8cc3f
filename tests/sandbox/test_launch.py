"""The launch itself: how it fails, how it ends, and that Python and C agree on the records between them."""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pybwrap import PermissionProfile, SandboxPolicy, SetupError
from pybwrap.cli.execution import plan_here
from pybwrap.launch.process import ExecError, SandboxedProcess, become, launch
from pybwrap.launch.status import SetupStep, StatusKind
from pybwrap.plan import spec as packed
from pybwrap.plan.spec import Command
from tests.conftest import clean_environment

if TYPE_CHECKING:
    from pybwrap.plan.sandbox import SandboxPlan

WRITABLE = SandboxPolicy.workspace_write(exclude_slash_tmp=True, exclude_tmpdir_env_var=True).to_profile()
READ_ONLY = SandboxPolicy.read_only().to_profile()
CSRC = Path(__file__).parent.parent.parent / "csrc"


def command(cwd: Path, *argv: str) -> Command:
    return Command(argv[0], argv, str(cwd), {"PATH": "/usr/bin:/bin"})


def shell(cwd: Path, script: str) -> Command:
    return command(cwd, "sh", "-c", script)


def plan(cwd: Path, profile: PermissionProfile = WRITABLE) -> SandboxPlan:
    return plan_here(profile, str(cwd))


def exit_code(process: SandboxedProcess) -> int:
    ended = process.wait()
    assert ended is not None
    assert ended.wait_status is not None
    return os.waitstatus_to_exitcode(ended.wait_status)


# --- How a setup fails --------------------------------------------------------------------------------------------


def test_a_working_directory_that_the_policy_hides_is_a_setup_error_that_says_so(workspace: Path) -> None:
    profile = PermissionProfile({":minimal": "read"})

    with pytest.raises(SetupError) as caught:
        launch(plan(workspace, profile), command(workspace, "true"))

    error = caught.value
    assert (error.step, error.errno) == ("working directory", errno.ENOENT)
    assert str(workspace) in error.what
    assert "working directory" in error.remedy
    assert error.remedy in str(error)


@pytest.mark.parametrize(
    "change",
    # A directory of root's own is open to root, with or without capabilities on the host.
    ["removed", pytest.param("closed", marks=pytest.mark.unprivileged)],
)
def test_a_working_directory_that_is_lost_after_planning_is_a_setup_error(workspace: Path, change: str) -> None:
    directory = workspace / "directory"
    directory.mkdir()
    made = plan(workspace, READ_ONLY)
    if change == "removed":
        directory.rmdir()
    else:
        directory.chmod(0)

    with pytest.raises(SetupError) as caught:
        launch(made, command(directory, "true"))

    expected = errno.ENOENT if change == "removed" else errno.EACCES
    assert (caught.value.step, caught.value.errno) == ("working directory", expected)


def test_a_bind_source_that_vanishes_after_planning_is_a_mount_error(workspace: Path) -> None:
    gone = workspace / "gone"
    gone.mkdir()
    # All protected names are there: otherwise their placeholders would be what cannot be made.
    for name in WRITABLE.protected_names:
        (gone / name).mkdir()
    made = plan(workspace, PermissionProfile({":root": "read", str(gone): "write"}))
    for name in WRITABLE.protected_names:
        (gone / name).rmdir()
    gone.rmdir()

    with pytest.raises(SetupError) as caught:
        launch(made, command(workspace, "true"))

    assert (caught.value.step, caught.value.errno) == ("mount", errno.ENOENT)
    assert str(gone) in caught.value.what
    assert "user namespaces" not in caught.value.remedy


def test_a_root_that_vanishes_after_planning_is_an_error_that_names_it(workspace: Path) -> None:
    gone = workspace / "gone"
    gone.mkdir()
    made = plan(gone)
    gone.rmdir()

    with pytest.raises(SetupError) as caught:
        launch(made, command(workspace, "true"))

    assert caught.value.errno == errno.ENOENT
    assert str(gone) in caught.value.what


def test_a_symlink_that_is_replaced_after_planning_is_not_trusted(workspace: Path) -> None:
    (workspace / "kept").mkdir()
    (workspace / ".codex").symlink_to("kept")
    made = plan(workspace)
    (workspace / ".codex").unlink()
    (workspace / ".codex").mkdir()

    with pytest.raises(SetupError) as caught:
        launch(made, command(workspace, "true"))

    assert (caught.value.step, caught.value.errno) == ("symlink", errno.ESTALE)


LIMITED = """
import errno, os, resource, sys
from pybwrap import SandboxPolicy, SetupError
from pybwrap.cli.execution import plan_here
from pybwrap.launch.process import launch
from pybwrap.plan.spec import Command

plan = plan_here(SandboxPolicy.read_only().to_profile(), "/")
before = sorted(os.listdir("/proc/self/fd"))
limit, value = sys.argv[1:]
hard = resource.getrlimit(getattr(resource, limit))[1]
resource.setrlimit(getattr(resource, limit), (int(value), hard))
try:
    launch(plan, Command("true", ("true",), "/", {"PATH": "/usr/bin:/bin"})).wait()
except SetupError as error:
    print(type(error).__name__, error.step, errno.errorcode[error.errno], bool(error.remedy))
except OSError as error:
    print(type(error).__name__, errno.errorcode[error.errno])
else:
    print("ran")
resource.setrlimit(getattr(resource, limit), (hard, hard))
print(sorted(os.listdir("/proc/self/fd")) == before)
"""


def run_limited(limit: str, value: int) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, limit, str(value)],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.unprivileged  # RLIMIT_NPROC does not bind root (setrlimit(2))
def test_too_few_processes_is_an_error_with_a_remedy() -> None:
    outcome, is_clean = run_limited("RLIMIT_NPROC", 1)

    assert outcome == "SetupError process EAGAIN True"
    assert is_clean == "True"


def test_too_few_descriptors_is_an_error_and_leaves_none() -> None:
    outcomes = set()
    for value in range(4, 14):
        outcome, is_clean = run_limited("RLIMIT_NOFILE", value)
        assert is_clean == "True"
        outcomes.add(outcome)

    assert outcomes - {"ran"} != set()
    assert all(outcome.startswith("SetupError") and "EMFILE" in outcome for outcome in outcomes - {"ran"}), outcomes


# --- How an execution fails ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "profile", [WRITABLE, READ_ONLY, PermissionProfile(None)], ids=["write", "read", "network only"]
)
@pytest.mark.parametrize(
    ("name", "content", "mode", "expected"),
    [
        ("missing", None, 0, errno.ENOENT),
        ("no-permission", "#!/bin/sh\n", 0o644, errno.EACCES),
        ("no-format", "hello\n", 0o755, errno.ENOEXEC),
        ("no-interpreter", "#!/nonexistent/interpreter\n", 0o755, errno.ENOENT),
        ("file/below", "", 0o755, errno.ENOTDIR),
    ],
)
def test_a_command_that_cannot_be_executed_is_an_exec_error(
    workspace: Path, profile: PermissionProfile, name: str, content: str | None, mode: int, expected: int
) -> None:
    path = workspace / name
    if content is not None:
        made = path if "/" not in name else path.parent
        made.write_text(content)
        made.chmod(mode)

    with pytest.raises(ExecError) as caught:
        launch(plan(workspace, profile), command(workspace, str(path)))

    assert caught.value.errno == expected
    assert caught.value.filename == str(path)


def test_a_command_is_found_along_its_own_path(workspace: Path) -> None:
    for name in ("first", "second"):
        (workspace / name).mkdir()
    (workspace / "first/tool").write_text("not executable")
    (workspace / "second/tool").write_text("#!/bin/sh\nexit 9\n")
    (workspace / "second/tool").chmod(0o755)
    environment = {"PATH": f"{workspace}/nowhere:{workspace}/first:{workspace}/second"}

    process = launch(plan(workspace), Command("tool", ("tool",), str(workspace), environment))
    assert exit_code(process) == 9

    environment = {"PATH": f"{workspace}/first:{workspace}/nowhere"}
    with pytest.raises(ExecError) as caught:
        launch(plan(workspace), Command("tool", ("tool",), str(workspace), environment))
    assert caught.value.errno == errno.EACCES


# --- While it runs ------------------------------------------------------------------------------------------------


def test_wait_gives_up_when_its_time_is_up_and_can_be_asked_again(workspace: Path) -> None:
    process = launch(plan(workspace), shell(workspace, "sleep 0.5; exit 3"))

    start = time.monotonic()
    assert process.wait(0) is None
    assert process.wait(0.1) is None
    assert 0.1 <= time.monotonic() - start < 0.4
    ended = process.wait(20)

    assert ended is not None
    assert ended.wait_status == 3 << 8
    assert process.wait() is ended
    assert process.wait(0) is ended


# test_timeout of the reference
def test_a_command_that_takes_too_long_can_be_ended(workspace: Path) -> None:
    process = launch(plan(workspace), command(workspace, "sleep", "60"))

    assert process.wait(0.05) is None
    process.kill()
    ended = process.wait(20)

    assert ended is not None
    assert ended.wait_status is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL])
def test_a_signal_is_the_commands_to_handle(workspace: Path, number: signal.Signals) -> None:
    script = f"trap 'exit 7' TERM USR1; echo > ready; while :; do sleep 0.01; done  # {number.name}"
    process = launch(plan(workspace), shell(workspace, script))
    while not (workspace / "ready").exists():
        time.sleep(0.01)

    process.send_signal(number)

    assert exit_code(process) == (-signal.SIGKILL if number is signal.SIGKILL else 7)


def test_signalling_what_has_ended_does_nothing(workspace: Path) -> None:
    process = launch(plan(workspace), command(workspace, "true"))
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    process.kill()

    assert process.wait() is not None
    process.send_signal(signal.SIGTERM)
    process.kill()


def test_a_kill_reaches_what_ignores_every_signal(workspace: Path) -> None:
    script = "trap '' TERM INT HUP; (trap '' TERM; setsid sh -c 'while :; do sleep 0.01; echo >> beat; done') & wait"
    process = launch(plan(workspace), shell(workspace, script))
    while not (workspace / "beat").exists():
        time.sleep(0.01)

    process.kill()
    assert process.wait() is not None

    size = (workspace / "beat").stat().st_size
    time.sleep(0.1)
    assert (workspace / "beat").stat().st_size == size


@pytest.mark.parametrize("code", [0, 1, 125, 126, 127, 128, 255])
def test_every_exit_status_is_told_as_it_is(workspace: Path, code: int) -> None:
    assert exit_code(launch(plan(workspace), shell(workspace, f"exit {code}"))) == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGXCPU])
def test_a_signal_that_ended_the_command_is_no_exit_status(workspace: Path, number: signal.Signals) -> None:
    assert exit_code(launch(plan(workspace), shell(workspace, f"ulimit -c 0; kill -{int(number)} $$"))) == -number


def test_descriptors_come_along_only_by_name_and_keep_their_numbers(workspace: Path) -> None:
    reading, writing = os.pipe()
    other = os.dup(writing)
    script = f"echo named >&{writing}; ! echo other 2>/dev/null >&{other}; test ! -e /proc/self/fd/{other}"
    given = command(workspace, "bash", "-c", script)._replace(inherited_fds=(writing,))  # dash knows fds to 9 only

    assert exit_code(launch(plan(workspace), given)) == 0
    os.close(writing)
    os.close(other)
    with os.fdopen(reading) as file:
        assert file.read() == "named\n"


def test_resource_limits_are_those_of_the_command_alone(workspace: Path) -> None:
    limits = ((resource.RLIMIT_NOFILE, 50, 60), (resource.RLIMIT_CORE, 0, 0))
    given = shell(workspace, "echo $(ulimit -n) $(ulimit -Hn) $(ulimit -c) > limits")._replace(resource_limits=limits)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    assert exit_code(launch(plan(workspace), given)) == 0
    assert (workspace / "limits").read_text() == "50 60 0\n"
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


def test_a_limit_that_may_not_be_raised_is_a_setup_error(workspace: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    given = command(workspace, "true")._replace(resource_limits=((resource.RLIMIT_NOFILE, hard + 1, hard + 1),))

    with pytest.raises(SetupError) as caught:
        launch(plan(workspace), given)

    assert (caught.value.step, caught.value.errno) == ("resource limits", errno.EPERM)


CLOSED_STREAMS = """
import os, sys
from pybwrap import SandboxPolicy
from pybwrap.cli.execution import plan_here
from pybwrap.launch.process import launch
from pybwrap.plan.spec import Command

profile = SandboxPolicy.workspace_write(exclude_slash_tmp=True, exclude_tmpdir_env_var=True).to_profile()
plan = plan_here(profile, os.getcwd())
for fd in map(int, sys.argv[1:]):
    os.close(fd)
script = "stat -L -c %F /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2 > kinds; ls /proc/$$/fd | wc -l > count"
launch(plan, Command("bash", ("bash", "-c", script), os.getcwd(), {"PATH": "/usr/bin:/bin"})).wait()
"""


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (0, 1, 2)])
def test_streams_that_the_caller_has_closed_are_dev_null(workspace: Path, closed: tuple[int, ...]) -> None:
    subprocess.run(
        [sys.executable, "-c", CLOSED_STREAMS, *map(str, closed)],
        cwd=workspace,
        env=clean_environment(),
        input=b"",
        capture_output=True,
        check=True,
        timeout=60,
    )

    kinds = (workspace / "kinds").read_text().splitlines()
    assert kinds == ["character special file" if fd in closed else "fifo" for fd in range(3)]
    assert (workspace / "count").read_text() in {"3\n", "4\n"}  # bash keeps a redirected stream on one more


def test_a_plan_with_namespaces_cannot_be_applied_to_this_process(workspace: Path) -> None:
    with pytest.raises(ValueError, match="use launch"):
        become(plan(workspace), command(workspace, "true"))


# --- Python and C -------------------------------------------------------------------------------------------------


def enumerators(header: str, name: str) -> dict[str, int]:
    """The names and values of a C enum that starts at a number and counts up."""
    text = re.sub(r"/\*.*?\*/", "", (CSRC / header).read_text(), flags=re.DOTALL)
    match = re.search(rf"enum {name} {{(.*?)}}", text, flags=re.DOTALL)
    assert match is not None
    values: dict[str, int] = {}
    for item in filter(None, (part.strip() for part in match[1].split(","))):
        label, _, number = item.partition("=")
        values[label.strip()] = int(eval(number)) if number else max(values.values(), default=-1) + 1  # noqa: S307
    return values


def test_the_steps_are_the_same_in_python_and_c() -> None:
    assert enumerators("status.h", "setup_step") == {f"STEP_{step.name}": step.value for step in SetupStep}


def test_the_kinds_of_records_are_the_same_in_python_and_c() -> None:
    kinds = {f"STATUS_{kind.name}": kind.value for kind in StatusKind if kind is not StatusKind.END_OF_FILE}

    assert enumerators("status.h", "status_kind") == kinds


def test_the_flags_and_sections_are_the_same_in_python_and_c() -> None:
    flags = {
        f"SPEC{name}": value
        for name, value in vars(packed).items()
        if f"SPEC{name}" in (CSRC / "spec.h").read_text() and isinstance(value, int) and name.isupper()
    }

    assert {name: flags.get(name) for name in enumerators("spec.h", "spec_flag")} == enumerators("spec.h", "spec_flag")
    assert enumerators("spec.h", "spec_section")["SPEC_SECTION_COUNT"] == packed._SECTION_COUNT


def test_the_structures_have_the_same_size_in_python_and_c(tmp_path: Path) -> None:
    expected = {
        "spec_section_header": packed._SECTION.size,
        "spec_landlock_rule": packed._LANDLOCK_RULE.size,
        "spec_resource_limit": packed._RESOURCE_LIMIT.size,
        "spec_placeholder": packed._PLACEHOLDER.size,
        "spec_header": -(-(packed._HEADER.size + packed._SECTION_COUNT * packed._SECTION.size) // 8) * 8,
        "sock_filter": packed._FILTER_INSTRUCTION_SIZE,
    }
    source = "#include <stdio.h>\n#include <linux/filter.h>\n" + f'#include "{CSRC}/spec.h"\n' + "int main(void) {\n"
    source += "".join(f'printf("{name} %zu\\n", sizeof(struct {name}));\n' for name in expected)
    (tmp_path / "sizes.c").write_text(source + "}\n")
    subprocess.run(["cc", "-o", tmp_path / "sizes", tmp_path / "sizes.c"], check=True, timeout=60)

    output = subprocess.run([tmp_path / "sizes"], check=True, capture_output=True, text=True, timeout=60).stdout

    assert {line.split()[0]: int(line.split()[1]) for line in output.splitlines()} == expected
    assert f"{packed._MAGIC:#x}" in (CSRC / "spec.h").read_text()
