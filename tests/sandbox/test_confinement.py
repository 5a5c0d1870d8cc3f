"""What a command in a sandbox finds, and what it can do to what is outside: nothing."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pybwrap import SandboxPolicy
from pybwrap.cli.execution import plan_here
from pybwrap.launch.host import landlock_abi
from pybwrap.launch.process import launch
from pybwrap.plan.operation import Operation, OperationKind
from pybwrap.plan.spec import Command
from tests.conftest import clean_environment, command_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Completed, RunPolicy, RunPybwrap

READ_ONLY = {"type": "read-only"}
WITH_NETWORK = READ_ONLY | {"network_access": True}
WORKSPACE_WRITE = {"type": "workspace-write", "exclude_slash_tmp": True, "exclude_tmpdir_env_var": True}
POLICIES = pytest.mark.parametrize(
    "policy", [READ_ONLY, WORKSPACE_WRITE, WITH_NETWORK], ids=["read", "write", "network"]
)

LIBC = """
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)

def refusal(function, *arguments):
    ctypes.set_errno(0)
    result = function(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    return errno.errorcode[ctypes.get_errno()] if result == -1 else "allowed"

def syscall(number, *arguments):
    return refusal(libc.syscall, number, *arguments)
"""


def inside_python(script: str, *arguments: str) -> list[str]:
    return [sys.executable, "-IS", "-c", script, *arguments]


def assert_silent_success(done: Completed, stdout: str = "") -> None:
    assert (done.returncode, done.stdout, done.stderr) == (0, stdout, "")


# --- What a command starts with -----------------------------------------------------------------------------------


@POLICIES
def test_only_the_standard_streams_are_open(run_policy: RunPolicy, policy: dict[str, object]) -> None:
    # The shell's own glob opens one descriptor more, which is closed by the time each is tested.
    script = 'for fd in /proc/self/fd/*; do [ -e "$fd" ] && echo "${fd##*/}"; done; true'

    assert_silent_success(run_policy(policy, ["sh", "-c", script]), "0\n1\n2\n")


def test_signals_are_neither_ignored_nor_blocked(workspace: Path) -> None:
    def ignore_and_block() -> None:
        for number in range(1, signal.NSIG):
            if number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, 32, 33):
                signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

    options = ["--sandbox-policy-cwd", str(workspace), "--sandbox-policy", json.dumps(READ_ONLY), "--"]
    done = subprocess.run(
        command_line(*options, "sed", "-n", "/^Sig[BI]/p", "/proc/self/status"),
        env=clean_environment(),
        preexec_fn=ignore_and_block,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    zero = "0" * 16
    assert_silent_success(done, f"SigBlk:\t{zero}\nSigIgn:\t{zero}\n")


# --- System calls -------------------------------------------------------------------------------------------------

REFUSED_CALLS = """
import platform, struct
machine = platform.machine()
numbers = {"x86_64": dict(ptrace=101, mount=165, unshare=272, clone=56, ioctl=16, keyctl=250, perf_event_open=298,
                          process_vm_readv=310, kcmp=312, bpf=321, userfaultfd=323, setns=308, umount2=166,
                          open_by_handle_at=304, add_key=248),
           "aarch64": dict(ptrace=117, mount=40, unshare=97, clone=220, ioctl=29, keyctl=219, perf_event_open=241,
                           process_vm_readv=270, kcmp=272, bpf=280, userfaultfd=282, setns=268, umount2=39,
                           open_by_handle_at=265, add_key=217)}[machine]
numbers |= dict(io_uring_setup=425, io_uring_enter=426, open_tree=428, move_mount=429, fsopen=430, pidfd_getfd=438,
                mount_setattr=442)
buffer = ctypes.create_string_buffer(256)
self_fd = os.open(b".", os.O_RDONLY)
calls = {
    "ptrace": (0, 0, 0, 0),  # PTRACE_TRACEME
    "process_vm_readv": (os.getpid(), buffer, 0, buffer, 0, 0),
    "kcmp": (os.getpid(), os.getpid(), 0, 0, 1),
    "pidfd_getfd": (os.pidfd_open(os.getpid()), 0, 0),
    "bpf": (0, buffer, 128),
    "perf_event_open": (buffer, 0, -1, -1, 0),
    "userfaultfd": (1,),  # UFFD_USER_MODE_ONLY
    "io_uring_setup": (1, buffer),
    "io_uring_enter": (0, 0, 0, 0, 0),
    "keyctl": (0, -3, 0),  # KEYCTL_GET_KEYRING_ID of the session keyring
    "add_key": (b"user", b"name", b"x", 1, -3),
    "open_by_handle_at": (self_fd, buffer, 0),
    "setns": (os.open("/proc/self/ns/user", os.O_RDONLY), 0),
    "mount": (b"none", b"/", b"tmpfs", 0, 0),
    "umount2": (b"/proc", 2),
    "open_tree": (-100, b".", 1),  # OPEN_TREE_CLONE
    "move_mount": (self_fd, b"", -100, b".", 4),
    "fsopen": (b"tmpfs", 0),
    "mount_setattr": (-100, b".", 0, buffer, 32),
}
for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000, 0x80):
    print(f"unshare {flag:#x}", syscall(numbers["unshare"], flag))
    if flag != 0x80:
        print(f"clone {flag:#x}", syscall(numbers["clone"], flag | 17, 0, 0, 0, 0))
for name, arguments in calls.items():
    print(name, syscall(numbers[name], *arguments))
for name, request in (("TIOCSTI", 0x5412), ("TIOCLINUX", 0x541C), ("TIOCSETD", 0x5423)):
    for high in (0, 1 << 32):
        print(name, hex(high), syscall(numbers["ioctl"], 0, request | high, buffer))
print("clone3", syscall(435, buffer, 88))
"""


@POLICIES
def test_system_calls_that_lead_out_are_refused(run_policy: RunPolicy, policy: dict[str, object]) -> None:
    done = run_policy(policy, inside_python(LIBC + REFUSED_CALLS))

    assert (done.returncode, done.stderr) == (0, "")
    answers = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert len(answers) == 41
    assert answers.pop("clone3") == "ENOSYS"
    assert {name: answer for name, answer in answers.items() if answer != "EPERM"} == {}


def test_a_mount_program_cannot_bind_over_a_protected_path(workspace: Path, run_policy: RunPolicy) -> None:
    (workspace / ".git").mkdir()
    (workspace / ".git/config").write_text("old\n")
    script = (
        "mkdir d; mount --bind d .git; mount -t tmpfs t d; umount .git; mount -o remount,rw .git;"
        "unshare -Urm mount --bind d .git; echo x > .git/config"
    )

    done = run_policy(WORKSPACE_WRITE, ["sh", "-c", f"({script}) 2>/dev/null; cat .git/config"])

    assert_silent_success(done, "old\n")
    assert (workspace / ".git/config").read_text() == "old\n"


# --- Other processes ----------------------------------------------------------------------------------------------


@POLICIES
def test_the_init_of_the_sandbox_can_be_neither_read_nor_entered(
    run_policy: RunPolicy, policy: dict[str, object]
) -> None:
    script = (
        "import os\n"
        "for name in ('environ', 'mem', 'maps', 'auxv', 'syscall', 'stack'):\n"
        "    try:\n"
        "        with open(f'/proc/1/{name}', 'rb') as file:\n"
        "            print(name, file.read(1))\n"
        "    except PermissionError:\n"
        "        pass\n"
        "for name in ('cwd', 'root', 'exe', 'ns/user', 'ns/mnt'):\n"
        "    try:\n"
        "        print(name, os.readlink(f'/proc/1/{name}'))\n"
        "    except PermissionError:\n"
        "        pass\n"
        "for number in range(64):\n"
        "    for function in (os.readlink, lambda path: os.open(path, os.O_RDONLY)):\n"
        "        try:\n"
        "            print(number, function(f'/proc/1/fd/{number}'))\n"
        "        except (PermissionError, FileNotFoundError):\n"
        "            pass\n"
    )

    assert_silent_success(run_policy(policy, inside_python(script)))


def test_the_init_of_the_sandbox_cannot_be_killed_or_traced_from_inside(run_policy: RunPolicy) -> None:
    script = LIBC + (
        "import signal, time\n"
        "for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP, signal.SIGSEGV, signal.SIGINT):\n"
        "    try:\n"
        "        os.kill(1, number)\n"
        "    except PermissionError:\n"
        "        pass\n"
        "time.sleep(0.2)\n"
        "print(refusal(libc.ptrace, 16, 1, 0, 0), os.getppid())\n"  # PTRACE_ATTACH
        "print(open('/proc/1/stat').read().rpartition(')')[2].split()[0] in 'SR')\n"
    )

    assert_silent_success(run_policy(READ_ONLY, inside_python(script)), "EPERM 1\nTrue\n")


@POLICIES
def test_no_process_of_the_host_is_visible_or_reached_by_a_signal(
    run_policy: RunPolicy, policy: dict[str, object]
) -> None:
    with subprocess.Popen(["sleep", "60"]) as bystander:
        script = (
            "import os, signal, sys\n"
            "print(sorted(int(name) for name in os.listdir('/proc') if name.isdigit()))\n"
            "for pid in (int(sys.argv[1]), -1):\n"
            "    try:\n"
            "        os.kill(pid, signal.SIGTERM)\n"
            "    except (ProcessLookupError, PermissionError):\n"
            "        pass\n"
        )
        # In a process group and session of its own: kill(-1) spares nobody else.
        done = run_policy(policy, inside_python(script, str(bystander.pid)))
        still_runs = bystander.poll() is None
        bystander.kill()

    assert_silent_success(done, "[1, 2]\n")
    assert still_runs


def test_what_the_command_leaves_running_ends_with_it(workspace: Path, run_policy: RunPolicy) -> None:
    script = "(trap '' TERM HUP INT; setsid sh -c 'while :; do date +%N > alive; sleep 0.01; done') > /dev/null 2>&1 &"

    done = run_policy(WORKSPACE_WRITE, ["sh", "-c", f"{script} while ! [ -s alive ]; do sleep 0.01; done"])

    assert_silent_success(done)
    assert (workspace / "alive").exists()
    (workspace / "alive").unlink()
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(["sh", "-c", f"while ! [ -e {workspace}/alive ]; do sleep 0.01; done"], timeout=0.3, check=False)


# --- What else is shared on a machine -----------------------------------------------------------------------------


@pytest.fixture
def shared_memory() -> Iterator[int]:
    """The key of a System V segment on the host that everybody may attach."""
    libc = ctypes.CDLL(None, use_errno=True)
    key = 0
    segment = -1
    while segment < 0:
        key = int.from_bytes(os.urandom(3)) + 1
        segment = libc.shmget(key, 4096, 0o1000 | 0o2000 | 0o666)  # IPC_CREAT | IPC_EXCL
        assert segment >= 0 or ctypes.get_errno() == errno.EEXIST
    yield key
    libc.shmctl(segment, 0, None)  # IPC_RMID


@POLICIES
def test_system_v_memory_of_the_host_is_not_there(
    run_policy: RunPolicy, shared_memory: int, policy: dict[str, object]
) -> None:
    script = LIBC + f"print(refusal(libc.shmget, {shared_memory}, 4096, 0o666))\n"

    assert subprocess.run(inside_python(script), capture_output=True, text=True, check=True).stdout == "allowed\n"
    assert_silent_success(run_policy(policy, inside_python(script)), "ENOENT\n")


def test_message_queues_of_the_host_are_not_there(run_policy: RunPolicy) -> None:
    name = f"/pybwrap-test-{os.getpid()}-{os.urandom(4).hex()}".encode()
    script = LIBC + f"print(refusal(libc.mq_open, {name!r}, {os.O_RDONLY}))\n"
    libc = ctypes.CDLL(None, use_errno=True)
    queue = libc.mq_open(name, os.O_CREAT | os.O_RDWR, 0o666, None)
    assert queue >= 0, os.strerror(ctypes.get_errno())
    try:
        outside = subprocess.run(inside_python(script), capture_output=True, text=True, check=True)
        done = run_policy(READ_ONLY, inside_python(script))
    finally:
        libc.mq_unlink(name)
        os.close(queue)

    assert outside.stdout == "allowed\n"
    assert_silent_success(done, "ENOENT\n")


@POLICIES
def test_every_namespace_is_the_sandboxs_own(run_policy: RunPolicy, policy: dict[str, object]) -> None:
    kinds = ["user", "mnt", "pid", "ipc", "uts", "cgroup"] + (["net"] if policy is not WITH_NETWORK else [])
    script = "import os, sys\nfor kind in sys.argv[1:]:\n    print(os.readlink(f'/proc/self/ns/{kind}'))\n"

    done = run_policy(policy, inside_python(script, *kinds))

    assert done.returncode == 0
    shared = set(done.stdout.split()) & {os.readlink(f"/proc/self/ns/{kind}") for kind in kinds}  # noqa: PTH115
    assert shared == set()


def test_the_host_name_cannot_be_changed(run_policy: RunPolicy) -> None:
    script = LIBC + "print(refusal(libc.sethostname, b'changed', 7), refusal(libc.setdomainname, b'changed', 7))\n"

    done = run_policy(READ_ONLY, inside_python(script))

    assert_silent_success(done, "EPERM EPERM\n")
    assert socket.gethostname() != "changed"


def test_the_path_of_the_cgroup_is_not_told(run_policy: RunPolicy) -> None:
    done = run_policy(READ_ONLY, ["cut", "-d:", "-f3", "/proc/self/cgroup"])

    assert set(done.stdout.split()) == {"/"}


def test_the_terminal_is_out_of_reach(workspace: Path) -> None:
    controller, terminal = os.openpty()
    options = ["--sandbox-policy-cwd", str(workspace), "--sandbox-policy", json.dumps(READ_ONLY), "--"]
    script = LIBC + (
        "import fcntl\n"
        "try:\n"
        "    os.open('/dev/tty', os.O_RDWR)\n"
        "    print('has a terminal')\n"
        "except OSError as error:\n"
        "    print(errno.errorcode[error.errno])\n"
        "try:\n"
        "    fcntl.ioctl(0, 0x5412, b'x')\n"  # TIOCSTI
        "except OSError as error:\n"
        "    print(errno.errorcode[error.errno])\n"
    )
    with os.fdopen(controller, "rb"), os.fdopen(terminal, "rb") as stdin:
        done = subprocess.run(
            ["setsid", "--ctty", "--wait", *command_line(*options, *inside_python(script))],
            stdin=stdin,
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    assert_silent_success(done, "ENXIO\nEPERM\n")


# --- The second layer ---------------------------------------------------------------------------------------------


def needs_landlock(abi: int) -> None:
    if landlock_abi() < abi:
        pytest.skip(f"NOT ENFORCED HERE: this needs Landlock ABI {abi}, the kernel has {landlock_abi()}")


@pytest.mark.parametrize("has_landlock", [True, False], ids=["with", "without"])
def test_landlock_alone_refuses_a_write_that_every_mount_would_allow(workspace: Path, *, has_landlock: bool) -> None:
    needs_landlock(2)
    root = workspace / "root"
    root.mkdir()
    (workspace / "file").write_text("old\n")
    policy = SandboxPolicy.workspace_write(exclude_slash_tmp=True, exclude_tmpdir_env_var=True)
    plan = plan_here(policy.to_profile(), str(root))
    assert plan.landlock is not None
    # As if the mounts had a hole as large as the filesystem.
    mounts = (
        Operation(OperationKind.BIND, "/", "a hole", "/"),
        Operation(OperationKind.DEVICES, "/dev", "as ever"),
    )
    plan = plan._replace(operations=mounts, landlock=plan.landlock if has_landlock else None)
    script = "cd ..; (echo new > file; touch new; mkdir dir; mv file root/; ln file root/x) 2> /dev/null; touch root/ok"

    process = launch(plan, Command("sh", ("sh", "-c", script), str(root), dict(os.environ)))

    ended = process.wait()
    assert ended is not None
    assert ended.wait_status == 0
    assert (root / "ok").exists()
    changed = not (workspace / "file").exists() or {path.name for path in workspace.iterdir()} != {"file", "root"}
    assert changed is not has_landlock


def test_landlock_keeps_signals_from_the_init_of_the_sandbox(run_policy: RunPolicy) -> None:
    needs_landlock(6)
    script = "import os\ntry:\n    os.kill(1, 0)\n    print('could be sent')\nexcept PermissionError:\n    pass\n"

    assert_silent_success(run_policy(READ_ONLY, inside_python(script)))


# --- Ways round a protected path ----------------------------------------------------------------------------------

WAYS = """
import errno, os, sys

def attempt(name, function, *arguments):
    try:
        function(*arguments)
        print(name, "worked")
    except OSError as error:
        print(name, errno.errorcode[error.errno])

os.mkdir("other")
open("other/file", "w").close()
attempt("rename an ancestor", os.rename, "above", "moved")
attempt("rename the protected path", os.rename, "above/kept", "moved")
attempt("rename over it", os.rename, "other", "above/kept")
attempt("remove it", os.rmdir, "above/kept")
attempt("link a file of it", os.link, "above/kept/file", "linked")
attempt("move a file out of it", os.rename, "above/kept/file", "moved")
attempt("write a file of it", os.open, "above/kept/file", os.O_WRONLY)
attempt("truncate a file of it", os.truncate, "above/kept/file", 0)
attempt("change its mode", os.chmod, "above/kept", 0o777)
attempt("change its times", os.utime, "above/kept/file", (0, 0))
attempt("set an attribute", os.setxattr, "above/kept/file", "user.x", b"x")
attempt("rename .git", os.rename, ".git", "moved")
attempt("rename over .git", os.rename, "other/file", ".git")
attempt("unlink .git", os.unlink, ".git")
attempt("symlink at .git", os.symlink, "other", ".git")
attempt("write through .git", os.open, ".git", os.O_WRONLY | os.O_CREAT)
attempt("rename .codex", os.rename, ".codex", "moved")
attempt("rename over .codex", os.rename, "other", ".codex")
attempt("remove .codex", os.rmdir, ".codex")
attempt("make below .codex", os.mkdir, ".codex/x")
fd = os.open("above/kept/file", os.O_RDONLY)
attempt("write through a descriptor of it", os.open, f"/proc/self/fd/{fd}", os.O_RDWR)
attempt("write through its root link", os.open, f"/proc/self/root{os.getcwd()}/above/kept/file", os.O_RDWR)
"""


def test_no_way_round_a_protected_path(workspace: Path, pybwrap: RunPybwrap) -> None:
    (workspace / "above/kept").mkdir(parents=True)
    (workspace / "above/kept/file").write_text("old\n")
    entries = [
        {"path": {"type": "special", "value": {"kind": "root"}}, "access": "read"},
        {"path": {"type": "path", "path": str(workspace)}, "access": "write"},
        {"path": {"type": "path", "path": str(workspace / "above/kept")}, "access": "read"},
    ]
    profile = {
        "type": "managed",
        "file_system": {"type": "restricted", "entries": entries},
        "network": "restricted",
    }
    options = ["--sandbox-policy-cwd", str(workspace), "--permission-profile", json.dumps(profile), "--"]

    done = pybwrap(*options, *inside_python(WAYS))

    assert (done.returncode, done.stderr) == (0, "")
    answers = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    busy = {name: answers.pop(name) for name in list(answers) if name.startswith(("rename", "remove", "unlink"))}
    assert set(busy.values()) <= {"EBUSY", "EXDEV"}
    assert len(busy) == 10
    assert answers.pop("link a file of it") == "EXDEV"
    assert answers.pop("move a file out of it") in {"EXDEV", "EROFS"}
    assert answers.pop("symlink at .git") == "EEXIST"
    assert answers.pop("write through .git") in {"ENOTDIR", "ENOENT", "EACCES"}
    assert set(answers.values()) <= {"EROFS", "EACCES"}
    assert len(answers) == 8
    assert (workspace / "above/kept/file").read_text() == "old\n"


def test_a_symlink_that_is_swapped_while_it_is_written_through_leads_to_no_write_outside(
    workspace: Path, run_policy: RunPolicy
) -> None:
    root, outside = workspace / "root", workspace / "outside"
    (root / "inside").mkdir(parents=True)
    outside.mkdir()
    script = (
        "import os, sys, threading, time\n"
        "os.symlink(sys.argv[1], 'link')\n"
        "os.symlink('inside', 'way')\n"
        "end = time.monotonic() + 1.5\n"
        "def swap():\n"
        "    while time.monotonic() < end:\n"
        "        for target in (sys.argv[1], 'inside', '/usr', '.codex'):\n"
        "            os.symlink(target, 'new')\n"
        "            os.rename('new', 'way')\n"
        "thread = threading.Thread(target=swap)\n"
        "thread.start()\n"
        "count = 0\n"
        "while time.monotonic() < end:\n"
        "    try:\n"
        "        os.close(os.open(f'way/file{count}', os.O_CREAT | os.O_WRONLY))\n"
        "        count += 1\n"
        "    except OSError:\n"
        "        pass\n"
        "thread.join()\n"
        "print(count > 0, len(os.listdir('inside')) == count)\n"
    )

    done = run_policy(WORKSPACE_WRITE, inside_python(script, str(outside)), root)

    assert_silent_success(done, "True True\n")
    assert list(outside.iterdir()) == []
    assert not (root / ".codex").exists()
