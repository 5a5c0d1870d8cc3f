"""What is wrong is refused in one line, before anything has run or been made; and poor machines do no harm."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pybwrap
from tests.conftest import (
    REGISTRY,
    TMP,
    as_ordinary_user,
    bare_environment,
    clean_environment,
    command_line,
    in_private_namespaces,
    names_in,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.conftest import Completed, RunPolicy, RunPybwrap, Word

READ_ONLY: dict[str, object] = {"type": "read-only"}
WORKSPACE_WRITE: dict[str, object] = {"type": "workspace-write", "exclude_slash_tmp": True}
USAGE, SETUP = 2, 125


def assert_refused(done: Completed, status: int, *words: str) -> None:
    assert done.stdout == ""
    assert done.stderr.startswith("pybwrap: ")
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("\n")
    assert len(done.stderr) < 2000
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert done.returncode == status


def assert_ran(done: Completed, stdout: str = "ran\n") -> None:
    assert (done.returncode, done.stdout, done.stderr) == (0, stdout, "")


def flags(policy: Mapping[str, object], cwd: Path) -> list[Word]:
    return ["--sandbox-policy-cwd", cwd, "--sandbox-policy", json.dumps(policy)]


def run_prefixed(prefix: Sequence[Word], arguments: Sequence[Word], cwd: Path, **environment: str) -> Completed:
    return subprocess.run(
        [*prefix, *command_line(*arguments)],
        cwd=cwd,
        env=clean_environment(**environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class TestPolicies:
    @pytest.mark.parametrize(
        ("policy", "words"),
        [
            ("", ["not valid JSON"]),
            ("{", ["not valid JSON"]),
            ('{"type":"read-only"', ["not valid JSON"]),
            ("nonsense", ["not valid JSON"]),
            ('{"type":"read-only"} x', ["not valid JSON"]),
            ("[" * 100_000, ["nested too deeply"]),
            ('{"type":"read-only","type":"danger-full-access"}', ["given twice"]),
            ("null", ["at $: expected an object, got null"]),
            ("[]", ["at $: expected an object, got an array"]),
            ('"read-only"', ["at $: expected an object, got a string"]),
            ("{}", ["at $.type: is required", "workspace-write"]),
            ('{"type":"readonly"}', ["at $.type: expected one of", 'did you mean "read-only"?']),
            ('{"type":"Read-Only"}', ["at $.type"]),
            ('{"type":1}', ["at $.type: expected a string, got a number"]),
            ('{"type":null}', ["at $.type: expected a string, got null"]),
            ('{"type":"read-only","wrtiable_roots":[]}', ["at $.wrtiable_roots: unknown field"]),
            ('{"type":"workspace-write","wrtiable_roots":[]}', ['did you mean "writable_roots"?']),
            ('{"type":"danger-full-access","network_access":false}', ["at $.network_access: unknown field"]),
            (
                '{"type":"workspace-write","writable_roots":"/"}',
                ["at $.writable_roots: expected an array, got a string"],
            ),
            ('{"type":"workspace-write","writable_roots":[1]}', ["at $.writable_roots[0]: expected a string"]),
            ('{"type":"workspace-write","writable_roots":[null]}', ["at $.writable_roots[0]"]),
            ('{"type":"workspace-write","network_access":"yes"}', ["at $.network_access: expected true or false"]),
            ('{"type":"workspace-write","network_access":1}', ["at $.network_access: expected true or false"]),
            ('{"type":"workspace-write","exclude_slash_tmp":0}', ["at $.exclude_slash_tmp"]),
            ('{"type":"external-sandbox","network_access":true}', ["at $.network_access"]),
            ('{"type":"external-sandbox","network_access":"full"}', ["at $.network_access: expected one of"]),
            ('{"type":"workspace-write","writable_roots":["relative"]}', ["$.writable_roots[0]", "must be absolute"]),
            ('{"type":"workspace-write","writable_roots":["."]}', ["$.writable_roots[0]", "must be absolute"]),
            ('{"type":"workspace-write","writable_roots":[""]}', ["$.writable_roots[0]", "must be absolute"]),
            ('{"type":"workspace-write","writable_roots":["~/x"]}', ["$.writable_roots[0]", "must be absolute"]),
            ('{"type":"workspace-write","writable_roots":[":root"]}', ["$.writable_roots[0]", "must be absolute"]),
            ('{"type":"workspace-write","writable_roots":["/tmp\\u0000/x"]}', ["$.writable_roots[0]", "NUL"]),
            ('{"type":"workspace-write","writable_roots":["/\\ud800"]}', ["writable_roots[0]"]),
            ('{"type":"workspace-write","writable_roots":["/no/such/root"]}', ["'/no/such/root' does not exist"]),
            ('{"type":"workspace-write","writable_roots":["/etc/passwd/x"]}', ["does not exist"]),
            ('{"type":"workspace-write","writable_roots":["/proc"]}', ["/proc"]),
            ('{"type":"workspace-write","writable_roots":["/dev"]}', ["/dev"]),
        ],
        ids=range(37),
    )
    def test_a_wrong_policy_is_refused(
        self, pybwrap: RunPybwrap, workspace: Path, policy: str, words: list[str]
    ) -> None:
        done = pybwrap("--sandbox-policy-cwd", workspace, "--sandbox-policy", policy, "touch", workspace / "ran")
        assert_refused(done, USAGE, *words)
        assert names_in(workspace) == []

    @pytest.mark.parametrize(
        ("profile", "words"),
        [
            ("{", ["not valid JSON"]),
            ('{"type":"managd"}', ["at $.type"]),
            ('{"type":"managed"}', ["at $.file_system: is required", "at $.network: is required"]),
            ('{"type":"external"}', ["at $.network: is required"]),
            ('{"type":"disabled","network":"enabled"}', ["at $.network: unknown field"]),
            ('{"file_system":{"read":["x"]}}', ["at $.file_system.read[0]", "must be absolute"]),
            ('{"file_system":{"write":["/no/such/root"]}}', ["does not exist"]),
            ('{"file_system":{"entries":[{"path":{"type":"path","path":"/x\\u0000"},"access":"deny"}]}}', ["NUL"]),
            ('{"file_system":{"entries":[{"path":{"type":"path","path":"x"},"access":"deny"}]}}', ["must be absolute"]),
            ('{"file_system":{"entries":[{"path":{"type":"path","path":"/x"},"access":"no"}]}}', ["entries[0].access"]),
            ('{"file_system":{"entries":[{"access":"deny"}]}}', ["at $.file_system.entries[0].path: is required"]),
            (
                '{"file_system":{"entries":[{"path":{"type":"glob_pattern","pattern":"**/x"},"access":"deny"}]}}',
                ["glob patterns are not supported"],
            ),
        ],
        ids=range(12),
    )
    def test_a_wrong_profile_is_refused(
        self, pybwrap: RunPybwrap, workspace: Path, profile: str, words: list[str]
    ) -> None:
        done = pybwrap("--sandbox-policy-cwd", workspace, "--permission-profile", profile, "touch", workspace / "ran")
        assert_refused(done, USAGE, *words)
        assert names_in(workspace) == []

    def test_what_it_says_about_odd_names_is_one_line_too(self, pybwrap: RunPybwrap, workspace: Path) -> None:
        policy = json.dumps({**WORKSPACE_WRITE, "writable_roots": ["/no\nsuch\x1b[31m\u2028root"]})
        done = pybwrap("--sandbox-policy-cwd", workspace, "--sandbox-policy", policy, "true")
        assert_refused(done, USAGE, "does not exist")
        assert "\x1b" not in done.stderr

    def test_a_loop_of_symlinks_is_refused(self, run_policy: RunPolicy, workspace: Path) -> None:
        (workspace / "a").symlink_to("b")
        (workspace / "b").symlink_to("a")
        for path in (workspace / "a", workspace / "b" / "below"):
            done = run_policy({**WORKSPACE_WRITE, "writable_roots": [str(path)]}, ["touch", workspace / "ran"])
            assert_refused(done, USAGE, "loop", str(path))
        assert names_in(workspace) == ["a", "b"]

    def test_a_path_through_too_many_symlinks_is_refused(self, run_policy: RunPolicy, workspace: Path) -> None:
        (workspace / "end").mkdir()
        for number in range(50):
            (workspace / str(number)).symlink_to(str(number + 1) if number < 49 else "end")
        done = run_policy({**WORKSPACE_WRITE, "writable_roots": [str(workspace / "0")]}, ["touch", workspace / "ran"])
        assert_refused(done, USAGE, "too many symlinks")
        assert not (workspace / "ran").exists()

    def test_a_directory_that_may_not_be_looked_into_is_refused(self, workspace: Path) -> None:
        locked = workspace / "locked"
        (locked / "root").mkdir(parents=True)
        workspace.chmod(0o777)
        locked.chmod(0)
        policy = {**WORKSPACE_WRITE, "writable_roots": [str(locked / "root")]}
        command = [*flags(policy, workspace), "touch", workspace / "ran"]
        done = run_prefixed(as_ordinary_user(), command, workspace)
        assert_refused(done, USAGE, str(locked), "Permission denied")
        assert names_in(workspace) == ["locked"]

    def test_more_roots_than_bubblewrap_takes_are_refused(self, pybwrap: RunPybwrap, workspace: Path) -> None:
        for number in range(10_000):
            (workspace / str(number)).mkdir()
        roots = [f"-w{number}" for number in range(10_000)]
        done = pybwrap("run", "--no-tmp", *roots, "--", "touch", "0/ran")
        assert_refused(done, USAGE, "grant a directory above")
        assert not any(names_in(workspace / str(number)) for number in range(10_000))

    def test_one_root_ten_thousand_times_is_one_root(self, run_policy: RunPolicy, workspace: Path) -> None:
        policy = {**WORKSPACE_WRITE, "exclude_tmpdir_env_var": True, "writable_roots": [str(TMP)] * 10_000}
        assert_ran(run_policy(policy, ["echo", "ran"]))
        assert names_in(workspace) == []


class TestDirectories:
    @pytest.mark.parametrize("name", ["missing", "file", "missing/below", ""])
    def test_a_policy_directory_that_is_none_is_refused(self, pybwrap: RunPybwrap, workspace: Path, name: str) -> None:
        (workspace / "file").write_text("")
        directory = str(workspace / name) if name else ""
        done = pybwrap(
            *("--sandbox-policy-cwd", directory, "--sandbox-policy", json.dumps(WORKSPACE_WRITE)),
            *("touch", workspace / "ran"),
        )
        assert_refused(done, USAGE, "working directory" if name else "--sandbox-policy-cwd DIR is required")
        assert names_in(workspace) == ["file"]

    @pytest.mark.parametrize(
        "policy", [READ_ONLY, WORKSPACE_WRITE, {"type": "danger-full-access"}], ids=lambda policy: policy["type"]
    )
    def test_a_current_directory_that_is_gone_is_refused(self, workspace: Path, policy: dict[str, object]) -> None:
        (workspace / "gone").mkdir()
        prefix = ["sh", "-c", 'cd gone && rmdir ../gone && exec "$@"', "sh"]
        done = run_prefixed(prefix, [*flags(policy, workspace), "touch", workspace / "ran"], workspace)
        assert_refused(done, USAGE, "the current directory cannot be used (No such file or directory)")
        assert names_in(workspace) == []

    def test_a_current_directory_that_the_command_cannot_see_is_refused(
        self, pybwrap: RunPybwrap, workspace: Path
    ) -> None:
        profile = '{"file_system":{"entries":[{"path":{"type":"special","value":{"kind":"minimal"}},"access":"read"}]}}'
        done = pybwrap("--sandbox-policy-cwd", workspace, "--permission-profile", profile, "true")
        assert_refused(done, SETUP, "(working directory)", str(workspace))


class TestCommands:
    @pytest.mark.parametrize("separator", [[], ["--"]])
    def test_no_command_is_refused(self, pybwrap: RunPybwrap, workspace: Path, separator: list[str]) -> None:
        assert_refused(pybwrap(*flags(READ_ONLY, workspace), *separator), USAGE, "no command was given")
        assert_refused(pybwrap("run", *separator), USAGE, "no command was given")

    def test_an_empty_command_is_refused(self, pybwrap: RunPybwrap, workspace: Path) -> None:
        assert_refused(pybwrap(*flags(READ_ONLY, workspace), "--", ""), USAGE, "the command is empty")
        assert_refused(pybwrap("run", "--", ""), USAGE, "the command is empty")

    def test_a_missing_command_is_told_in_one_line_and_nothing_stays(
        self, run_policy: RunPolicy, workspace: Path
    ) -> None:
        assert_refused(run_policy(WORKSPACE_WRITE, ["/no/such\ncommand"]), 127, "command not found")
        assert_refused(run_policy(WORKSPACE_WRITE, ["/etc/passwd"]), 126, "cannot be executed")
        assert names_in(workspace) == []


class TestPoorMachines:
    def test_without_user_namespaces_it_says_what_is_needed(self, workspace: Path) -> None:
        prefix = in_private_namespaces("echo 0 > /proc/sys/user/max_user_namespaces")
        command = [*flags(WORKSPACE_WRITE, workspace), "touch", workspace / "ran"]
        done = run_prefixed(prefix, command, workspace)
        assert_refused(done, SETUP, "(namespaces)", "user.max_user_namespaces")
        assert names_in(workspace) == []

    def test_without_network_namespaces_it_does_not_share_the_network(self, workspace: Path) -> None:
        prefix = in_private_namespaces("echo 0 > /proc/sys/user/max_net_namespaces")
        command = [*flags(WORKSPACE_WRITE, workspace), "touch", workspace / "ran"]
        assert_refused(run_prefixed(prefix, command, workspace), SETUP, "(namespaces)")
        assert names_in(workspace) == []

    def test_without_libseccomp_it_says_what_to_install(self, workspace: Path) -> None:
        script = "import pybwrap._seccomp; print(open('/proc/self/maps').read())"
        maps = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        found = re.search(r"/\S*/libseccomp\.so\.2\S*", maps)
        assert found is not None
        prefix = in_private_namespaces(f"mount --bind /dev/null {found[0]}")
        command = [*flags(WORKSPACE_WRITE, workspace), "touch", workspace / "ran"]
        assert_refused(run_prefixed(prefix, command, workspace), SETUP, "libseccomp", "apt-get install libseccomp2")
        assert names_in(workspace) == []
        assert_ran(run_prefixed(prefix, [*flags({"type": "danger-full-access"}, workspace), "echo", "ran"], workspace))

    def test_without_landlock_only_the_legacy_pipeline_is_refused(self, workspace: Path) -> None:
        prefix = [sys.executable, "-c", WITHOUT_LANDLOCK]
        command: list[Word] = ["touch", workspace / "ran"]
        legacy = [*flags(WORKSPACE_WRITE, workspace), "--use-legacy-landlock", *command]
        assert_refused(run_prefixed(prefix, legacy, workspace), SETUP, "this kernel has no Landlock")
        assert names_in(workspace) == []
        assert_ran(run_prefixed(prefix, [*flags(WORKSPACE_WRITE, workspace), *command], workspace), "")
        assert names_in(workspace) == ["ran"]

    def test_a_full_disk_does_no_harm(self) -> None:
        setup = f"mount -t tmpfs -o size=64k tmpfs {TMP}; cat /dev/zero > {TMP}/full 2>/dev/null || true"
        command = [*flags({"type": "workspace-write"}, TMP), "sh", "-c", "echo ran; ls -A /tmp >&2"]
        done = run_prefixed(in_private_namespaces(setup), command, TMP)
        assert (done.returncode, done.stdout) == (0, "ran\n")
        assert done.stderr.split() == [".agents", ".aws", ".codex", ".git", "full"]

    def test_a_disk_without_room_for_placeholders_is_told(self) -> None:
        setup = f"mount -t tmpfs -o nr_inodes=3 tmpfs {TMP}"
        prefix = in_private_namespaces(setup + '; "$@"; status=$?; ls -A /tmp /dev/shm/*; exit $status')
        command = [*flags({"type": "workspace-write"}, TMP), "sh", "-c", "echo ran"]
        done = run_prefixed(prefix, command, TMP)
        assert done.stdout == ""
        assert_refused(done, SETUP, "No space left on device")

    def test_few_descriptors_do_no_harm(self, workspace: Path) -> None:
        for limit in (8, 10, 12, 16):
            prefix = ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh"]
            done = run_prefixed(prefix, [*flags(WORKSPACE_WRITE, workspace), "echo", "ran"], workspace)
            if done.returncode != 0:
                assert_refused(done, SETUP, "Too many open files")
            else:
                assert_ran(done)
            assert names_in(workspace) == []

    def test_no_processes_left_is_told(self, workspace: Path) -> None:
        workspace.chmod(0o777)
        prefix = [*as_ordinary_user(), "prlimit", "--nproc=1"]
        done = run_prefixed(prefix, [*flags(WORKSPACE_WRITE, workspace), "touch", workspace / "ran"], workspace)
        assert_refused(done, SETUP, "Resource temporarily unavailable")
        assert names_in(workspace) == []


def _without_landlock() -> str:
    """A Python program that runs its arguments where landlock_create_ruleset(2) does not exist."""
    load, jump_if_equal, give = 0x20, 0x15, 0x06
    instructions = [
        (load, 0, 0, 0),
        (jump_if_equal, 0, 1, 444),  # landlock_create_ruleset, on every architecture
        (give, 0, 0, 0x0005_0000 | 38),  # SECCOMP_RET_ERRNO with ENOSYS
        (give, 0, 0, 0x7FFF_0000),  # SECCOMP_RET_ALLOW
    ]
    program = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    return f"""if True:
        import ctypes, os, sys
        libc = ctypes.CDLL(None, use_errno=True)
        code = ctypes.create_string_buffer({program!r})
        class Program(ctypes.Structure):
            _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]
        program = Program({len(instructions)}, ctypes.addressof(code))
        assert libc.prctl(38, 1, 0, 0, 0) == 0
        assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0
        os.execvp(sys.argv[1], sys.argv[1:])
    """


WITHOUT_LANDLOCK = _without_landlock()


class TestHelper:
    @pytest.fixture(params=[0o755, 0o644], ids=["helper", "fork"])
    def package(self, request: pytest.FixtureRequest, workspace: Path) -> Path:
        """A directory with a copy of pybwrap, whose helper can be executed or not."""
        directory = workspace / "package"
        source = Path(pybwrap.__file__).parent
        shutil.copytree(source, directory / "pybwrap", ignore=shutil.ignore_patterns("__pycache__"))
        (directory / "pybwrap" / "_helper").chmod(request.param)
        (workspace / "cwd").mkdir()
        return directory

    def run(self, package: Path, *command: Word, stdin: str = "") -> Completed:
        cwd = package.parent / "cwd"
        return subprocess.run(
            command_line(*flags(WORKSPACE_WRITE, cwd), "--", *command),
            cwd=cwd,
            env=clean_environment(PYTHONPATH=str(package), SECRET="of the caller"),  # noqa: S106
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def test_the_copy_is_what_runs(self, package: Path) -> None:
        script = "import pybwrap.launch.process as p, os; print(p.HELPER, os.access(p.HELPER, os.X_OK))"
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=bare_environment(PYTHONPATH=str(package)),
            cwd=package.parent,
            capture_output=True,
            text=True,
            check=True,
        )
        path, executable = done.stdout.split()
        assert Path(path) == package / "pybwrap" / "_helper"
        assert executable == str(bool((package / "pybwrap" / "_helper").stat().st_mode & 0o111))

    def test_the_results_are_the_same_with_and_without_it(self, package: Path) -> None:
        cwd = package.parent / "cwd"
        script = "cat; pwd; ls -A; echo error >&2; echo x > file; mkdir .git; exit 42"
        done = self.run(package, "sh", "-c", script, stdin="input\n")
        assert done.returncode == 42
        assert done.stdout == f"input\n{cwd}\n.agents\n.aws\n.codex\n.git\n"
        assert done.stderr.startswith("error\nmkdir: ")
        assert done.stderr.endswith("File exists\n")
        assert names_in(cwd) == ["file"]

    def test_the_endings_are_the_same_with_and_without_it(self, package: Path) -> None:
        assert self.run(package, "sh", "-c", "kill -KILL $$").returncode == 137
        assert self.run(package, "no-such-command-anywhere").returncode in {126, 127}
        assert_refused(self.run(package, "/etc/passwd"), 126, "cannot be executed")
        assert_refused(self.run(package, "/no/such/command"), 127, "command not found")
        assert names_in(package.parent / "cwd") == []

    def test_the_inside_is_the_same_with_and_without_it(self, package: Path) -> None:
        done = self.run(package, "grep", "-E", "^(NoNewPrivs|Seccomp|CapEff|SigIgn|SigBlk):", "/proc/self/status")
        assert dict(line.split(":\t") for line in done.stdout.splitlines()) == {
            "NoNewPrivs": "1",
            "Seccomp": "2",
            "CapEff": "0000000000000000",
            "SigIgn": "0000000000000000",
            "SigBlk": "0000000000000000",
        }
        assert self.run(package, "sh", "-c", "ls /proc/self/fd").stdout.split() == ["0", "1", "2", "3"]

    def test_nothing_of_the_caller_can_be_read_with_or_without_it(self, package: Path) -> None:
        script = "cat /proc/1/environ; head -c 100 /proc/1/maps; ls -l /proc/1/fd"
        done = self.run(package, "sh", "-c", script)
        assert "of the caller" not in done.stdout
        assert "->" not in done.stdout  # the numbers of descriptors may be seen, not what they are
        for name in ("environ", "maps", "fd"):
            assert re.search(f"/proc/1/{name}.*Permission denied", done.stderr)


class TestRegistry:
    """The directory in which placeholders are registered, where somebody else could have put it."""

    def run(self, setup: str, policy: Mapping[str, object], workspace: Path) -> Completed:
        prefix = in_private_namespaces(setup.format(registry=REGISTRY))
        return run_prefixed(prefix, [*flags(policy, workspace), "sh", "-c", "echo ran; ls -A"], workspace)

    @pytest.mark.parametrize(
        "setup",
        [
            "mkdir {registry}; chmod 777 {registry}",
            "mkdir {registry}; chmod 755 {registry}",
            "mkdir /dev/shm/elsewhere; ln -s elsewhere {registry}",
            "mkdir -m 700 /dev/shm/elsewhere; ln -s elsewhere {registry}",
            "ln -s /no/such/directory {registry}",
            "touch {registry}",
        ],
        ids=["world-writable", "world-readable", "symlink", "private-symlink", "dangling", "file"],
    )
    def test_one_that_is_not_private_is_refused(self, workspace: Path, setup: str) -> None:
        done = self.run(setup, WORKSPACE_WRITE, workspace)
        assert_refused(done, SETUP, "(placeholders)", str(REGISTRY))
        assert names_in(workspace) == []

    def test_one_that_is_somebody_elses_is_refused(self, workspace: Path) -> None:
        if os.geteuid() == 0:
            foreign = workspace / "foreign"
            foreign.mkdir(mode=0o700)
            os.chown(foreign, 12345, 12345)
        else:
            foreign = Path("/usr")
        before = names_in(workspace)
        done = self.run(f"mkdir {{registry}}; mount --bind {foreign} {{registry}}", WORKSPACE_WRITE, workspace)
        assert_refused(done, SETUP, "(placeholders)", str(REGISTRY))
        assert names_in(workspace) == before

    def test_a_foreign_record_in_a_world_writable_one_removes_nothing(self, workspace: Path) -> None:
        victim = workspace / "victim"
        victim.mkdir()
        found = victim.stat()
        setup = (
            "mkdir {registry}; chmod 777 {registry}; "
            f"printf '%s\\0%s %s' {victim} {found.st_dev} {found.st_ino} > {{registry}}/record"
        )
        self.run(setup, WORKSPACE_WRITE, workspace)
        assert victim.is_dir()

    def test_a_policy_without_placeholders_does_not_need_one(self, workspace: Path) -> None:
        done = self.run("touch {registry}", READ_ONLY, workspace)
        assert_ran(done)

    def test_a_private_one_is_used(self, workspace: Path) -> None:
        done = self.run("mkdir -m 700 {registry}", WORKSPACE_WRITE, workspace)
        assert_ran(done, "ran\n.agents\n.aws\n.codex\n.git\n")
        assert names_in(workspace) == []


def test_a_broken_installation_is_told_in_one_line(workspace: Path) -> None:
    source = Path(pybwrap.__file__).parent
    shutil.copytree(source, workspace / "pybwrap", ignore=shutil.ignore_patterns("__pycache__", "_native*.so"))
    done = subprocess.run(
        command_line(*flags(READ_ONLY, workspace), "true"),
        cwd=workspace,
        env=clean_environment(PYTHONPATH=str(workspace)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert_refused(done, SETUP, "install pybwrap again")
