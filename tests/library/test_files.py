"""What a command finds with `files`, what comes back with `collect`, and that the host has nothing of either."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import pybwrap
from pybwrap import Outcome, PermissionProfile, PolicyError, SandboxPolicy
from pybwrap.launch.workspace_overlay import WorkspaceOverlay
from tests.conftest import REGISTRY, SHARED_MEMORY, in_private_namespaces, names_in, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

Policy = SandboxPolicy | PermissionProfile

WORKSPACE_WRITE = SandboxPolicy.workspace_write(exclude_slash_tmp=True, exclude_tmpdir_env_var=True)
READ_ONLY = SandboxPolicy.read_only()
EVERYWHERE_WRITABLE = PermissionProfile({":root": "write"})
SHARED_MEMORY_WRITABLE = PermissionProfile({":root": "read", str(SHARED_MEMORY): "write"})
UNSEEN = PermissionProfile({":minimal": "read"})


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A registry that no other test uses, so that what is left in it can be counted."""
    directory = f"{REGISTRY}-test-{os.getpid()}"
    monkeypatch.setattr("pybwrap.launch.registry.directory", lambda: directory)
    yield Path(directory)
    if Path(directory).exists():
        assert names_in(Path(directory)) == []
        Path(directory).rmdir()


def run_sh(
    script: str,
    workspace: Path,
    policy: Policy = READ_ONLY,
    **options: Any,  # noqa: ANN401 - those of `pybwrap.run`
) -> pybwrap.CompletedProcess[str]:
    return pybwrap.run(["sh", "-c", script], policy=policy, cwd=workspace, capture_output=True, text=True, **options)


def contents(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}


# --- What goes in -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [READ_ONLY, WORKSPACE_WRITE, EVERYWHERE_WRITABLE, UNSEEN])
def test_files_are_there_for_the_command_and_not_on_the_host(workspace: Path, policy: Policy) -> None:
    done = run_sh("cat a b/c", workspace, policy, files={"a": b"one ", Path("b/c"): b"two"})
    assert (done.stdout, done.stderr, done.files) == ("one two", "", {})
    assert names_in(workspace) == []


def test_a_file_hides_the_one_of_the_host_and_leaves_its_neighbours(workspace: Path) -> None:
    (workspace / "sub").mkdir()
    (workspace / "sub/kept").write_text("kept ")
    (workspace / "sub/hidden").write_text("host")
    done = run_sh("cat sub/kept sub/hidden", workspace, files={"sub/hidden": b"given"})
    assert done.stdout == "kept given"
    assert (workspace / "sub/hidden").read_text() == "host"


def test_a_file_is_not_written_through_a_symlink_of_the_host(workspace: Path) -> None:
    (workspace / "real").mkdir()
    (workspace / "link").symlink_to("real")
    done = run_sh("cat link/file; ls real", workspace, files={"link/file": b"given"})
    assert (done.stdout, done.stderr) == ("given", "")


def test_a_file_that_starts_as_a_program_can_be_executed(workspace: Path) -> None:
    done = run_sh("./tool; test -x text || echo not", workspace, files={"tool": b"#!/bin/sh\necho ran\n", "text": b""})
    assert done.stdout == "ran\nnot\n"


@pytest.mark.parametrize("path", ["/absolute", "../up", "a/../b", "", ".", "a//b", "a/", "nul\0"])
def test_a_path_that_could_leave_the_directory_is_refused(workspace: Path, path: str) -> None:
    with pytest.raises(ValueError, match="relative path"):
        run_sh("true", workspace, files={path: b""})


def test_a_file_cannot_contain_another(workspace: Path) -> None:
    with pytest.raises(ValueError, match="cannot be a file and contain"):
        run_sh("true", workspace, files={"a": b"", "a/b": b""})


def test_text_is_not_taken_for_bytes(workspace: Path) -> None:
    with pytest.raises(TypeError, match="expected bytes for 'a', got str"):
        run_sh("true", workspace, files={"a": "text"})


@pytest.mark.parametrize("exists", [True, False])
def test_a_file_that_a_protected_name_would_cover_is_refused(workspace: Path, exists: bool) -> None:  # noqa: FBT001
    if exists:
        (workspace / ".git").mkdir()
    with pytest.raises(PolicyError, match=r"'\.git/config' would be covered by .*protected name \.git"):
        run_sh("true", workspace, WORKSPACE_WRITE, files={".git/config": b""})


# --- What comes back ----------------------------------------------------------------------------------------------


def test_what_was_made_or_changed_comes_back_and_nothing_else(workspace: Path) -> None:
    (workspace / "changed").write_text("old")
    (workspace / "untouched").write_text("old")
    (workspace / "removed").write_text("old")
    done = run_sh(
        "printf new >changed; rm removed; mkdir made; printf x >made/file; cat given >/dev/null; printf + >>grown",
        workspace,
        files={"given": b"g", "grown": b"g"},
        collect=["**"],
    )
    assert done.files == {"changed": b"new", "made/file": b"x", "grown": b"g+"}
    assert contents(workspace) == {"changed": "old", "untouched": "old", "removed": "old"}
    assert done.outcome is Outcome.EXITED


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["*"], {"a.txt", ".b"}),
        (["*.txt"], {"a.txt"}),
        (["**/*.txt"], {"a.txt", "d/c.txt", "d/e/f.txt"}),
        (["d/*"], {"d/c.txt", "d/g"}),
        (["d/**"], {"d/c.txt", "d/g", "d/e/f.txt"}),
        (["**/e/**/*.txt", "[.]b"], {"d/e/f.txt", ".b"}),
        (["nothing", "a.txt/x"], set()),
    ],
)
def test_patterns_choose_as_those_of_pathlib(workspace: Path, patterns: list[str], expected: set[str]) -> None:
    script = "mkdir -p d/e; touch a.txt .b d/c.txt d/g d/e/f.txt"
    assert set(run_sh(script, workspace, collect=patterns).files) == expected


@pytest.mark.parametrize("pattern", ["/etc/*", "../*", "a//b", ""])
def test_a_pattern_that_leaves_the_directory_is_refused(workspace: Path, pattern: str) -> None:
    with pytest.raises(ValueError, match="relative pattern"):
        run_sh("true", workspace, collect=[pattern])


def test_one_string_is_not_taken_for_several_patterns(workspace: Path) -> None:
    with pytest.raises(TypeError, match="several patterns"):
        run_sh("true", workspace, collect="*")


def test_no_symlink_is_followed_and_only_regular_files_are_read(workspace: Path) -> None:
    script = (
        "ln -s /etc/passwd link; ln -s /etc directory; mkfifo pipe; mkdir real; ln -s /etc/passwd real/link;"
        "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"socket\")' 2>/dev/null; echo >real/file"
    )
    done = run_sh(script, workspace, collect=["**", "directory/passwd"], timeout=20)
    assert done.files == {"real/file": b"\n"}


def test_what_the_command_has_closed_to_itself_comes_back_too(workspace: Path) -> None:
    done = run_sh("mkdir d; echo x >d/f; chmod 0 d/f d; echo y >w; chmod 200 w", workspace, collect=["**"])
    assert done.files == {"d/f": b"x\n", "w": b"y\n"}


def test_more_than_the_limit_is_an_outcome(workspace: Path) -> None:
    done = run_sh("printf 12345 >a; printf 67890 >b", workspace, collect=["**"], collect_limit=8)
    assert (done.outcome, done.returncode, done.files) == (Outcome.OUTPUT_LIMIT, 0, {"a": b"12345"})


def test_a_sparse_file_is_not_read_into_memory(workspace: Path) -> None:
    done = run_sh("truncate -s 8E huge 2>/dev/null || truncate -s 1T huge", workspace, collect=["**"])
    assert (done.outcome, done.files) == (Outcome.OUTPUT_LIMIT, {})


def test_a_file_that_was_given_does_not_count_against_the_limit(workspace: Path) -> None:
    done = run_sh("echo >new", workspace, files={"big": bytes(1000)}, collect=["**"], collect_limit=10)
    assert (done.outcome, done.files) == (Outcome.EXITED, {"new": b"\n"})


NEST = "import os\nfor _ in range(3000):\n    os.mkdir('d')\n    os.chdir('d')\nopen('bottom', 'w').close()"


def test_directories_without_end_are_given_up_and_removed(workspace: Path) -> None:
    done = pybwrap.run(
        [sys.executable, "-ISc", NEST], policy=READ_ONLY, cwd=workspace, collect=["**"], capture_output=True
    )
    assert (done.outcome, done.files, done.stderr) == (Outcome.OUTPUT_LIMIT, {}, b"")


def test_what_a_command_leaves_that_was_ended_comes_back(workspace: Path) -> None:
    limits = pybwrap.Limits(wall_time=0.5)
    done = run_sh("echo partial >file; sleep 60", workspace, collect=["file"], limits=limits)
    assert (done.outcome, done.files) == (Outcome.TIMED_OUT, {"file": b"partial\n"})


# --- What the policy says still holds -----------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [READ_ONLY, WORKSPACE_WRITE, UNSEEN])
def test_protected_names_stay_read_only_and_cannot_be_made(workspace: Path, policy: Policy) -> None:
    (workspace / ".agents").mkdir()
    script = "for n in .git .agents .codex .aws; do mkdir $n/x || mv $n y || echo x >$n; done 2>/dev/null; echo done"
    done = run_sh(script, workspace, policy, collect=["**"])
    assert (done.stdout, done.files) == ("done\n", {})
    assert contents(workspace) == {}
    assert names_in(workspace) == [".agents"]


def test_no_placeholder_is_needed_on_the_host(workspace: Path) -> None:
    with pybwrap.Popen(["sleep", "60"], policy=WORKSPACE_WRITE, cwd=workspace, collect=["*"]) as process:
        assert names_in(workspace) == []
        process.kill()


def test_a_denied_file_stays_denied_and_a_read_only_directory_read_only(workspace: Path) -> None:
    (workspace / "secret").write_text("s")
    (workspace / "fixed").mkdir()
    policy = PermissionProfile(
        {
            ":root": "read",
            str(workspace): "write",
            f"{workspace}/secret": "deny",
            f"{workspace}/fixed": "read",
        }
    )
    done = run_sh(
        "cat secret; rm -f secret; mv fixed moved; echo >fixed/x; echo >free", workspace, policy, collect=["**"]
    )
    assert (done.stdout, done.files) == ("", {"free": b"\n"})


def test_a_writable_directory_inside_is_private_too(workspace: Path) -> None:
    (workspace / "out").mkdir()
    policy = PermissionProfile({":root": "read", f"{workspace}/out": "write"})
    done = run_sh("echo >out/file; echo >file", workspace, policy, collect=["**"])
    assert (done.files, contents(workspace)) == ({"out/file": b"\n", "file": b"\n"}, {})


def test_writes_that_cannot_be_kept_private_are_refused(workspace: Path) -> None:
    (workspace / "a/b").mkdir(parents=True)
    policy = PermissionProfile({":root": "read", f"{workspace}/a": "deny", f"{workspace}/a/b": "write"})
    with pytest.raises(PolicyError, match="cannot keep writes to"):
        run_sh("true", workspace, policy, collect=["**"])


def test_a_directory_that_the_policy_does_not_show_is_empty_inside(workspace: Path) -> None:
    (workspace / "secret").write_text("s")
    (workspace / ".git").mkdir()
    (workspace / ".git/config").write_text("s")
    done = run_sh("ls; cat .git/config", workspace, UNSEEN, files={"given": b""})
    assert done.stdout == "given\n"


def test_a_denied_working_directory_is_refused(workspace: Path) -> None:
    policy = PermissionProfile({":root": "read", str(workspace): "deny"})
    with pytest.raises(PolicyError, match="denied path"):
        run_sh("true", workspace, policy, files={"a": b""})


@pytest.mark.parametrize("policy", [SandboxPolicy.danger_full_access(), SandboxPolicy.external_sandbox()])
def test_a_policy_without_filesystem_rules_is_refused(workspace: Path, policy: SandboxPolicy) -> None:
    with pytest.raises(PolicyError, match="filesystem rules"):
        run_sh("true", workspace, policy, files={"a": b""})


@pytest.mark.parametrize("directory", ["/", "/dev", "/proc/self"])
def test_directories_that_a_sandbox_has_its_own_of_are_refused(directory: str) -> None:
    with pytest.raises(PolicyError, match=r"which /\S* cannot be"):
        run_sh("true", Path(directory), collect=["*"])


@pytest.mark.parametrize("directory", ["/usr", "/tmp"])  # noqa: S108
def test_a_directory_of_another_user_gets_a_private_layer_too(directory: str) -> None:
    done = run_sh("cat given; echo >made", Path(directory), WORKSPACE_WRITE, files={"given": b"g"}, collect=["*"])
    assert (done.stdout, done.files) == ("g", {"made": b"\n"})
    assert not Path(directory, "made").exists()


def test_a_directory_can_be_named_through_a_symlink(workspace: Path) -> None:
    (workspace / "real").mkdir()
    (workspace / "link").symlink_to("real")
    done = run_sh("pwd; cat given; echo >made", workspace / "link", files={"given": b"g"}, collect=["*"])
    assert (done.stdout, done.files) == (f"{workspace}/link\ng", {"made": b"\n"})


@pytest.mark.parametrize("policy", [READ_ONLY, EVERYWHERE_WRITABLE, SHARED_MEMORY_WRITABLE])
def test_the_layers_of_other_sandboxes_cannot_be_reached(workspace: Path, policy: Policy, own_registry: Path) -> None:
    with pybwrap.Popen(["sleep", "60"], policy=READ_ONLY, cwd=workspace, files={"secret": b"s"}) as other:
        done = run_sh(f"ls -R {own_registry}; echo x >{own_registry}/x", workspace, policy, files={"mine": b""})
        assert "secret" not in done.stdout
        assert len(names_in(own_registry)) == 1
        other.kill()


# --- Nothing is left ----------------------------------------------------------------------------------------------


def test_nothing_is_left_when_the_command_cannot_be_executed(workspace: Path) -> None:
    with pytest.raises(FileNotFoundError):
        pybwrap.run(["/nonexistent"], policy=READ_ONLY, cwd=workspace, files={"a": b""})


def test_nothing_is_left_when_time_is_up(workspace: Path) -> None:
    with pytest.raises(pybwrap.TimeoutExpired):
        run_sh("echo >a; sleep 60", workspace, collect=["*"], timeout=0.3)


def test_modes_and_attributes_do_not_keep_anything(workspace: Path) -> None:
    run_sh("mkdir -p a/b/c; touch a/b/f; chmod 0 a/b/c a/b a", workspace, collect=["nothing"])


OWNER = """
import os, sys, pybwrap
pybwrap.launch.registry.directory = lambda: sys.argv[1]
process = pybwrap.Popen(["sh", "-c", sys.argv[2]], policy=pybwrap.SandboxPolicy.read_only(), files={"a": b""})
print("started", flush=True)
sys.stdin.read()
"""


def start_owner(workspace: Path, registry: Path, script: str) -> subprocess.Popen[str]:
    program = "import pybwrap.launch.registry\n" + OWNER
    owner = subprocess.Popen(
        [sys.executable, "-Wignore", "-c", program, registry, script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=workspace,
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "started\n"
    return owner


def test_what_a_killed_owner_leaves_is_reclaimed_by_the_next_run(workspace: Path, own_registry: Path) -> None:
    with start_owner(workspace, own_registry, "sleep 60") as owner:
        [scratch] = own_registry.iterdir()
        run_sh("true", workspace, collect=["*"])
        assert scratch.exists()  # in use
        owner.send_signal(signal.SIGKILL)
    assert scratch.exists()
    # Until the kernel has ended the command, it may still be writing.
    assert wait_until(lambda: run_sh("true", workspace, collect=["*"]).returncode == 0 and not scratch.exists())


def test_an_owner_that_exits_does_not_follow_symlinks_of_a_running_command(workspace: Path, own_registry: Path) -> None:
    victim = workspace / "victim"
    victim.mkdir()
    for number in range(20):
        (victim / str(number)).write_text("precious")
    swap = f"while :; do rm -rf d; mkdir d; touch d/x; rm -rf d; ln -s {victim} d; done"
    with start_owner(workspace, own_registry, f"({swap}) 2>/dev/null") as owner:
        owner.communicate("")
    assert len(names_in(victim)) == 20
    assert wait_until(lambda: run_sh("true", workspace, collect=["*"]).returncode == 0 and not names_in(own_registry))


def test_a_fork_of_the_owner_leaves_the_layer_alone(workspace: Path, own_registry: Path) -> None:
    overlay = WorkspaceOverlay(str(workspace), {"a": b""}, [], None)
    with warnings.catch_warnings():
        # The test runner may have threads; the child takes no lock that one of them could hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        overlay.remove()
        os._exit(0)
    os.waitpid(pid, 0)
    assert names_in(own_registry) == [Path(overlay.layer.upper).parent.name]
    overlay.remove()
    overlay.remove()


def test_a_filesystem_that_cannot_be_overlaid_is_a_setup_error_with_a_remedy(workspace: Path) -> None:
    script = textwrap.dedent(
        """
        import pybwrap
        try:
            pybwrap.run(["true"], policy=pybwrap.SandboxPolicy.read_only(), files={"a": b""})
        except pybwrap.SetupError as error:
            print(error.step, error.remedy)
        """
    )
    stack = (
        "mount -t tmpfs t .; cd .; cd $PWD; mkdir a b c d e;"
        "mount -t overlay -o lowerdir=a:b,userxattr o c; mount -t overlay -o lowerdir=c:d,userxattr o e; cd e"
    )
    done = subprocess.run(
        [*in_private_namespaces(stack), sys.executable, "-c", script],
        cwd=workspace,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("mount files and collect need a working directory that overlayfs"), done
