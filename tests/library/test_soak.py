"""Nothing is left of sandboxes, whoever is killed at whatever moment, and however many have run.

PYBWRAP_SOAK_SECONDS and PYBWRAP_SOAK_LAUNCHES make these tests longer, PYBWRAP_SOAK_SEED repeats one's choices.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.conftest import REGISTRY, clean_environment, names_in, placeholders_in, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS = float(os.environ.get("PYBWRAP_SOAK_SECONDS", "20"))
LAUNCHES = int(os.environ.get("PYBWRAP_SOAK_LAUNCHES", "300"))
SEED = int(os.environ.get("PYBWRAP_SOAK_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
WORKSPACES = ("one", "two", "three")
PR_SET_CHILD_SUBREAPER = 36

COMMON = """
import asyncio, contextlib, gc, os, random, resource, signal, sys, threading, time
import pybwrap
from pybwrap import Limits, PermissionProfile, SandboxPolicy, SetupError, TimeoutExpired, aio
import pybwrap.launch.registry

registry_path, marker, seed, *workspaces = sys.argv[1:]
pybwrap.launch.registry.directory = lambda: registry_path
rng = random.Random(seed)

def policy(workspace):
    return rng.choice([
        SandboxPolicy.read_only(),
        SandboxPolicy.workspace_write(exclude_slash_tmp=True, exclude_tmpdir_env_var=True),
        PermissionProfile({":root": "read", ":workspace_roots": "write"}, protected_names=[".git", ".a", ".b"]),
        PermissionProfile({":root": "read", ":workspace_roots": "write", f"{workspace}/kept": "deny"}),
        PermissionProfile({":minimal": "read", ":workspace_roots": "read", f"{workspace}/kept": "deny"}),
    ])

SCRIPTS = {
    "echo out": b"out\\n",
    "echo out; sleep 0.05": b"out\\n",
    "(setsid sleep 99 &) >/dev/null 2>&1; echo out": b"out\\n",
    "trap '' TERM INT HUP; sleep 0.1; echo out": b"out\\n",
    "sleep 0.3": b"",
    "cat": b"in",
}

def choose():
    script = rng.choice(sorted(SCRIPTS))
    workspace = rng.choice(workspaces)
    parameters = {"policy": policy(workspace), "cwd": workspace}
    if rng.random() < 0.25:
        parameters |= {"files": {"given": b"x"}, "collect": ["left"]}
        script = script.replace("echo out", "echo left >left; echo out")
    if rng.random() < 0.1:
        parameters["limits"] = Limits(wall_time=0.05)
    expected = SCRIPTS[script.replace("echo left >left; ", "")]
    return ["sh", "-c", script, marker], expected, parameters

def descriptors():
    return sorted(os.listdir("/proc/self/fd"))[:-1]

def is_childless():
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False

def check(done, expected):
    if done.returncode == 0:
        assert done.stdout == expected, done
    else:
        assert done.returncode == -9 or done.stderr, done
"""

OWNER = (
    COMMON
    + """
seconds = float(os.environ["SOAK_SECONDS"])
killed_during_setup = 0

def by_run(timeout):
    words, expected, parameters = choose()
    check(pybwrap.run(words, input=b"in", capture_output=True, timeout=timeout, **parameters), expected)

def by_popen(timeout):
    words, expected, parameters = choose()
    streams = {"stdin": pybwrap.PIPE, "stdout": pybwrap.PIPE, "stderr": pybwrap.DEVNULL}
    with pybwrap.Popen(words, **streams, **parameters) as process:
        time.sleep(rng.random() * 0.02)
        process.send_signal(rng.choice([0, signal.SIGINT, signal.SIGTERM, signal.SIGKILL]))
        try:
            output = process.communicate(b"in", timeout=timeout)[0]
            assert process.returncode or output == expected, (words, output)
        finally:
            process.kill()

def by_aio(timeout):
    async def several():
        async def one():
            words, expected, parameters = choose()
            check(await aio.run(words, input=b"in", capture_output=True, timeout=timeout, **parameters), expected)
        return await asyncio.gather(one(), one(), return_exceptions=True)
    for result in asyncio.run(several()):
        if isinstance(result, Exception):
            raise result

def in_turn(ways):
    global killed_during_setup
    while time.monotonic() < end:
        try:
            rng.choice(ways)(rng.choice([None, None, 0.02, 0.1]))
        except TimeoutExpired:
            pass
        except SetupError:
            killed_during_setup += 1

def thread(ways):
    try:
        in_turn(ways)
    except BaseException as error:
        failures.append(error)
        raise

failures = []
end = time.monotonic() + 0.3
in_turn([by_run, by_popen, by_aio])  # what is opened once is open now
gc.collect()
before = descriptors()
end = time.monotonic() + seconds
threads = [threading.Thread(target=thread, args=([way],)) for way in (by_run, by_popen)]
for each in threads:
    each.start()
thread([by_run, by_popen, by_aio])
for each in threads:
    each.join()
gc.collect()
assert not failures
assert descriptors() == before, (before, descriptors())
assert is_childless()
print("nothing left", killed_during_setup)
"""
)

LAST_RUN = (
    COMMON
    + """
for workspace in workspaces:
    script = "test -d . && cat kept"
    policy = SandboxPolicy.workspace_write(exclude_slash_tmp=True, exclude_tmpdir_env_var=True)
    done = pybwrap.run(["sh", "-c", script], policy=policy, cwd=workspace, files={"f": b""}, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"kept", b""), done
    pybwrap.run(["true"], policy=policy, cwd=workspace, check=True)
print("nothing left")
"""
)


class Process(NamedTuple):
    pid: int
    depth: int
    """1 for an owner, 2 for a monitor, 3 for the init of a sandbox, more for what runs in it."""
    state: str


def processes() -> dict[int, list[tuple[int, str]]]:
    """All processes of this machine with their states, by parent."""
    found: dict[int, list[tuple[int, str]]] = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has just ended
            state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
            found.setdefault(int(parent), []).append((int(pid), state))
    return found


def descendants(top: int) -> list[Process]:
    by_parent = processes()

    def below(parent: int, depth: int) -> Iterator[Process]:
        for pid, state in by_parent.get(parent, ()):
            yield Process(pid, depth, state)
            yield from below(pid, depth + 1)

    return list(below(top, 1))


def marked(marker: str) -> list[str]:
    """The command lines of all processes that contain *marker*."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
                if marker in line:
                    found.append(line.replace("\0", " "))
    return found


def mounts() -> list[str]:
    """The mount points of this machine as this process sees them."""
    return sorted(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())


@pytest.fixture
def adopts_orphans() -> Iterator[None]:
    """Whatever a process of this test leaves behind becomes a child of this one, where it can be found."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    assert prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.fixture
def registry() -> Iterator[Path]:
    """The name of a registry that no other test cleans up."""
    directory = Path(f"{REGISTRY}-soak-{os.getpid()}")
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class Soak:
    """Owners that run sandboxes, one that is to survive and some that are not, and somebody who kills at random."""

    def __init__(self, workspace: Path, registry: Path) -> None:
        self.rng = random.Random(SEED)  # noqa: S311 - to be repeated, not to be secret
        self.marker = f"soak-{workspace.name}"
        self.workspaces = [workspace / name for name in WORKSPACES]
        for directory in self.workspaces:
            directory.mkdir()
            (directory / "kept").write_text("kept")
        self.registry = registry
        self.foreign = {process.pid for process in descendants(os.getpid())}
        self.owners: dict[int, subprocess.Popen[str]] = {}
        self.killed = dict.fromkeys(("owner", "monitor", "init", "inside"), 0)

    def start(self, script: str, seconds: float) -> subprocess.Popen[str]:
        words = [str(self.registry), self.marker, str(self.rng.random()), *map(str, self.workspaces)]
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), *words],
            env=clean_environment(SOAK_SECONDS=str(seconds)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.owners[process.pid] = process
        return process

    def mine(self) -> list[Process]:
        return [process for process in descendants(os.getpid()) if process.pid not in self.foreign]

    def reap_orphans(self) -> None:
        for process in self.mine():
            if process.depth == 1 and process.state == "Z" and process.pid not in self.owners:
                os.waitpid(process.pid, 0)

    def kill_somebody(self, surviving: int) -> None:
        kind = self.rng.choice(["owner", "monitor", "init", "inside"])
        alive = [process for process in self.mine() if process.state not in "ZX" and process.pid != surviving]
        depths = {"owner": {1}, "monitor": {2}, "init": {3}, "inside": {4, 5, 6}}[kind]
        candidates = [
            process.pid
            for process in alive
            if process.depth in depths and (kind != "owner" or process.pid in self.owners)
        ]
        if candidates:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.rng.choice(candidates), signal.SIGKILL)
                self.killed[kind] += 1

    def finish(self, process: subprocess.Popen[str]) -> str:
        output = process.communicate(timeout=60)[0]
        del self.owners[process.pid]
        return output

    def is_gone(self) -> bool:
        self.reap_orphans()
        return not self.mine() and not marked(self.marker)

    def close(self) -> None:
        for process in self.owners.values():
            process.kill()
            process.communicate()


@pytest.mark.timeout(SECONDS + 180)
@pytest.mark.usefixtures("adopts_orphans")
def test_nothing_is_left_of_sandboxes_whoever_is_killed_at_random_moments(workspace: Path, registry: Path) -> None:
    mounts_before = mounts()
    soak = Soak(workspace, registry)
    print(f"PYBWRAP_SOAK_SEED={SEED}")  # noqa: T201 - pytest shows it when the test fails
    try:
        survivor = soak.start(OWNER, SECONDS)
        victims: list[subprocess.Popen[str]] = []
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            for victim in [each for each in victims if each.poll() is not None]:
                victims.remove(victim)
                output = soak.finish(victim)
                assert victim.returncode == -signal.SIGKILL, output
            if len(victims) < 2:
                victims.append(soak.start(OWNER, 999))
            time.sleep(soak.rng.random() * 0.1)
            soak.kill_somebody(survivor.pid)
            soak.reap_orphans()
        for victim in victims:
            victim.kill()
            soak.finish(victim)

        output = soak.finish(survivor)
        assert (survivor.returncode, output.startswith("nothing left")) == (0, True), output
        assert min(soak.killed.values()) > 0, soak.killed
        assert wait_until(soak.is_gone), (soak.mine(), marked(soak.marker))
        assert mounts() == mounts_before

        last = soak.start(LAST_RUN, 0)
        assert soak.finish(last) == "nothing left\n"
        assert soak.is_gone(), (soak.mine(), marked(soak.marker))
        assert names_in(registry) == []
        assert placeholders_in(workspace) == []
        assert [names_in(directory) for directory in soak.workspaces] == [["kept"]] * len(WORKSPACES)
        assert mounts() == mounts_before
    finally:
        soak.close()


# --- Many, one after the other ------------------------------------------------------------------------------------

MANY = (
    COMMON
    + """
launches = int(os.environ["SOAK_LAUNCHES"])

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

def one(number):
    workspace = workspaces[number % len(workspaces)]
    parameters = {"policy": policy(workspace), "cwd": workspace, "stdout": pybwrap.PIPE}
    match number % 10:
        case 0:
            try:
                pybwrap.run([f"/nonexistent/{number}"], **parameters)
            except FileNotFoundError:
                return
            raise AssertionError("was run")
        case 1:
            with pybwrap.Popen(["sleep", "99"], **parameters) as process:
                process.kill()
            assert process.returncode == -9
        case 2:
            done = pybwrap.run(["sh", "-c", "echo x >y"], files={"f": b"x"}, collect=["y"], **parameters)
        case 3:
            assert asyncio.run(aio.run(["echo", str(number)], **parameters)).stdout == b"%d\\n" % number
        case _:
            assert pybwrap.run(["echo", str(number)], **parameters).stdout == b"%d\\n" % number

for number in range(100):
    one(number)
gc.collect()
before, size = descriptors(), resident()
for number in range(launches):
    one(number)
gc.collect()
grown = resident() - size
assert descriptors() == before, (before, descriptors())
assert is_childless()
# What leaked with each launch would be far more than what the allocator keeps.
assert grown < 3 << 20, grown
print("nothing left", grown)
"""
)


@pytest.mark.timeout(60 + LAUNCHES / 5)
def test_many_launches_leave_no_descriptor_no_child_and_no_memory_behind(workspace: Path, registry: Path) -> None:
    print(f"PYBWRAP_SOAK_SEED={SEED}")  # noqa: T201 - pytest shows it when the test fails
    (workspace / "kept").touch()
    done = subprocess.run(
        [sys.executable, "-c", MANY, str(registry), "many", str(SEED), str(workspace)],
        env=clean_environment(SOAK_LAUNCHES=str(LAUNCHES)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.startswith("nothing left")) == (0, True), done.stdout
    assert names_in(registry) == []
    assert names_in(workspace) == ["kept"]
