"""Where a fresh /proc is refused, as in many containers, the command runs without one, once, and is told so."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.conftest import as_ordinary_user, clean_environment, command_line, in_private_namespaces, names_in, probe

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.conftest import Completed, Word

READ_ONLY: dict[str, object] = {"type": "read-only"}
WORKSPACE_WRITE: dict[str, object] = {"type": "workspace-write", "exclude_slash_tmp": True}
NOTE = "pybwrap: going on without a fresh /proc: "

COVERED = "mount -t proc proc /proc; mount --bind /dev/null /proc/keys"
CONTAINER: list[Word] = in_private_namespaces(COVERED, "--pid", "--fork")
"""As Docker leaves it: the kernel refuses a fresh /proc where the old one is covered in part."""

# Root in the container, and a user without any capability there.
USERS: dict[str, list[Word]] = {
    "root": CONTAINER,
    "user": [*CONTAINER, "unshare", "--user", "--map-user=1000", "--map-group=1000"],
}

every_user = pytest.mark.parametrize("user", USERS)


def run_in(prefix: list[Word], cwd: Path, *arguments: Word) -> Completed:
    return subprocess.run(
        [*prefix, *command_line(*arguments)],
        cwd=cwd,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def flags(policy: Mapping[str, object], cwd: Path) -> list[Word]:
    return ["--sandbox-policy-cwd", cwd, "--sandbox-policy", json.dumps(policy)]


def notes(done: Completed) -> list[str]:
    return [line for line in done.stderr.splitlines() if "fresh /proc" in line]


@every_user
def test_such_a_container_really_refuses_a_fresh_proc(workspace: Path, user: str) -> None:
    options = ("--ro-bind", "/", "/", "--unshare-user", "--unshare-pid", "--proc", "/proc", "true")
    done = run_in(USERS[user], workspace, "bwrap", *options)
    assert done.returncode == 1
    assert done.stderr == "bwrap: Can't mount proc on /proc: Operation not permitted\n"


@every_user
def test_the_command_runs_once_and_the_note_is_written_once(workspace: Path, user: str) -> None:
    command = ["sh", "-c", "echo ran >> log; echo out"]
    done = run_in(USERS[user], workspace, *flags(WORKSPACE_WRITE, workspace), *command)
    assert (done.returncode, done.stdout) == (0, "out\n")
    assert done.stderr.startswith(NOTE)
    assert done.stderr.count("\n") == 1
    assert "Operation not permitted" in done.stderr
    assert (workspace / "log").read_text() == "ran\n"
    assert names_in(workspace) == ["log"]


@every_user
def test_everything_but_proc_is_as_ever(workspace: Path, user: str) -> None:
    done = run_in(USERS[user], workspace, *flags(READ_ONLY, workspace), *probe(workspace))
    found = json.loads(done.stdout)
    assert found["pid"] < 5
    assert found["proc_self"] != str(found["pid"])
    assert found["internet"] == "EPERM"
    assert found["writes"] == {str(workspace): "EROFS"}
    assert (found["status"]["NoNewPrivs"], found["status"]["Seccomp"]) == ("1", "2")
    assert (found["status"]["CapEff"], found["status"]["CapBnd"]) == ("0000000000000000", "0000000000000000")


@every_user
def test_no_proc_says_nothing(workspace: Path, user: str) -> None:
    done = run_in(USERS[user], workspace, *flags(READ_ONLY, workspace), "--no-proc", "sh", "-c", "echo out; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "")


def test_the_run_command_goes_on_too(workspace: Path) -> None:
    done = run_in(CONTAINER, workspace, "run", "-w", ".", "--", "sh", "-c", "echo ran >> log; exit 7")
    assert (done.returncode, done.stdout, len(notes(done))) == (7, "", 1)
    assert (workspace / "log").read_text() == "ran\n"
    done = run_in(CONTAINER, workspace, "run", "--no-proc", "--", "true")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@every_user
def test_a_failing_command_is_not_run_again(workspace: Path, user: str) -> None:
    for ending, status in (("exit 1", 1), ("exit 125", 125), ("kill -KILL $$", 137)):
        (workspace / "log").unlink(missing_ok=True)
        command = ["sh", "-c", f"echo ran >> log; {ending}"]
        done = run_in(USERS[user], workspace, *flags(WORKSPACE_WRITE, workspace), *command)
        assert (done.returncode, len(notes(done))) == (status, 1)
        assert (workspace / "log").read_text() == "ran\n"


def test_a_command_that_cannot_be_executed_is_told_as_ever(workspace: Path) -> None:
    done = run_in(CONTAINER, workspace, *flags(WORKSPACE_WRITE, workspace), "/no/such/command")
    assert done.returncode == 127
    assert done.stderr.splitlines()[-1] == "pybwrap: /no/such/command: command not found"
    assert names_in(workspace) == []


class TestOtherFailures:
    """None of them is taken for a refused /proc: they are told, and nothing runs."""

    def test_no_user_namespaces(self, workspace: Path) -> None:
        setup = f"{COVERED}; echo 0 > /proc/sys/user/max_user_namespaces"
        prefix = in_private_namespaces(setup, "--pid", "--fork")
        done = run_in(prefix, workspace, *flags(WORKSPACE_WRITE, workspace), "touch", "ran")
        assert done.returncode == 125
        assert done.stderr.startswith("pybwrap: cannot set up the sandbox (namespaces): ")
        assert notes(done) == []
        assert names_in(workspace) == []

    @pytest.mark.parametrize("prefix", [[], CONTAINER], ids=["outside", "container"])
    def test_a_working_directory_that_cannot_be_seen(self, workspace: Path, prefix: list[Word]) -> None:
        entries = [
            {"path": {"type": "special", "value": {"kind": "root"}}, "access": "read"},
            {"path": {"type": "path", "path": str(workspace)}, "access": "deny"},
        ]
        profile = json.dumps({"file_system": {"entries": entries}})
        options = ("--sandbox-policy-cwd", "/", "--permission-profile", profile)
        # For root the hidden directory is only empty: it is one below that is not there.
        (workspace / "below").mkdir()
        done = run_in(prefix, workspace / "below", *options, "touch", "ran")
        assert done.returncode == 125
        assert done.stderr.splitlines()[-1].startswith("pybwrap: cannot set up the sandbox (working directory): ")
        assert notes(done) == []
        assert names_in(workspace / "below") == []

    def test_a_fresh_proc_is_kept_where_it_is_granted(self, workspace: Path) -> None:
        workspace.chmod(0o777)
        done = run_in(as_ordinary_user(), workspace, *flags(READ_ONLY, workspace), *probe())
        found = json.loads(done.stdout)
        assert (found["proc_self"], done.stderr) == (str(found["pid"]), "")
