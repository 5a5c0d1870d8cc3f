"""What the tests share. `from tests.conftest import ...` has the functions, pytest has the fixtures."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

SANDBOX_TESTS = {Path(__file__).parent / name for name in ("sandbox", "library", "upstream", "docs")}
TMP = Path("/tmp")  # noqa: S108 - its name is what matters
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
REGISTRY = SHARED_MEMORY / f"pybwrap-{os.geteuid()}"
PLACEHOLDER_TARGET = "/dev/null/pybwrap-placeholder"

Word = str | bytes | os.PathLike[str]
Completed = subprocess.CompletedProcess[str]


def pytest_report_header() -> str:
    if os.geteuid() == 0:
        return "running as root (uid 0)"
    return f"running as an unprivileged user (uid {os.geteuid()})"


@functools.cache
def sandbox_problem() -> str:
    """Why no sandbox can be made here; empty when one can. pybwrap is not asked: it may be what is broken."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--net", "--ipc", "--fork", "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return "" if done.returncode == 0 else done.stderr.strip() or f"unshare: exit status {done.returncode}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tests that are of the other user: the test command runs everything as both."""
    other = "unprivileged" if os.geteuid() == 0 else "as_root"
    config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker(other)])
    items[:] = [item for item in items if not item.get_closest_marker(other)]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if SANDBOX_TESTS.intersection(item.path.parents) and sandbox_problem():
        pytest.skip(f"NO SANDBOX CAN BE MADE HERE: {sandbox_problem()}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With PYBWRAP_REQUIRE_SANDBOX=1 a skip is a failure."""
    report = yield
    if report.skipped and os.environ.get("PYBWRAP_REQUIRE_SANDBOX") == "1":
        report.outcome = "failed"
    return report


def wait_until(condition: Callable[[], object], seconds: float = 20) -> bool:
    """Whether *condition* has come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def left_in_registry(directory: Path) -> list[str]:
    """The placeholders at or below *directory* that some sandbox has registered and not given back."""
    found = []
    for record in REGISTRY.iterdir() if REGISTRY.is_dir() else ():
        try:
            path = os.fsdecode(record.read_bytes().partition(b"\0")[0])
        except OSError:
            continue  # somebody has just removed it
        if Path(path) == directory or directory in Path(path).parents:
            found.append(path)
    return found


def placeholders_in(directory: Path) -> list[Path]:
    """The placeholder symlinks below *directory*, at any depth."""
    entries = [Path(top) / name for top, folders, files in os.walk(directory) for name in (*folders, *files)]
    return [path for path in entries if path.is_symlink() and str(path.readlink()) == PLACEHOLDER_TARGET]


@pytest.fixture
def workspace() -> Iterator[Path]:
    """An empty directory that every user can enter, and that no sandbox may leave anything of its own in."""
    # Not tmp_path: that is below a directory with mode 0700, where an unprivileged sandbox could not be looked into.
    directory = Path(tempfile.mkdtemp(prefix="pybwrap-test-", dir=TMP)).resolve()
    directory.chmod(0o755)
    try:
        yield directory
        clean = wait_until(lambda: not left_in_registry(directory) and not placeholders_in(directory), seconds=5)
        assert clean, f"left behind: {left_in_registry(directory)} {placeholders_in(directory)}"
    finally:
        remove_tree(directory)


def names_in(directory: Path) -> list[str]:
    """What is directly in *directory*, sorted."""
    return sorted(entry.name for entry in directory.iterdir())


def remove_tree(directory: Path) -> None:
    """Removes *directory*, whatever modes a test has given to what is in it."""
    for top, folders, _ in os.walk(directory):
        for name in folders:
            path = Path(top) / name
            if not path.is_symlink():
                path.chmod(0o700)
    shutil.rmtree(directory)


def command_line(*arguments: Word) -> list[Word]:
    """The words that start pybwrap."""
    return [sys.executable, "-m", "pybwrap", *arguments]


def clean_environment(**changes: str | None) -> dict[str, str]:
    """This process's environment without what a policy looks at, and with *changes* (None removes a variable)."""
    removed = {"TMPDIR", "PWD", "OLDPWD"}
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in removed and not name.lower().endswith("_proxy") and not name.startswith("PYBWRAP_")
    }
    for name, new in changes.items():
        if new is None:
            environment.pop(name, None)
        else:
            environment[name] = new
    return environment


def bare_environment(**variables: str) -> dict[str, str]:
    """Nothing but *variables*, and what Python needs to find pybwrap."""
    return {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ} | variables


class RunPybwrap(Protocol):
    def __call__(
        self,
        *arguments: Word,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
        pass_fds: Sequence[int] = (),
        timeout: float = 60,
    ) -> Completed: ...


class RunPolicy(Protocol):
    def __call__(
        self,
        policy: Mapping[str, object],
        argv: Sequence[Word],
        cwd: Path | None = None,
        *,
        options: Sequence[Word] = (),
        policy_cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
    ) -> Completed: ...


@pytest.fixture
def pybwrap(workspace: Path) -> RunPybwrap:
    """Runs `pybwrap ARGUMENT...` to its end, in *cwd* (default: the workspace), and captures what it writes.

    What is not UTF-8 comes as surrogate escapes (os.fsencode gives the bytes back).
    """

    def run(
        *arguments: Word,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
        pass_fds: Sequence[int] = (),
        timeout: float = 60,
    ) -> Completed:
        done = subprocess.run(
            command_line(*arguments),
            cwd=workspace if cwd is None else cwd,
            env=clean_environment() if env is None else env,
            input=stdin.encode(),
            capture_output=True,
            pass_fds=pass_fds,
            timeout=timeout,
            check=False,
        )
        # Not by subprocess, which would also change how lines end.
        return Completed(done.args, done.returncode, os.fsdecode(done.stdout), os.fsdecode(done.stderr))

    return run


@pytest.fixture
def run_policy(workspace: Path, pybwrap: RunPybwrap) -> RunPolicy:
    """Runs *argv* under a `--sandbox-policy`, resolved against *policy_cwd* (default: *cwd*)."""

    def run(
        policy: Mapping[str, object],
        argv: Sequence[Word],
        cwd: Path | None = None,
        *,
        options: Sequence[Word] = (),
        policy_cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
    ) -> Completed:
        where = workspace if cwd is None else cwd
        flags: list[Word] = ["--sandbox-policy-cwd", policy_cwd or where, "--sandbox-policy", json.dumps(policy)]
        return pybwrap(*flags, *options, "--", *argv, cwd=where, env=env, stdin=stdin)

    return run


PROBE = r"""
import errno, json, os, socket, sys

def attempt(action, *arguments):
    try:
        action(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"

def write(path):
    with open(os.path.join(path, "written") if os.path.isdir(path) else path, "a"):
        pass

with open("/proc/thread-self/status") as file:
    status = dict(line.rstrip("\n").split(":\t", 1) for line in file)
json.dump({
    "cwd": os.getcwd(),
    "pwd": os.environ.get("PWD"),
    "pid": os.getpid(),
    "proc_self": os.readlink("/proc/self"),
    "fds": [fd for fd in range(256) if attempt(os.fstat, fd) == "ok"],
    "status": {name: status[name].strip() for name in
               ("NoNewPrivs", "Seccomp", "CapPrm", "CapEff", "CapBnd", "SigIgn", "SigBlk")},
    "namespaces": {name: os.readlink(f"/proc/self/ns/{name}") for name in ("user", "mnt", "pid", "net", "ipc", "uts")},
    "internet": attempt(socket.socket, socket.AF_INET, socket.SOCK_STREAM),
    "unix": attempt(socket.socket, socket.AF_UNIX, socket.SOCK_STREAM),
    "writes": {path: attempt(write, path) for path in sys.argv[1:]},
}, sys.stdout)
"""


def probe(*paths: Word) -> list[Word]:
    """A command that prints, as JSON, where it finds itself, and what comes of writing to each of *paths*."""
    return [sys.executable, "-I", "-c", PROBE, *paths]


def as_ordinary_user() -> list[Word]:
    """A prefix for a command that must have no capabilities, whoever runs the tests."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--reuid=65533", "--regid=65533", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]


def in_private_namespaces(setup: str, *options: Word) -> list[Word]:
    """A prefix for a command that is root in namespaces of its own, where the shell script *setup* has run before.

    Its /dev/shm is empty, so that it meets no other test there.
    """
    script = f'set -e; mount -t tmpfs tmpfs /dev/shm; chmod 1777 /dev/shm; {setup}\nexec "$@"'
    return ["unshare", "--user", "--map-root-user", "--mount", *options, "sh", "-c", script, "sh"]
