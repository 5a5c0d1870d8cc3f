"""What the reference's own suite asserts of the Linux sandbox, asserted of this one.

The comment at each test names the test of the reference (tests/suite/sandbox.rs) that it stands for.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import clean_environment, left_in_registry, placeholders_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Completed, RunPolicy, RunPybwrap

READ_ONLY = {"type": "read-only"}
WORKSPACE_WRITE = {"type": "workspace-write", "exclude_slash_tmp": True, "exclude_tmpdir_env_var": True}
METADATA = (".git", ".agents", ".codex", ".aws")

Entry = dict[str, object]


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


def inside_python(script: str, *arguments: str) -> list[str]:
    return [sys.executable, "-IS", "-c", script, *arguments]


def assert_silent_success(done: Completed, stdout: str = "") -> None:
    assert (done.returncode, done.stdout, done.stderr) == (0, stdout, "")


# --- Reading and writing ------------------------------------------------------------------------------------------


# test_root_read
def test_everything_can_be_read_under_a_read_only_policy(run_policy: RunPolicy) -> None:
    done = run_policy(READ_ONLY, ["ls", "-l", "/bin/"])

    assert done.returncode == 0
    assert " sh" in done.stdout


# test_root_write
@pytest.mark.parametrize("policy", [READ_ONLY, WORKSPACE_WRITE], ids=["read-only", "workspace-write"])
def test_a_file_outside_of_the_writable_roots_cannot_be_written(
    workspace: Path, run_policy: RunPolicy, policy: dict[str, object]
) -> None:
    root = workspace / "root"
    root.mkdir()
    outside = workspace / "outside"
    outside.write_text("untouched")

    done = run_policy(policy, ["sh", "-c", f"echo x > {outside} || echo x > {workspace}/new"], root)

    assert done.returncode != 0
    assert "Read-only file system" in done.stderr
    assert outside.read_text() == "untouched"
    assert sorted(workspace.iterdir()) == [outside, root]


# test_writable_root
def test_the_working_directory_and_each_named_root_can_be_written(workspace: Path, run_policy: RunPolicy) -> None:
    directories = [workspace / name for name in ("cwd", "first", "second")]
    for directory in directories:
        directory.mkdir()
    policy = WORKSPACE_WRITE | {"writable_roots": [str(path) for path in directories[1:]]}

    done = run_policy(
        policy, ["sh", "-c", "for d in cwd first second; do echo hello > ../$d/file; done"], directories[0]
    )

    assert_silent_success(done)
    assert [(path / "file").read_text() for path in directories] == ["hello\n"] * 3


def test_the_temporary_directories_can_be_written_unless_they_are_excluded(
    workspace: Path, run_policy: RunPolicy
) -> None:
    for name in ("root", "tmpdir"):
        (workspace / name).mkdir()
    environment = clean_environment(TMPDIR=str(workspace / "tmpdir"))
    write = ["sh", "-c", f'echo 1 > "$TMPDIR/file"; echo 2 > {workspace}/file; true']

    run_policy({"type": "workspace-write"}, write, workspace / "root", env=environment)
    written = [path.exists() for path in (workspace / "tmpdir/file", workspace / "file")]
    for path in (workspace / "tmpdir/file", workspace / "file"):
        path.unlink(missing_ok=True)
    run_policy(WORKSPACE_WRITE, write, workspace / "root", env=environment)

    assert written == [True, True]
    assert [path.exists() for path in (workspace / "tmpdir/file", workspace / "file")] == [False, False]


# sandbox_ignores_missing_writable_roots_under_bwrap: here only an implied root may be missing
def test_a_named_root_that_is_missing_is_an_error_before_anything_runs(workspace: Path, run_policy: RunPolicy) -> None:
    missing = workspace / "missing"

    done = run_policy(WORKSPACE_WRITE | {"writable_roots": [str(missing)]}, ["touch", "ran"])

    assert done.returncode == 2
    assert str(missing) in done.stderr
    assert list(workspace.iterdir()) == []


def test_an_implied_root_that_is_missing_is_left_out(workspace: Path, run_policy: RunPolicy) -> None:
    environment = clean_environment(TMPDIR=str(workspace / "missing"))
    policy = WORKSPACE_WRITE | {"exclude_tmpdir_env_var": False}

    assert_silent_success(run_policy(policy, ["touch", "ran"], env=environment))
    assert (workspace / "ran").exists()
    assert not (workspace / "missing").exists()


# sandbox_ignores_missing_writable_roots_under_bwrap
def test_a_missing_root_that_the_profile_says_to_skip_is_skipped(workspace: Path, pybwrap: RunPybwrap) -> None:
    missing = at(workspace / "missing", "write") | {"missing_path_behavior": "skip"}
    options = profile_options(special("root", "read"), at(workspace, "write"), missing, cwd=workspace)

    assert_silent_success(pybwrap(*options, "touch", "ran"))
    assert (workspace / "ran").exists()


def test_a_single_file_can_be_the_writable_root(workspace: Path, pybwrap: RunPybwrap) -> None:
    (workspace / "file").write_text("old\n")
    (workspace / "sibling").write_text("old\n")
    options = profile_options(special("root", "read"), at(workspace / "file", "write"), cwd=workspace)

    done = pybwrap(*options, "sh", "-c", "echo new > file; ! echo new 2>/dev/null > sibling; ! rm file 2>/dev/null")

    assert_silent_success(done)
    assert (workspace / "file").read_text() == "new\n"
    assert (workspace / "sibling").read_text() == "old\n"


# --- Devices ------------------------------------------------------------------------------------------------------


# test_dev_null_write
@pytest.mark.parametrize("policy", [READ_ONLY, WORKSPACE_WRITE], ids=["read-only", "workspace-write"])
def test_dev_null_can_be_written(run_policy: RunPolicy, policy: dict[str, object]) -> None:
    assert_silent_success(run_policy(policy, ["sh", "-c", "echo x > /dev/null"]))


# bwrap_populates_minimal_dev_nodes
def test_the_standard_device_nodes_are_there_and_no_others(run_policy: RunPolicy) -> None:
    done = run_policy(
        READ_ONLY, ["sh", "-c", "cd /dev; for node in *; do test -c $node -o -b $node && echo $node; done"]
    )

    names = ["full", "null", "random", "tty", "urandom", "zero"]
    assert set(names) <= set(done.stdout.split()) <= {*names, "console", "ptmx"}


# bwrap_preserves_writable_dev_shm_bind_mount
def test_dev_shm_as_a_writable_root_is_the_one_of_the_host(workspace: Path, run_policy: RunPolicy) -> None:
    with tempfile.NamedTemporaryFile("w+", dir="/dev/shm", prefix="pybwrap-test-") as file:
        file.write("old\n")
        file.flush()
        append = ["sh", "-c", f"echo new >> {file.name}"]

        private = run_policy(WORKSPACE_WRITE, append)
        shared = run_policy(WORKSPACE_WRITE | {"writable_roots": ["/dev/shm"]}, append)  # noqa: S108

        assert_silent_success(private)
        assert_silent_success(shared)
        assert Path(file.name).read_text() == "old\nnew\n"
    assert left_in_registry(workspace) == []


# sandbox_keeps_parent_repo_discovery_while_blocking_child_metadata: the registry is out of reach
def test_the_registry_of_placeholders_is_hidden_where_a_root_would_expose_it(run_policy: RunPolicy) -> None:
    registry = f"/dev/shm/pybwrap-{os.geteuid()}"  # noqa: S108
    policy = WORKSPACE_WRITE | {"writable_roots": ["/dev/shm"]}  # noqa: S108

    done = run_policy(policy, ["sh", "-c", f"ls {registry} || mv {registry} {registry}.old || touch {registry}/x"])

    assert done.returncode != 0
    assert done.stdout == ""
    assert Path(registry).is_dir()
    assert not Path(registry, "x").exists()


# --- Privileges ---------------------------------------------------------------------------------------------------


# test_no_new_privs_is_enabled
@pytest.mark.parametrize(
    "policy", [READ_ONLY, WORKSPACE_WRITE | {"network_access": True}], ids=["read-only", "network"]
)
def test_no_new_privs_is_set(run_policy: RunPolicy, policy: dict[str, object]) -> None:
    done = run_policy(policy, inside_python("import ctypes; print(ctypes.CDLL(None).prctl(39, 0, 0, 0, 0))"))

    assert_silent_success(done, "1\n")


# sandboxed_command_has_no_effective_or_permitted_capabilities
@pytest.mark.parametrize(
    "policy", [READ_ONLY, WORKSPACE_WRITE | {"network_access": True}], ids=["read-only", "network"]
)
def test_every_set_of_capabilities_is_empty(run_policy: RunPolicy, policy: dict[str, object]) -> None:
    done = run_policy(policy, ["grep", "^Cap", "/proc/self/status"])

    assert dict(line.split(":\t") for line in done.stdout.splitlines()) == dict.fromkeys(
        ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), "0" * 16
    )


# sandbox_inner_stage_rejects_retained_capabilities
def test_the_inner_stage_refuses_to_run_where_capabilities_are_left(workspace: Path) -> None:
    policy = ["--sandbox-policy-cwd", str(workspace), "--sandbox-policy", json.dumps(READ_ONLY)]
    command = [sys.executable, "-m", "pybwrap", *policy, "--apply-seccomp-then-exec", "--"]

    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", *command, "touch", str(workspace / "ran")],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 125
    assert "capabilities are still held" in done.stderr
    assert not (workspace / "ran").exists()


# --- The network --------------------------------------------------------------------------------------------------


class Server:
    """A TCP server of the host that answers one client after the other."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.clients = 0

    def serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.clients += 1
            client.settimeout(2)
            with client, suppress(OSError):
                client.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok")
                client.shutdown(socket.SHUT_WR)
                while client.recv(4096):
                    pass

    def clients_so_far(self) -> int:
        """How many were there. Asked as one more client, whose turn comes after theirs."""
        with socket.create_connection(("127.0.0.1", self.port), 10) as client:
            while client.recv(4096):
                pass
        self.clients -= 1
        return self.clients


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        server.listener.shutdown(socket.SHUT_RDWR)
        server.listener.close()
        thread.join()


CONNECT = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5)"
TOOLS = {
    # sandbox_blocks_curl, _wget, _nc, _ssh, _dev_tcp_redirection
    "curl": "curl -sS -m 5 --noproxy '*' http://127.0.0.1:{port}/",
    "wget": "wget -q -T 5 -t 1 --no-proxy -O - http://127.0.0.1:{port}/",
    "nc": "nc -w 5 127.0.0.1 {port} < /dev/null",
    "ssh": "ssh -F /dev/null -o BatchMode=yes -o ConnectTimeout=5 -p {port} nobody@127.0.0.1 true",
    "bash": "exec 3<> /dev/tcp/127.0.0.1/{port}",
    sys.executable: f'{sys.executable} -IS -c "{CONNECT}" {{port}}',
}


@pytest.mark.parametrize(
    "tool",
    # ssh refuses to run for a user without an entry in the user database.
    [pytest.param(tool, marks=pytest.mark.as_root) if tool == "ssh" else tool for tool in TOOLS],
)
def test_a_server_of_the_host_is_reached_only_with_network_access(
    run_policy: RunPolicy, server: Server, tool: str
) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    command = ["bash", "-c", TOOLS[tool].format(port=server.port)]

    refused = run_policy(READ_ONLY, command)
    assert refused.returncode not in (0, 126, 127)
    assert server.clients_so_far() == 0

    run_policy(READ_ONLY | {"network_access": True}, command)
    assert server.clients_so_far() == 1


# sandbox_blocks_getent, as far as a name is looked up with a datagram to a server
def test_a_datagram_to_the_host_arrives_only_with_network_access(run_policy: RunPolicy) -> None:
    script = (
        "import socket, sys\n"
        "sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "sender.sendto(b'query', ('127.0.0.1', int(sys.argv[1])))\n"
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver:
        resolver.bind(("127.0.0.1", 0))
        resolver.setblocking(False)
        command = inside_python(script, str(resolver.getsockname()[1]))

        refused = run_policy(READ_ONLY, command)
        assert "PermissionError" in refused.stderr
        with pytest.raises(BlockingIOError):
            resolver.recv(16)

        assert run_policy(READ_ONLY | {"network_access": True}, command).returncode == 0
        assert resolver.recv(16) == b"query"


NAME_SERVER = """
import fcntl, os, socket, struct, subprocess, sys, threading

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
    request = struct.pack("16sH14x", b"lo", 0x41)  # IFF_UP | IFF_RUNNING
    fcntl.ioctl(control, 0x8914, request)  # SIOCSIFFLAGS
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))

def answer():
    while True:
        query, client = server.recvfrom(512)
        end = query.index(0, 12) + 5
        is_a = query[end - 4 : end - 2] == bytes([0, 1])
        header = query[:2] + struct.pack("!HHHHH", 0x8180, 1, int(is_a), 0, 0)
        record = struct.pack("!HHHIH4B", 0xC00C, 1, 1, 60, 4, 192, 0, 2, 7) if is_a else b""
        server.sendto(header + query[12:end] + record, client)

threading.Thread(target=answer, daemon=True).start()
for command in sys.argv[1:]:
    print("status", subprocess.run(["sh", "-c", command]).returncode, flush=True)
"""


# sandbox_blocks_getent
def test_a_name_is_resolved_only_with_network_access(workspace: Path) -> None:
    # In a network of its own, where the only name server is ours and knows every name.
    (workspace / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:2 attempts:1\n")
    (workspace / "nsswitch.conf").write_text("hosts: dns\n")
    (workspace / "server.py").write_text(NAME_SERVER)
    lookups = [
        f"{sys.executable} -m pybwrap --sandbox-policy-cwd / --sandbox-policy "
        f"'{json.dumps(READ_ONLY | {'network_access': allowed})}' -- getent hosts some.example"
        for allowed in (True, False)
    ]
    mounts = " && ".join(f"mount --bind {workspace}/{name} /etc/{name}" for name in ("resolv.conf", "nsswitch.conf"))
    mounts += " && mount -t tmpfs tmpfs /dev/shm"  # the registry there may be that of the root outside

    done = subprocess.run(
        [
            *("unshare", "--user", "--map-root-user", "--net", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh"),
            *(sys.executable, str(workspace / "server.py"), *lookups),
        ],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.stderr == ""
    lines = done.stdout.splitlines()
    # 2: getent found nothing
    assert [line.split() for line in lines] == [["192.0.2.7", "some.example"], ["status", "0"], ["status", "2"]]


# sandbox_blocks_ping
def test_no_packet_can_be_made_by_hand(run_policy: RunPolicy) -> None:
    script = (
        "import socket\n"
        "for family, kind in ((socket.AF_INET, socket.SOCK_RAW), (socket.AF_INET, socket.SOCK_DGRAM),\n"
        "                     (socket.AF_PACKET, socket.SOCK_RAW), (socket.AF_NETLINK, socket.SOCK_RAW)):\n"
        "    try:\n"
        "        socket.socket(family, kind, 1 if family == socket.AF_INET else 0)\n"
        "        print(family.name, kind.name, 'was made')\n"
        "    except PermissionError:\n"
        "        pass\n"
    )

    assert_silent_success(run_policy(READ_ONLY, inside_python(script)))


def test_the_sandbox_has_no_interface_but_its_own_loopback(run_policy: RunPolicy) -> None:
    done = run_policy(READ_ONLY, ["sh", "-c", "tail -n +3 /proc/net/dev | cut -d: -f1; readlink /proc/self/ns/net"])

    interfaces, namespace = done.stdout.split()
    assert interfaces == "lo"
    assert namespace != str(Path("/proc/self/ns/net").readlink())


# --- Metadata of a workspace --------------------------------------------------------------------------------------


# sandbox_blocks_metadata_writes_inside_writable_root
@pytest.mark.parametrize("name", METADATA)
def test_existing_metadata_keeps_its_content_while_siblings_are_writable(
    workspace: Path, run_policy: RunPolicy, name: str
) -> None:
    metadata = workspace / name
    metadata.mkdir()
    (metadata / "config").write_text("old\n")
    attempts = (
        f"echo new > {name}/config",
        f"echo new > {name}/new",
        f"rm {name}/config",
        f"rm -rf {name}",
        f"mv {name} away",
        f"mkdir -p other && mv -T other {name}",
        f"ln {name}/config link",
    )
    script = "".join(f"! ({attempt}) 2>/dev/null || echo done: '{attempt}'\n" for attempt in attempts)

    done = run_policy(WORKSPACE_WRITE, ["sh", "-c", f"{script} echo sibling > sibling; cat {name}/config"])

    assert_silent_success(done, "old\n")
    assert (workspace / "sibling").read_text() == "sibling\n"
    assert [path.name for path in metadata.iterdir()] == ["config"]
    assert (metadata / "config").read_text() == "old\n"


@pytest.mark.parametrize("name", METADATA)
def test_missing_metadata_cannot_be_made(workspace: Path, run_policy: RunPolicy, name: str) -> None:
    attempts = (
        f"mkdir -p {name}/sub",
        f"echo x > {name}",
        f"echo x > {name}/config",
        f"ln -sfn /tmp {name}",
        f"mkdir -p d && mv -T d {name}",
        f"rm -rf {name} && mkdir {name}",
    )
    script = "".join(f"! ({attempt}) 2>/dev/null || echo done: '{attempt}'\n" for attempt in attempts)

    done = run_policy(WORKSPACE_WRITE, ["sh", "-c", f"{script} echo sibling > sibling"])

    assert_silent_success(done)
    assert (workspace / "sibling").exists()
    assert not os.path.lexists(workspace / name)


def test_metadata_is_protected_in_every_writable_root(workspace: Path, run_policy: RunPolicy) -> None:
    for name in ("cwd", "root"):
        (workspace / name).mkdir()
    policy = WORKSPACE_WRITE | {"writable_roots": [str(workspace / "root")]}

    done = run_policy(
        policy, ["sh", "-c", "mkdir ../root/.codex/x; touch ../root/.git; mkdir .codex/x"], workspace / "cwd"
    )

    assert done.returncode != 0
    assert list((workspace / "root").iterdir()) == []
    assert list((workspace / "cwd").iterdir()) == []


# sandbox_blocks_codex_symlink_replacement_attack
def test_metadata_behind_a_symlink_can_neither_be_written_nor_swapped(workspace: Path, run_policy: RunPolicy) -> None:
    target = workspace / "decoy"
    target.mkdir()
    (target / "config.toml").write_text("old\n")
    (workspace / ".codex").symlink_to("decoy")
    attempts = (
        "echo new > .codex/config.toml",
        "echo new > decoy/config.toml",
        "rm .codex",
        "mv .codex away",
        "ln -sfn /tmp .codex",
        "mv decoy away",
        "mkdir d && mv -T d .codex",
    )
    script = "".join(f"! ({attempt}) 2>/dev/null || echo done: '{attempt}'\n" for attempt in attempts)

    done = run_policy(WORKSPACE_WRITE, ["sh", "-c", script])

    assert_silent_success(done)
    assert (target / "config.toml").read_text() == "old\n"
    assert (workspace / ".codex").readlink() == Path("decoy")


# sandbox_reports_codex_symlink_build_failure_without_panicking: here such a workspace can be used
@pytest.mark.parametrize("name", METADATA)
def test_symlinked_metadata_does_not_stop_the_run(workspace: Path, run_policy: RunPolicy, name: str) -> None:
    (workspace / "kept").mkdir()
    (workspace / name).symlink_to("kept")

    done = run_policy(
        WORKSPACE_WRITE, ["sh", "-c", f"! touch {name}/x 2>/dev/null; readlink {name}; echo ok > sibling"]
    )

    assert_silent_success(done, "kept\n")
    assert (workspace / "sibling").exists()
    assert list((workspace / "kept").iterdir()) == []


@pytest.mark.parametrize("target", ["/usr", "../outside", "nowhere", "nowhere/at/all"])
def test_metadata_that_leads_anywhere_is_followed_but_never_to_a_write(
    workspace: Path, run_policy: RunPolicy, target: str
) -> None:
    root = workspace / "root"
    root.mkdir()
    (workspace / "outside").mkdir()
    (root / ".codex").symlink_to(target)

    done = run_policy(
        WORKSPACE_WRITE,
        ["sh", "-c", "! (mkdir -p .codex/x || touch .codex || mkdir -p nowhere/at/all) 2>/dev/null; echo ok > sibling"]
        if target.startswith("nowhere")
        else ["sh", "-c", "! (mkdir .codex/x || ln -sfn /tmp .codex) 2>/dev/null; echo ok > sibling"],
        root,
    )

    assert_silent_success(done)
    assert sorted(path.name for path in root.iterdir()) == [".codex", "sibling"]
    assert list((workspace / "outside").iterdir()) == []
    assert (root / ".codex").readlink() == Path(target)


# sandbox_keeps_parent_repo_discovery_while_blocking_child_metadata
def test_the_repository_above_is_found_while_none_can_be_made_below(workspace: Path, run_policy: RunPolicy) -> None:
    git("init", "--quiet", cwd=workspace)
    child = workspace / "child"
    child.mkdir()

    found = run_policy(WORKSPACE_WRITE, ["git", "rev-parse", "--show-toplevel"], child)
    made = run_policy(WORKSPACE_WRITE, ["git", "init", "--quiet", "."], child)
    directory = run_policy(WORKSPACE_WRITE, ["mkdir", ".codex"], child)

    assert_silent_success(found, f"{workspace}\n")
    assert made.returncode != 0
    assert directory.returncode != 0
    assert list(child.iterdir()) == []
    assert placeholders_in(workspace) == []
    assert git("status", "--porcelain", "--ignored", cwd=workspace) == ""


def test_the_git_directory_of_a_worktree_is_read_only_wherever_it_is(workspace: Path, run_policy: RunPolicy) -> None:
    main, tree = workspace / "main", workspace / "tree"
    git("init", "--quiet", str(main), cwd=workspace)
    git("commit", "--quiet", "--allow-empty", "-m", "first", cwd=main)
    git("worktree", "add", "--quiet", str(tree), cwd=main)
    policy = WORKSPACE_WRITE | {"writable_roots": [str(workspace)]}
    git_directory = main / ".git/worktrees/tree"
    before = sorted(git_directory.iterdir())

    done = run_policy(
        policy,
        ["sh", "-c", f"git status --porcelain; ! (touch {git_directory}/x || echo gitdir: /tmp > .git) 2>/dev/null"],
        tree,
    )

    assert_silent_success(done)
    assert sorted(git_directory.iterdir()) == before
    assert (tree / ".git").read_text() == f"gitdir: {git_directory}\n"


def git(*arguments: str, cwd: Path) -> str:
    environment = clean_environment(
        HOME=str(cwd),
        GIT_CONFIG_NOSYSTEM="1",
        GIT_AUTHOR_NAME="nobody",
        GIT_AUTHOR_EMAIL="nobody@localhost",
        GIT_COMMITTER_NAME="nobody",
        GIT_COMMITTER_EMAIL="nobody@localhost",
    )
    done = subprocess.run(
        ["git", *arguments], cwd=cwd, env=environment, check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout


# --- Denied paths and restricted reads ----------------------------------------------------------------------------


# sandbox_blocks_explicit_split_policy_carveouts_under_bwrap
def test_what_is_denied_below_a_writable_root_is_neither_read_nor_written(workspace: Path, pybwrap: RunPybwrap) -> None:
    (workspace / "denied").mkdir()
    (workspace / "denied/secret").write_text("secret\n")
    (workspace / "file").write_text("secret\n")
    options = profile_options(
        special("root", "read"),
        at(workspace, "write"),
        at(workspace / "denied", "deny"),
        at(workspace / "file", "deny"),
        cwd=workspace,
    )
    attempts = (
        "cat denied/secret",
        "ls denied",
        "touch denied/new",
        "mv denied x",
        "cat file",
        "echo > file",
        "rm file",
    )
    script = "".join(f"! ({attempt}) 2>/dev/null || echo done: '{attempt}'\n" for attempt in attempts)

    assert_silent_success(pybwrap(*options, "sh", "-c", f"{script} echo ok > sibling"))
    assert (workspace / "denied/secret").read_text() == "secret\n"
    assert (workspace / "file").read_text() == "secret\n"
    assert (workspace / "sibling").exists()


def test_a_denied_path_that_is_missing_cannot_be_made(workspace: Path, pybwrap: RunPybwrap) -> None:
    options = profile_options(
        special("root", "read"), at(workspace, "write"), at(workspace / "later/secret", "deny"), cwd=workspace
    )

    done = pybwrap(*options, "sh", "-c", "! (mkdir -p later/secret || echo x > later) 2>/dev/null; echo ok > sibling")

    assert_silent_success(done)
    assert [path.name for path in workspace.iterdir()] == ["sibling"]


# sandbox_starts_with_denied_tmp_without_exposing_registry
@pytest.mark.parametrize("readable", ["root", "minimal"])
@pytest.mark.parametrize("denied", ["slash_tmp", "tmpdir"])
def test_a_sandbox_starts_without_its_temporary_directory(
    workspace: Path, pybwrap: RunPybwrap, readable: str, denied: str
) -> None:
    (workspace / "secret").write_text("secret\n")
    options = profile_options(special(readable, "read"), special(denied, "deny"), cwd=Path("/usr"))
    environment = clean_environment(TMPDIR=str(workspace))
    script = f"! cat {workspace}/secret 2>/dev/null; ! ls /dev/shm/pybwrap-{os.geteuid()} 2>/dev/null"

    done = pybwrap(*options, "sh", "-c", script, cwd=Path("/usr"), env=environment)

    assert_silent_success(done)


# sandbox_reenables_writable_subpaths_under_unreadable_parents
def test_a_writable_child_is_reopened_below_a_denied_directory(workspace: Path, pybwrap: RunPybwrap) -> None:
    child = workspace / "parent/between/child"
    child.mkdir(parents=True)
    for directory in (workspace / "parent", child.parent):
        (directory / "secret").write_text("secret\n")
    options = profile_options(
        special("root", "read"), at(workspace / "parent", "deny"), at(child, "write"), cwd=workspace
    )
    attempts = (
        "cat parent/secret",
        "cat parent/between/secret",
        "ls parent",
        "touch parent/new",
        "touch parent/between/new",
        "mkdir parent/between/new",
    )
    script = "".join(f"! ({attempt}) 2>/dev/null || echo done: '{attempt}'\n" for attempt in attempts)

    assert_silent_success(pybwrap(*options, "sh", "-c", f"{script} echo ok > {child}/file"))
    assert (child / "file").read_text() == "ok\n"


# In bwrap.rs, split_policy_reenables_writable_files_after_unreadable_parent
def test_a_writable_file_is_reopened_below_a_denied_directory(workspace: Path, pybwrap: RunPybwrap) -> None:
    (workspace / "parent").mkdir()
    (workspace / "parent/file").write_text("old\n")
    (workspace / "parent/secret").write_text("secret\n")
    options = profile_options(
        special("root", "read"), at(workspace / "parent", "deny"), at(workspace / "parent/file", "write"), cwd=workspace
    )

    done = pybwrap(*options, "sh", "-c", "! cat parent/secret 2>/dev/null; echo new > parent/file")

    assert_silent_success(done)
    assert (workspace / "parent/file").read_text() == "new\n"


# In bwrap.rs, split_policy_reenables_nested_writable_subpaths_after_read_only_parent
def test_a_writable_child_is_reopened_below_a_read_only_directory(workspace: Path, pybwrap: RunPybwrap) -> None:
    (workspace / "kept/child").mkdir(parents=True)
    options = profile_options(
        special("root", "read"),
        at(workspace, "write"),
        at(workspace / "kept", "read"),
        at(workspace / "kept/child", "write"),
        cwd=workspace,
    )

    done = pybwrap(*options, "sh", "-c", "! touch kept/x 2>/dev/null; touch kept/child/x x")

    assert_silent_success(done)
    assert sorted(str(path.relative_to(workspace)) for path in workspace.rglob("x")) == ["kept/child/x", "x"]


# sandbox_blocks_root_read_carveouts_under_bwrap
def test_what_is_denied_below_a_readable_root_is_not_read(workspace: Path, pybwrap: RunPybwrap) -> None:
    (workspace / "denied").mkdir()
    for path in (workspace / "denied/secret", workspace / "file", workspace / "open"):
        path.write_text("content\n")
    options = profile_options(
        special("root", "read"), at(workspace / "denied", "deny"), at(workspace / "file", "deny"), cwd=workspace
    )

    done = pybwrap(*options, "sh", "-c", "! cat file 2>/dev/null; ! ls denied 2>/dev/null; cat denied/secret open")

    assert done.stdout == "content\n"
    assert "denied/secret: Permission denied" in done.stderr


# In bwrap.rs, restricted_read_only_uses_scoped_read_roots, ..._with_platform_defaults_includes_usr
def test_restricted_reads_show_the_platform_and_what_is_named(workspace: Path, pybwrap: RunPybwrap) -> None:
    (workspace / "named").mkdir()
    (workspace / "named/file").write_text("content\n")
    (workspace / "secret").write_text("secret\n")
    options = profile_options(special("minimal", "read"), at(workspace / "named", "read"), cwd=workspace / "named")
    script = (
        "cat file; ! cat ../secret 2>/dev/null; ! touch file x /usr/x 2>/dev/null;"
        "! ls /var 2>/dev/null; ! ls /home 2>/dev/null; test -c /dev/null && test -r /proc/self/status"
    )

    assert_silent_success(pybwrap(*options, "sh", "-c", script, cwd=workspace / "named"), "content\n")
    assert (workspace / "named/file").read_text() == "content\n"


# User complaint 14 of the reference: such writes "succeeded" into a tmpfs
def test_under_restricted_reads_a_write_outside_of_the_rules_fails(workspace: Path, pybwrap: RunPybwrap) -> None:
    options = profile_options(special("minimal", "read"), at(workspace / "root", "write"), cwd=workspace / "root")
    (workspace / "root").mkdir()
    places = f"/new /tmp/new {workspace}/new /etc/new /proc/new"
    script = f"touch ok; for path in {places}; do touch $path 2>/dev/null && echo $path; done; true"

    assert_silent_success(pybwrap(*options, "sh", "-c", script, cwd=workspace / "root"))
    assert (workspace / "root/ok").exists()


def test_under_restricted_reads_a_sandbox_without_a_fresh_proc_starts(workspace: Path, pybwrap: RunPybwrap) -> None:
    options = profile_options(special("minimal", "read"), at(workspace, "write"), cwd=workspace)

    assert_silent_success(pybwrap("--no-proc", *options, "touch", "ran"))
    assert (workspace / "ran").exists()


# test_writable_root for roots of other users, which the reference refuses to start with
def test_a_root_that_belongs_to_somebody_else_does_not_stop_the_run(workspace: Path, run_policy: RunPolicy) -> None:
    if os.geteuid() == 0:
        foreign = workspace / "foreign"
        foreign.mkdir()
        os.chown(foreign, 65534, 65534)
    else:
        foreign = Path("/usr/share")

    done = run_policy(
        WORKSPACE_WRITE | {"writable_roots": [str(foreign)]},
        ["sh", "-c", f"! touch {foreign}/new 2>/dev/null; ! mkdir {foreign}/.codex 2>/dev/null; touch ran"],
    )

    assert_silent_success(done)
    assert (workspace / "ran").exists()
    assert not (foreign / "new").exists()
    assert not (foreign / ".codex").exists()


# In bwrap.rs, symlinked_writable_roots_bind_real_target_and_remap_carveouts
def test_a_root_named_through_a_symlink_is_writable_and_protected(workspace: Path, run_policy: RunPolicy) -> None:
    (workspace / "real/root/.codex").mkdir(parents=True)
    (workspace / "alias").symlink_to("real")
    (workspace / "cwd").mkdir()
    policy = WORKSPACE_WRITE | {"writable_roots": [str(workspace / "alias/root")]}

    done = run_policy(
        policy, ["sh", "-c", "touch ../alias/root/file; ! touch ../alias/root/.codex/x 2>/dev/null"], workspace / "cwd"
    )

    assert_silent_success(done)
    assert (workspace / "real/root/file").exists()
    assert list((workspace / "real/root/.codex").iterdir()) == []
