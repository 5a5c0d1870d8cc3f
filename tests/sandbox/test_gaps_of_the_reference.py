"""What codex-linux-sandbox 0.169.0 gets wrong: each test here fails on its behaviour.

The numbers are those of section 10 of this project's description of the reference.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pybwrap.launch.host import landlock_abi
from tests.conftest import clean_environment, command_line, left_in_registry, wait_until

if TYPE_CHECKING:
    from tests.conftest import Completed, RunPolicy, RunPybwrap, Word

READ_ONLY = {"type": "read-only"}
WITH_NETWORK = READ_ONLY | {"network_access": True}
WORKSPACE_WRITE = {"type": "workspace-write", "exclude_slash_tmp": True, "exclude_tmpdir_env_var": True}

Entry = dict[str, object]


def inside_python(script: str, *arguments: str) -> list[str]:
    return [sys.executable, "-IS", "-c", script, *arguments]


def at(path: Path | str, access: str) -> Entry:
    return {"path": {"type": "path", "path": str(path)}, "access": access}


def special(kind: str, access: str) -> Entry:
    return {"path": {"type": "special", "value": {"kind": kind}}, "access": access}


def profile_options(*entries: Entry, cwd: Path) -> list[str]:
    profile = {
        "type": "managed",
        "file_system": {"type": "restricted", "entries": entries},
        "network": "restricted",
    }
    return ["--sandbox-policy-cwd", str(cwd), "--permission-profile", json.dumps(profile), "--"]


def assert_silent_success(done: Completed, stdout: str = "") -> None:
    assert (done.returncode, done.stdout, done.stderr) == (0, stdout, "")


# --- 1: datagrams to sockets of the host --------------------------------------------------------------------------

SEND_DATAGRAMS = """
import array, socket, sys
address = sys.argv[1]

def attempt(name, function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        print(name, error.errno)

def fresh(kind):
    return socket.socket(socket.AF_UNIX, kind)

for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW):
    attempt(kind.name + " sendto", lambda: fresh(kind).sendto(b"sendto", address))
    attempt(kind.name + " sendmsg", lambda: fresh(kind).sendmsg([b"sendmsg"], [], 0, address))
for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
    one = lambda: socket.socketpair(socket.AF_UNIX, kind)[0]
    attempt(kind.name + " pair sendto", lambda: one().sendto(b"pair", address))
    attempt(kind.name + " pair sendmsg", lambda: one().sendmsg([b"pair"], [], 0, address))
"""


def test_1_no_datagram_reaches_a_socket_of_the_host(workspace: Path, run_policy: RunPolicy) -> None:
    address = str(workspace / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(address)
        log.setblocking(False)

        done = run_policy(WORKSPACE_WRITE, inside_python(SEND_DATAGRAMS, address))
        assert (done.returncode, done.stderr) == (0, "")
        with pytest.raises(BlockingIOError):
            log.recv(16)

        # The script is able to: with a network these sockets are the host's to offer.
        run_policy(WITH_NETWORK, inside_python(SEND_DATAGRAMS, address))
        assert log.recv(16) == b"sendto"


# --- 2: abstract sockets of the host ------------------------------------------------------------------------------


def test_2_an_abstract_socket_of_the_host_is_out_of_reach_even_with_a_network(run_policy: RunPolicy) -> None:
    if landlock_abi() < 6:
        pytest.skip(f"NOT ENFORCED HERE: abstract sockets need Landlock ABI 6, this kernel has {landlock_abi()}")
    script = (
        "import socket, sys\n"
        "for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):\n"
        "    try:\n"
        "        socket.socket(socket.AF_UNIX, kind).connect('\\0' + sys.argv[1] + kind.name)\n"
        "        print('connected to', kind.name)\n"
        "    except PermissionError:\n"
        "        pass\n"
    )
    name = f"pybwrap-test-{os.getpid()}-{os.urandom(4).hex()}-"
    with ExitStack() as stack:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            server = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            server.bind("\0" + name + kind.name)
            if kind is socket.SOCK_STREAM:
                server.listen()

        assert_silent_success(run_policy(WITH_NETWORK, inside_python(script, name)))

        outside = subprocess.run(inside_python(script, name), capture_output=True, text=True, check=True)
        assert outside.stdout == "connected to SOCK_STREAM\nconnected to SOCK_DGRAM\n"


# --- 3: pairs of sockets ------------------------------------------------------------------------------------------


def test_3_send_works_on_a_pair_of_sockets(run_policy: RunPolicy) -> None:
    script = "import socket; a, b = socket.socketpair(); a.send(b'x'); b.sendall(b'y'); print(b.recv(1), a.recv(1))"

    assert_silent_success(run_policy(READ_ONLY, inside_python(script)), "b'x' b'y'\n")


def test_3_another_thread_can_wake_up_an_asyncio_loop(run_policy: RunPolicy) -> None:
    script = (
        "import asyncio, threading, time\n"
        "async def main():\n"
        "    loop = asyncio.get_running_loop()\n"
        "    woken = asyncio.Event()\n"
        "    threading.Timer(0.2, lambda: loop.call_soon_threadsafe(woken.set)).start()\n"
        "    loop.call_later(15, lambda: None)\n"
        "    await woken.wait()\n"
        "start = time.monotonic()\n"
        "asyncio.run(main())\n"
        "print(time.monotonic() - start < 10)\n"
    )

    assert_silent_success(run_policy(READ_ONLY, inside_python(script)), "True\n")


def test_3_node_can_start_a_program_and_wait_for_it(run_policy: RunPolicy) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    script = (
        "const r = require('child_process').spawnSync('echo', ['hello']); console.log(r.error, String(r.stdout).trim())"
    )

    assert_silent_success(run_policy(READ_ONLY, [node, "-e", script]), "undefined hello\n")


# --- 4: inherited descriptors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [READ_ONLY, WORKSPACE_WRITE, WITH_NETWORK], ids=["read-only", "write", "network"])
def test_4_open_files_and_connections_of_the_caller_do_not_come_along(
    workspace: Path, pybwrap: RunPybwrap, policy: dict[str, object]
) -> None:
    (workspace / "root").mkdir()
    script = (
        "import os, sys\n"
        "for fd in sys.argv[1:]:\n"
        "    try:\n"
        "        os.write(int(fd), b'written')\n"
        "        print(fd, 'was written to')\n"
        "    except OSError as error:\n"
        "        assert error.errno == 9, error\n"
    )
    ours, theirs = socket.socketpair()
    with ours, theirs, (workspace / "file").open("w") as file:
        ours.setblocking(False)
        fds = (file.fileno(), theirs.fileno())

        done = pybwrap(
            *("--sandbox-policy-cwd", str(workspace / "root"), "--sandbox-policy", json.dumps(policy), "--"),
            *inside_python(script, *map(str, fds)),
            cwd=workspace / "root",
            pass_fds=fds,
        )

        assert_silent_success(done)
        with pytest.raises(BlockingIOError):
            ours.recv(16)
    assert (workspace / "file").read_text() == ""


# --- 5: denied paths ----------------------------------------------------------------------------------------------


def test_5_a_glob_is_refused_before_anything_runs_rather_than_half_enforced(
    workspace: Path, pybwrap: RunPybwrap
) -> None:
    glob: Entry = {"path": {"type": "glob_pattern", "pattern": "**/secrets"}, "access": "deny"}
    options = profile_options(special("root", "read"), at(workspace, "write"), glob, cwd=workspace)

    done = pybwrap(*options, "touch", "ran")

    assert done.returncode == 2
    assert "glob patterns are not supported" in done.stderr
    assert not (workspace / "ran").exists()


def test_5_a_readable_child_is_reopened_below_a_denied_directory(workspace: Path, pybwrap: RunPybwrap) -> None:
    (workspace / "denied/open").mkdir(parents=True)
    (workspace / "denied/open/file").write_text("content\n")
    (workspace / "denied/secret").write_text("secret\n")
    options = profile_options(
        special("root", "read"), at(workspace / "denied", "deny"), at(workspace / "denied/open", "read"), cwd=workspace
    )
    attempts = ("cat denied/secret", "ls denied", "touch denied/open/x")
    script = "cat denied/open/file\n" + "".join(f"! {attempt} 2>/dev/null || exit 1\n" for attempt in attempts)

    assert_silent_success(pybwrap(*options, "sh", "-c", script), "content\n")


def test_5_denying_a_symlink_denies_what_it_leads_to(workspace: Path, pybwrap: RunPybwrap) -> None:
    (workspace / "real").mkdir()
    (workspace / "real/secret").write_text("secret\n")
    (workspace / "link").symlink_to("real")
    options = profile_options(
        special("root", "read"), at(workspace, "write"), at(workspace / "link", "deny"), cwd=workspace
    )
    attempts = ("cat link/secret", "cat real/secret", "ls real", "rm link", "ln -sfn /tmp link", "mv real x")
    script = "".join(f"! ({attempt}) 2>/dev/null || echo done: '{attempt}'\n" for attempt in attempts)

    assert_silent_success(pybwrap(*options, "sh", "-c", f"{script} touch ran"))
    assert (workspace / "ran").exists()
    assert (workspace / "link").readlink() == Path("real")


# --- 6: roots that make the reference fail ------------------------------------------------------------------------


def test_6_a_file_can_be_a_writable_root(workspace: Path, run_policy: RunPolicy) -> None:
    (workspace / "cwd").mkdir()
    (workspace / "file").write_text("old\n")
    policy = WORKSPACE_WRITE | {"writable_roots": [str(workspace / "file")]}

    done = run_policy(policy, ["sh", "-c", "echo new > ../file"], workspace / "cwd")

    assert_silent_success(done)
    assert (workspace / "file").read_text() == "new\n"


def test_6_a_root_that_the_user_cannot_write_does_not_stop_the_run(run_policy: RunPolicy, workspace: Path) -> None:
    policy = WORKSPACE_WRITE | {"writable_roots": ["/usr/share"]}

    # As root it can be written indeed.
    done = run_policy(policy, ["sh", "-c", "! mkdir /usr/share/.codex /usr/share/.codex/x 2>/dev/null; touch ran"])

    assert_silent_success(done)
    assert (workspace / "ran").exists()
    assert not Path("/usr/share/.codex").exists()


@pytest.mark.parametrize("kind", ["missing", "loop", "file", "unreadable", "relative", "empty"])
@pytest.mark.parametrize(
    "policy", [READ_ONLY, WORKSPACE_WRITE | {"exclude_tmpdir_env_var": False}], ids=["read", "write"]
)
def test_6_a_tmpdir_that_leads_nowhere_does_not_stop_the_run(
    workspace: Path, run_policy: RunPolicy, kind: str, policy: dict[str, object]
) -> None:
    (workspace / "root").mkdir()
    (workspace / "loop").symlink_to("loop")
    (workspace / "file").touch()
    (workspace / "closed").mkdir(mode=0)
    tmpdir = {
        "missing": f"{workspace}/missing",
        "loop": f"{workspace}/loop/tmp",
        "file": f"{workspace}/file",
        "unreadable": f"{workspace}/closed/tmp",
        "relative": "tmp",
        "empty": "",
    }[kind]

    done = run_policy(policy, ["echo", "ran"], workspace / "root", env=clean_environment(TMPDIR=tmpdir))

    assert_silent_success(done, "ran\n")


# --- 7: what is left behind by kill -9 ----------------------------------------------------------------------------


def test_7_nothing_is_left_after_kill_9_and_another_run_of_any_policy(workspace: Path, run_policy: RunPolicy) -> None:
    root, elsewhere = workspace / "root", workspace / "elsewhere"
    root.mkdir()
    elsewhere.mkdir()
    options = ["--sandbox-policy-cwd", str(root), "--sandbox-policy", json.dumps(WORKSPACE_WRITE), "--"]
    running = subprocess.Popen(
        command_line(*options, "sh", "-c", "echo ready; sleep 60"),
        cwd=root,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        assert sorted(path.name for path in root.iterdir()) == [".agents", ".aws", ".codex", ".git"]
        monitor = next(pid for pid in children(running.pid))
        # Stopped first, so that neither sees the other die and cleans up.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in (monitor, running.pid):
                os.kill(pid, number)

    # Any run of this user may have cleaned up by now, another test's too.
    assert wait_until(lambda: not Path(f"/proc/{monitor}").exists() or is_zombie(monitor))
    assert_silent_success(run_policy(READ_ONLY, ["true"], elsewhere))
    assert list(root.iterdir()) == []
    assert left_in_registry(workspace) == []


def children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(entry.name))
        except OSError:
            continue  # it has just ended
    return found


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


# --- 8: metadata --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [".git", ".codex"])
def test_8_a_symlink_in_the_place_of_metadata_is_protected_and_works(
    workspace: Path, run_policy: RunPolicy, name: str
) -> None:
    # As Android's repo tool lays out a checkout.
    (workspace / "store/real").mkdir(parents=True)
    (workspace / "store/real/config").write_text("old\n")
    root = workspace / "root"
    root.mkdir()
    (root / name).symlink_to("../store/real")
    policy = WORKSPACE_WRITE | {"writable_roots": [str(workspace / "store")]}

    done = run_policy(
        policy,
        ["sh", "-c", f"cat {name}/config; ! (echo x > {name}/config) 2>/dev/null; ! rm {name} 2>/dev/null"],
        root,
    )

    assert_silent_success(done, "old\n")
    assert (root / name).readlink() == Path("../store/real")
    assert (workspace / "store/real/config").read_text() == "old\n"


def test_8_metadata_of_the_workspace_is_protected_where_everything_is_writable(
    workspace: Path, pybwrap: RunPybwrap
) -> None:
    (workspace / ".git").mkdir()
    options = profile_options(special("root", "write"), special("project_roots", "write"), cwd=workspace)

    done = pybwrap(*options, "sh", "-c", "touch file; ! touch .git/x 2>/dev/null; ! mkdir .codex/x 2>/dev/null")

    assert_silent_success(done)
    assert sorted(path.name for path in workspace.iterdir()) == [".git", "file"]
    assert list((workspace / ".git").iterdir()) == []


# --- 9: signals, arguments, exit statuses -------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_9_a_signal_handler_inside_runs_to_its_end(workspace: Path, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'sleep 0.2; echo handled > handled; exit 7' {name}; echo ready; while :; do sleep 0.05; done"
    options = ["--sandbox-policy-cwd", str(workspace), "--sandbox-policy", json.dumps(WORKSPACE_WRITE), "--"]
    running = subprocess.Popen(
        command_line(*options, "sh", "-c", script), cwd=workspace, env=clean_environment(), stdout=subprocess.PIPE
    )
    with running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        running.send_signal(number)

    assert running.returncode == 7
    assert (workspace / "handled").read_text() == "handled\n"


def test_9_arguments_need_not_be_utf_8(workspace: Path, run_policy: RunPolicy) -> None:
    name = b"not utf-8: \xff\xfe"

    done = run_policy(WORKSPACE_WRITE, ["sh", "-c", 'echo hello > "$1"', "sh", name])

    assert_silent_success(done)
    assert [os.fsencode(path.name) for path in workspace.iterdir()] == [name]


@pytest.mark.parametrize(
    ("name", "mode", "content", "status"),
    [
        ("missing", None, "", 127),
        ("not-executable", 0o644, "#!/bin/sh\n", 126),
        ("no-interpreter", 0o755, "echo hello\n", 126),
        ("directory/", 0o755, "", 126),
        ("file/below", None, "", 127),
    ],
)
def test_9_a_command_that_cannot_be_executed_ends_as_in_a_shell(
    workspace: Path, run_policy: RunPolicy, name: str, mode: int | None, content: str, status: int
) -> None:
    (workspace / "file").touch()
    path = workspace / name
    if name.endswith("/"):
        path.mkdir()
    elif mode is not None:
        path.write_text(content)
        path.chmod(mode)

    done = run_policy(READ_ONLY, [f"{workspace}/{name}"])

    assert done.returncode == status
    assert done.stderr.startswith("pybwrap: ")
    assert done.stderr.count("\n") == 1
    assert name in done.stderr


def test_9_a_name_that_is_nowhere_on_path_ends_as_in_a_shell(run_policy: RunPolicy) -> None:
    done = run_policy(READ_ONLY, ["pybwrap-no-such-command"], env=clean_environment(PATH="/usr/bin:/bin"))

    assert done.returncode == 127
    assert "command not found on PATH" in done.stderr


@pytest.mark.unprivileged  # root can search every directory
def test_9_a_name_that_is_nowhere_on_path_ends_so_although_a_directory_there_is_closed(
    workspace: Path, run_policy: RunPolicy
) -> None:
    (workspace / "closed").mkdir(mode=0)
    environment = clean_environment(PATH=f"{workspace}/closed:/usr/bin:/bin")

    assert run_policy(READ_ONLY, ["pybwrap-no-such-command"], env=environment).returncode == 127


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
def test_9_the_signal_that_ended_the_command_can_be_told(run_policy: RunPolicy, number: int) -> None:
    done = run_policy(READ_ONLY, ["sh", "-c", f"kill -{int(number)} $$"])

    assert (done.returncode, done.stderr) == (128 + number, "")


# --- 10: a restricted network in spite of full write access -------------------------------------------------------


@pytest.mark.parametrize(
    "policy",
    [
        {"type": "external", "network": "restricted"},
        {"type": "managed", "file_system": {"type": "unrestricted"}, "network": "restricted"},
    ],
    ids=["external", "unrestricted"],
)
def test_10_a_restricted_network_is_a_namespace_of_its_own_whatever_may_be_written(
    workspace: Path, pybwrap: RunPybwrap, policy: dict[str, object]
) -> None:
    options = ["--sandbox-policy-cwd", str(workspace), "--permission-profile", json.dumps(policy), "--"]

    done = pybwrap(*options, "sh", "-c", "echo x > file; readlink /proc/self/ns/net")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() != str(Path("/proc/self/ns/net").readlink())
    assert (workspace / "file").exists()


# --- 11: a sandbox in a sandbox -----------------------------------------------------------------------------------


def nested(outer: tuple[Word, ...], inner: tuple[Word, ...], *command: Word) -> list[Word]:
    return ["run", "--no-tmp", *outer, "--", *command_line("run", "--no-tmp", *inner, "--", *command)]


@pytest.mark.unprivileged  # nobody inside may map root again
@pytest.mark.parametrize("outer_network", [(), ("--allow-network",)], ids=["isolated", "network"])
@pytest.mark.parametrize("inner_network", [(), ("--allow-network",)], ids=["isolated", "network"])
def test_11_a_sandbox_can_be_made_in_a_sandbox_that_allows_it(
    workspace: Path, pybwrap: RunPybwrap, outer_network: tuple[str, ...], inner_network: tuple[str, ...]
) -> None:
    (workspace / "inner").mkdir()
    outer = ("--allow-nested", "-w", str(workspace), *outer_network)
    inner = ("-w", str(workspace / "inner"), *inner_network)

    done = pybwrap(*nested(outer, inner, "sh", "-c", "touch inner/a; ! touch b 2>/dev/null"))

    assert_silent_success(done)
    assert sorted(str(path.relative_to(workspace)) for path in workspace.rglob("*")) == ["inner", "inner/a"]


@pytest.mark.unprivileged  # nobody inside may map root again
def test_11_the_outer_sandbox_still_protects_what_the_inner_one_opens(workspace: Path, pybwrap: RunPybwrap) -> None:
    (workspace / "root/.git").mkdir(parents=True)
    outer = ("--allow-nested", "--allow-network", "-w", workspace / "root")
    command = ("sh", "-c", "touch root/a; ! touch b 2>/dev/null; ! touch root/.git/x 2>/dev/null")

    assert_silent_success(pybwrap(*nested(outer, ("-w", workspace, "--allow-network"), *command)))
    assert sorted(str(path.relative_to(workspace)) for path in workspace.rglob("*")) == ["root", "root/.git", "root/a"]


def test_11_no_sandbox_is_made_in_a_sandbox_that_does_not_allow_it(workspace: Path, pybwrap: RunPybwrap) -> None:
    done = pybwrap(*nested(("-w", workspace), (), "touch", "ran"))

    assert done.returncode == 125
    assert "(namespaces)" in done.stderr
    assert not (workspace / "ran").exists()
