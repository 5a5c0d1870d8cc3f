"""What stands at missing protected paths while sandboxes run, and that nothing of it outlives them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pybwrap import SandboxPolicy, SetupError
from pybwrap.cli.execution import plan_here
from pybwrap.launch.process import launch
from pybwrap.plan.spec import Command
from tests.conftest import PLACEHOLDER_TARGET, clean_environment, command_line, left_in_registry, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import RunPolicy

READ_ONLY = {"type": "read-only"}
WORKSPACE_WRITE = {"type": "workspace-write", "exclude_slash_tmp": True, "exclude_tmpdir_env_var": True}
NAMES = [".agents", ".aws", ".codex", ".git"]


def listing(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


class Running:
    """A sandbox that runs until `end`, and the processes that make it up, seen from the host."""

    def __init__(self, root: Path) -> None:
        options = ["--sandbox-policy-cwd", str(root), "--sandbox-policy", json.dumps(WORKSPACE_WRITE), "--"]
        self.process = subprocess.Popen(
            command_line(*options, "sh", "-c", "echo ready; cat"),
            cwd=root,
            env=clean_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"
        self.owner = self.process.pid
        (self.monitor,) = children(self.owner)
        (self.init,) = children(self.monitor)
        (self.command,) = children(self.init)

    def end(self) -> int:
        self.process.communicate(timeout=30)
        return self.process.returncode


@contextmanager
def running(root: Path) -> Iterator[Running]:
    sandbox = Running(root)
    try:
        yield sandbox
    finally:
        sandbox.process.kill()
        sandbox.process.communicate()


def children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(entry.name))
        except OSError:
            continue  # it has just ended
    return found


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def git(*arguments: str, cwd: Path) -> str:
    environment = clean_environment(HOME=str(cwd), GIT_CONFIG_NOSYSTEM="1")
    done = subprocess.run(
        ["git", *arguments], cwd=cwd, env=environment, check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout + done.stderr


# --- While a sandbox runs -----------------------------------------------------------------------------------------


def test_the_placeholders_are_a_dangling_symlink_and_empty_directories(workspace: Path) -> None:
    with running(workspace) as sandbox:
        assert listing(workspace) == NAMES
        assert (workspace / ".git").readlink() == Path(PLACEHOLDER_TARGET)
        with pytest.raises(NotADirectoryError):
            (workspace / ".git").stat()
        for name in set(NAMES) - {".git"}:
            assert (workspace / name).is_dir()
            assert listing(workspace / name) == []
        assert len(left_in_registry(workspace)) == 4
        assert sandbox.end() == 0

    assert listing(workspace) == []
    assert left_in_registry(workspace) == []


@pytest.mark.parametrize("has_repository", [True, False], ids=["in a repository", "below one"])
def test_git_on_the_host_works_and_sees_nothing_new(workspace: Path, *, has_repository: bool) -> None:
    git("init", "--quiet", cwd=workspace)
    root = workspace if has_repository else workspace / "sub"
    root.mkdir(exist_ok=True)

    with running(root):
        assert listing(root) == NAMES
        assert git("status", "--porcelain", cwd=root) == ""
        assert git("rev-parse", "--show-toplevel", cwd=root) == f"{workspace}\n"


def test_only_what_is_missing_gets_a_placeholder(workspace: Path) -> None:
    (workspace / ".codex").mkdir()
    (workspace / ".aws").write_text("")
    before = [(workspace / name).stat().st_ino for name in (".codex", ".aws")]

    with running(workspace) as sandbox:
        assert len(left_in_registry(workspace)) == 2
        assert sandbox.end() == 0

    assert listing(workspace) == [".aws", ".codex"]
    assert [(workspace / name).stat().st_ino for name in (".codex", ".aws")] == before


# --- Shared roots -------------------------------------------------------------------------------------------------


def test_placeholders_stay_until_the_last_of_several_sandboxes_ends(workspace: Path) -> None:
    with ExitStack() as stack:
        sandboxes = [stack.enter_context(running(workspace)) for _ in range(4)]
        for sandbox in sandboxes:
            assert listing(workspace) == NAMES
            assert sandbox.end() == 0

    assert listing(workspace) == []


def test_a_sandbox_that_shares_placeholders_is_as_protected_as_the_first(
    workspace: Path, run_policy: RunPolicy
) -> None:
    with running(workspace) as first:
        done = run_policy(
            WORKSPACE_WRITE, ["sh", "-c", "! mkdir .codex/x 2>/dev/null; ! ln -sfn /tmp .git 2>/dev/null"]
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert listing(workspace) == NAMES
        with running(workspace) as second:
            assert first.end() == 0
            assert listing(workspace) == NAMES
            assert second.end() == 0

    assert listing(workspace) == []


def test_roots_inside_each_other_share_a_placeholder(workspace: Path) -> None:
    (workspace / "sub").mkdir()
    with running(workspace), running(workspace / "sub") as inner:
        assert listing(workspace / "sub") == NAMES
        assert inner.end() == 0
        assert listing(workspace / "sub") == []
        assert listing(workspace) == [*NAMES, "sub"]

    assert listing(workspace) == ["sub"]


@pytest.mark.parametrize("ends", ["before the launch", "after the launch"])
def test_placeholders_that_appear_while_another_sandbox_is_planned_are_shared(workspace: Path, ends: str) -> None:
    other = Running(workspace)
    profile = SandboxPolicy.workspace_write(exclude_slash_tmp=True, exclude_tmpdir_env_var=True).to_profile()
    plan = plan_here(profile, str(workspace))
    assert listing(workspace) == NAMES
    reading, writing = os.pipe()
    script = "read line; (mkdir .codex .codex/x .aws/x; ln -sn /tmp .git) 2>/dev/null; ls -A > names"
    command = Command("sh", ("sh", "-c", script), str(workspace), dict(os.environ))
    if ends == "before the launch":
        other.end()
    process = launch(plan, command, streams=(reading, 1, 2))
    if ends == "after the launch":
        other.end()
    os.write(writing, b"\n")
    process.wait()
    for fd in (reading, writing):
        os.close(fd)

    assert (workspace / "names").read_text().split() == [*NAMES, "names"]
    assert listing(workspace) == ["names"]


# --- What is not ours ---------------------------------------------------------------------------------------------


def test_a_directory_that_the_host_has_filled_meanwhile_stays(workspace: Path) -> None:
    with running(workspace) as sandbox:
        (workspace / ".codex/config.toml").write_text("of the host")
        assert sandbox.end() == 0

    assert listing(workspace) == [".codex"]
    assert (workspace / ".codex/config.toml").read_text() == "of the host"
    assert left_in_registry(workspace) == []


def replace_by_symlink(path: Path) -> None:
    path.symlink_to("/usr")


def replace_by_file(path: Path) -> None:
    path.write_text("of the host")


def replace_by_directory(path: Path) -> None:
    # Made elsewhere first, so that it does not get the number of the inode that has just become free.
    made = path.with_name("made")
    made.mkdir()
    made.rename(path)


@pytest.mark.parametrize("name", [".codex", ".git"])
@pytest.mark.parametrize("replace", [replace_by_symlink, replace_by_file, replace_by_directory])
@pytest.mark.parametrize("kill", [False, True], ids=["ended", "killed"])
def test_what_the_host_has_put_in_the_place_of_a_placeholder_stays(
    workspace: Path, run_policy: RunPolicy, name: str, replace: Callable[[Path], None], *, kill: bool
) -> None:
    with running(workspace) as sandbox:
        path = workspace / name
        ours = path.lstat().st_ino
        path.rename(workspace / "removed")
        replace(path)
        theirs = path.lstat().st_ino
        if kill:
            kill_all(sandbox.owner, sandbox.monitor)
        else:
            assert sandbox.end() == 0
    if kill:
        assert wait_until(lambda: has_ended(sandbox.monitor))
        assert run_policy(READ_ONLY, ["true"], Path("/")).returncode == 0

    left = {entry.name: entry.lstat().st_ino for entry in workspace.iterdir()}
    for entry in workspace.iterdir():
        entry.rmdir() if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    assert left == {name: theirs, "removed": ours}
    assert left_in_registry(workspace) == []


def test_a_run_that_fails_to_start_leaves_nothing(workspace: Path, run_policy: RunPolicy) -> None:
    assert run_policy(WORKSPACE_WRITE, ["./missing"]).returncode == 127

    assert listing(workspace) == []
    assert left_in_registry(workspace) == []


def test_a_setup_that_fails_after_some_placeholders_leaves_none(workspace: Path) -> None:
    profile = SandboxPolicy.workspace_write(exclude_slash_tmp=True, exclude_tmpdir_env_var=True).to_profile()
    plan = plan_here(profile, str(workspace))
    (workspace / ".aws").write_text("appeared")

    with pytest.raises(SetupError) as caught:
        launch(plan, Command("true", ("true",), str(workspace), dict(os.environ)))

    assert caught.value.step == "placeholders"
    assert ".aws" in caught.value.what
    assert listing(workspace) == [".aws"]
    assert left_in_registry(workspace) == []


# --- Killed processes ---------------------------------------------------------------------------------------------


def kill_all(*pids: int) -> None:
    """As if at one moment: none of them sees another die."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            # The kernel itself kills what is inside along with the init, and the init along with the monitor.
            with suppress(ProcessLookupError):
                os.kill(pid, number)


@pytest.mark.parametrize("victim", ["owner", "monitor", "init", "command"])
def test_placeholders_go_at_once_when_one_process_is_killed(workspace: Path, victim: str) -> None:
    with running(workspace) as sandbox:
        os.kill(getattr(sandbox, victim), signal.SIGKILL)

        assert wait_until(lambda: listing(workspace) == [], 10), listing(workspace)
        assert wait_until(lambda: all(map(has_ended, (sandbox.monitor, sandbox.init, sandbox.command))))
        status = sandbox.end()

    assert left_in_registry(workspace) == []
    expected = {"owner": -signal.SIGKILL, "monitor": 125, "init": 125, "command": 128 + signal.SIGKILL}
    assert status == expected[victim]


@pytest.mark.parametrize("victims", ["owner monitor", "owner init", "monitor init", "owner monitor init command"])
@pytest.mark.parametrize("next_run", ["read-only elsewhere", "the same"])
def test_placeholders_go_with_the_next_run_of_any_policy_when_several_are_killed(
    workspace: Path, run_policy: RunPolicy, victims: str, next_run: str
) -> None:
    root, elsewhere = workspace / "root", workspace / "elsewhere"
    root.mkdir()
    elsewhere.mkdir()
    with running(root) as sandbox:
        assert listing(root) == NAMES
        kill_all(*(getattr(sandbox, victim) for victim in victims.split()))
        assert wait_until(lambda: all(map(has_ended, (sandbox.monitor, sandbox.init, sandbox.command))))

    policy, cwd = (READ_ONLY, elsewhere) if next_run.startswith("read-only") else (WORKSPACE_WRITE, root)
    assert run_policy(policy, ["true"], cwd).returncode == 0
    assert listing(root) == []
    assert left_in_registry(workspace) == []


def test_a_placeholder_that_others_need_survives_the_next_run(workspace: Path, run_policy: RunPolicy) -> None:
    with running(workspace) as first:
        with running(workspace) as second:
            kill_all(second.owner, second.monitor)
        assert run_policy(READ_ONLY, ["true"], Path("/")).returncode == 0
        assert listing(workspace) == NAMES
        assert first.end() == 0

    assert listing(workspace) == []


# --- Many at once -------------------------------------------------------------------------------------------------

WORKER = """
import os, random, signal, sys, threading, time, traceback
from pybwrap import SandboxPolicy
from pybwrap.cli.execution import plan_here
from pybwrap.launch import placeholders
from pybwrap.launch.process import launch
from pybwrap.plan.spec import Command

seed, threads = int(sys.argv[1]), int(sys.argv[2])
profile = SandboxPolicy.workspace_write(exclude_slash_tmp=True, exclude_tmpdir_env_var=True).to_profile()
cwd = os.getcwd()
end = time.monotonic() + 3
script = "! mkdir .codex .codex/x .aws/x .agents/x 2>/dev/null && ! ln -sn /tmp .git 2>/dev/null && sleep $0"
failures = []
null = os.open(os.devnull, os.O_RDWR)
launches = [0] * threads

def work(index):
    chance = random.Random(seed * 100 + index)
    while time.monotonic() < end:
        argv = ("sh", "-c", script, str(chance.choice((0, 0, 0.01, 0.05))))
        try:
            process = launch(plan_here(profile, cwd), Command("sh", argv, cwd, dict(os.environ)), streams=(null, 2, 2))
            way = chance.randrange(6)
            if way == 0:
                process.kill()
            elif way == 1:
                signal.pidfd_send_signal(process.pidfd, signal.SIGKILL)
            ended = process.wait()
            if way > 1 and ended.wait_status != 0:
                failures.append(f"wait status {ended.wait_status}")
            launches[index] += 1
        except Exception:
            failures.append(traceback.format_exc(limit=-2))

workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
print(sum(launches) > 0, len(failures))
for failure in sorted(set(failures)):
    print(failures.count(failure), failure)
"""


@pytest.mark.parametrize(("processes", "threads"), [(1, 8), (8, 1), (4, 2)])
def test_sandboxes_that_come_and_go_in_one_root_never_fail_and_leave_nothing(
    workspace: Path, processes: int, threads: int
) -> None:
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(seed), str(threads)],
            cwd=workspace,
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for seed in range(processes)
    ]
    output = [worker.communicate(timeout=60)[0] for worker in workers]

    assert output == ["True 0\n"] * processes
    assert listing(workspace) == []
    assert left_in_registry(workspace) == []
