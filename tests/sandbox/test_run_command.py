"""`pybwrap run`: a command in a sandbox, with options for people."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import TMP, clean_environment, command_line, names_in, probe

if TYPE_CHECKING:
    from tests.conftest import Completed, RunPybwrap, Word


def facts(done: Completed) -> Any:  # noqa: ANN401 - JSON
    assert done.stderr == ""
    assert done.returncode == 0
    return json.loads(done.stdout)


def writes(done: Completed) -> list[str]:
    return list(facts(done)["writes"].values())


@pytest.fixture
def tree(workspace: Path) -> Path:
    """A working directory beside others, in the workspace."""
    for name in ("cwd/sub", "cwd/.git", "other"):
        (workspace / name).mkdir(parents=True)
    return workspace / "cwd"


def test_without_options_nothing_can_be_written_and_nobody_reached(pybwrap: RunPybwrap, workspace: Path) -> None:
    found = facts(pybwrap("run", "--", *probe(workspace, TMP)))
    assert set(found["writes"].values()) == {"EROFS"}
    assert found["internet"] == "EPERM"
    assert found["namespaces"]["net"] != str(Path("/proc/self/ns/net").readlink())
    assert (found["status"]["NoNewPrivs"], found["status"]["CapEff"]) == ("1", "0000000000000000")
    assert names_in(workspace) == []


def test_a_write_outside_is_refused_as_on_a_read_only_filesystem(pybwrap: RunPybwrap, tree: Path) -> None:
    done = pybwrap("run", "-w", ".", "--no-tmp", "--", "sh", "-c", "echo x > ../other/file", cwd=tree)
    assert done.returncode != 0
    assert "Read-only file system" in done.stderr


@pytest.mark.parametrize("option", [["--writable", "."], ["-w", "."], ["--writable=."]])
def test_writable_opens_a_path_but_not_its_git_directory(pybwrap: RunPybwrap, tree: Path, option: list[str]) -> None:
    done = pybwrap("run", *option, "--no-tmp", "--", *probe(tree, tree / "sub", tree / ".git", TMP), cwd=tree)
    assert writes(done) == ["ok", "ok", "EROFS", "EROFS"]
    assert (tree / "written").exists()


def test_writable_may_be_given_more_than_once(pybwrap: RunPybwrap, tree: Path) -> None:
    done = pybwrap("run", "-w", "sub", "-w", "../other", "--no-tmp", *probe("sub", "../other", "."), cwd=tree)
    assert writes(done) == ["ok", "ok", "EROFS"]


def test_writable_opens_tmp_and_tmpdir_too(pybwrap: RunPybwrap, tree: Path) -> None:
    beside = Path("/var/tmp")  # noqa: S108
    environment = clean_environment(TMPDIR=str(tree / "sub"))
    marker = TMP / f"{tree.parent.name}.marker"
    command = ["sh", "-c", f"echo x > {marker} && rm {marker}; echo x > {beside}/x"]
    done = pybwrap("run", "-w", "../other", "--", *command, cwd=tree, env=environment)
    assert done.stderr.count("Read-only file system") == 1
    assert str(beside) in done.stderr
    done = pybwrap("run", "-w", "../other", "--no-tmp", *probe("sub"), cwd=tree, env=environment)
    assert writes(done) == ["EROFS"]


def test_tmp_is_not_writable_without_writable(pybwrap: RunPybwrap, tree: Path) -> None:
    done = pybwrap("run", *probe(TMP, "sub"), cwd=tree, env=clean_environment(TMPDIR=str(tree / "sub")))
    assert writes(done) == ["EROFS", "EROFS"]


def test_read_only_keeps_a_path_below_a_writable_one(pybwrap: RunPybwrap, tree: Path) -> None:
    done = pybwrap("run", "-w", ".", "--read-only", "sub", "--no-tmp", *probe(".", "sub"), cwd=tree)
    assert writes(done) == ["ok", "EROFS"]


def test_a_file_can_be_writable_or_read_only(pybwrap: RunPybwrap, tree: Path) -> None:
    (tree / "file").write_text("")
    (tree / "kept").write_text("")
    done = pybwrap("run", "-w", "file", "--no-tmp", *probe("file", "kept"), cwd=tree)
    assert writes(done) == ["ok", "EROFS"]
    done = pybwrap("run", "-w", ".", "--read-only", "kept", "--no-tmp", *probe("file", "kept"), cwd=tree)
    assert writes(done) == ["ok", "EROFS"]


@pytest.mark.parametrize("opened", [[], ["-w", "."]], ids=["below-read-only", "below-writable"])
def test_deny_hides_a_directory_and_what_is_in_it(pybwrap: RunPybwrap, tree: Path, opened: list[str]) -> None:
    (tree / "sub" / "file").write_text("the secret")
    script = "ls sub; cat sub/file; echo x > sub/new; mv sub moved; rm -r sub; cat moved/file"
    done = pybwrap("run", *opened, "--deny", "sub", "--", "sh", "-c", script, cwd=tree)
    assert (done.stdout, "the secret" in done.stderr) == ("", False)
    assert (tree / "sub" / "file").read_text() == "the secret"
    assert names_in(tree / "sub") == ["file"]


@pytest.mark.parametrize("opened", [[], ["-w", "."]], ids=["below-read-only", "below-writable"])
def test_deny_hides_a_file(pybwrap: RunPybwrap, tree: Path, opened: list[str]) -> None:
    (tree / "file").write_text("the secret")
    script = "cat file; echo x > file; mv file moved; rm -f file; cat moved"
    done = pybwrap("run", *opened, "--deny", "file", "--", "sh", "-c", script, cwd=tree)
    assert (done.stdout, "the secret" in done.stderr) == ("", False)
    assert (tree / "file").read_text() == "the secret"


def test_deny_wins_over_writable_at_the_same_path(pybwrap: RunPybwrap, tree: Path) -> None:
    done = pybwrap("run", "--deny", "sub", "-w", "sub", *probe("sub"), cwd=tree)
    assert writes(done) != ["ok"]
    assert names_in(tree / "sub") == []


@pytest.mark.parametrize("option", [["-C", "cwd"], ["--cd=cwd"]])
def test_cd_changes_the_directory_that_everything_is_relative_to(
    pybwrap: RunPybwrap, tree: Path, option: list[str]
) -> None:
    found = facts(pybwrap("run", "-w", "sub", *option, "--no-tmp", *probe(".", "sub"), cwd=tree.parent))
    assert (found["cwd"], found["pwd"]) == (str(tree), str(tree))
    assert list(found["writes"].values()) == ["EROFS", "ok"]


def test_allow_network_shares_the_network(pybwrap: RunPybwrap) -> None:
    found = facts(pybwrap("run", "--allow-network", *probe()))
    assert found["internet"] == "ok"
    assert found["namespaces"]["net"] == str(Path("/proc/self/ns/net").readlink())


def test_no_proc_keeps_the_old_proc(pybwrap: RunPybwrap) -> None:
    found = facts(pybwrap("run", "--no-proc", *probe()))
    assert found["pid"] < 5
    assert found["proc_self"] != str(found["pid"])


def test_a_tilde_is_the_home_directory(pybwrap: RunPybwrap, tree: Path) -> None:
    environment = clean_environment(HOME=str(tree))
    done = pybwrap("run", "-w", "~/sub", "--no-tmp", *probe("sub", "."), cwd=tree, env=environment)
    assert writes(done) == ["ok", "EROFS"]


@pytest.mark.as_root
def test_nested_sandboxes_of_root_are_refused_with_the_reason(pybwrap: RunPybwrap) -> None:
    done = pybwrap("run", "--allow-nested", "--", "true")
    assert done.returncode == 125
    assert "nested sandboxes need an unprivileged user" in done.stderr


@pytest.mark.unprivileged  # nobody inside may map root again
class TestNested:
    INNER: tuple[list[Word], ...] = (
        ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "true"],
        command_line("bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--unshare-pid", "--proc", "/proc", "true"),
        command_line("run", "true"),
    )

    @pytest.mark.parametrize("inner", INNER, ids=["unshare", "bwrap", "run"])
    def test_a_sandbox_inside_needs_allow_nested(self, pybwrap: RunPybwrap, inner: list[Word]) -> None:
        assert pybwrap("run", "--", *inner).returncode != 0
        done = pybwrap("run", "--allow-nested", "--", *inner)
        assert (done.returncode, done.stderr) == (0, "")

    def test_the_sandbox_inside_gains_nothing(self, pybwrap: RunPybwrap, tree: Path) -> None:
        inner = command_line("run", "-w", "/", "--allow-network", *probe(tree, tree.parent / "other"))
        found = facts(pybwrap("run", "-w", ".", "--no-tmp", "--allow-nested", "--", *inner, cwd=tree))
        assert list(found["writes"].values()) == ["ok", "EROFS"]
        assert found["internet"] == "EPERM"

    def test_the_sandbox_inside_restricts_further(self, pybwrap: RunPybwrap, tree: Path) -> None:
        inner = command_line("run", "-w", "sub", "--no-tmp", *probe(".", "sub"))
        done = pybwrap("run", "-w", ".", "--allow-nested", "--", *inner, cwd=tree)
        assert writes(done) == ["EROFS", "ok"]


class TestCommandLine:
    def test_help_goes_to_stdout_and_names_every_option(self, pybwrap: RunPybwrap) -> None:
        done = pybwrap("run", "--help")
        assert (done.returncode, done.stderr) == (0, "")
        for option in (
            *("--writable", "--read-only", "--deny", "--no-tmp", "--allow-network", "--allow-nested"),
            *("--no-proc", "--cd", "exit status", "examples"),
        ):
            assert option in done.stdout

    def test_options_behind_the_command_are_the_commands(self, pybwrap: RunPybwrap) -> None:
        done = pybwrap("run", "printf", "%s ", "--writable", "--", "-w", "--help")
        assert (done.returncode, done.stdout) == (0, "--writable -- -w --help ")

    def test_a_separator_of_the_commands_own_stays(self, pybwrap: RunPybwrap) -> None:
        done = pybwrap("run", "--", "printf", "%s ", "--", "a", "--", "b")
        assert (done.returncode, done.stdout) == (0, "-- a -- b ")

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            ([], "no command was given"),
            (["--"], "no command was given"),
            (["-w"], "argument -w/--writable: expected one argument"),
            (["--frobnicate", "true"], "--frobnicate"),
            (["--writ", ".", "true"], "--writ"),
            (["-C", "/no/such/directory", "true"], "cannot change to '/no/such/directory'"),
            (["-w", "/no/such/directory", "true"], "writable root '/no/such/directory' does not exist"),
        ],
    )
    def test_a_wrong_command_line_is_refused_in_one_line(
        self, pybwrap: RunPybwrap, arguments: list[str], complaint: str
    ) -> None:
        done = pybwrap("run", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("pybwrap: ")
        assert done.stderr.count("\n") == 1
        assert complaint in done.stderr

    @pytest.mark.parametrize("arguments", [["--version"], ["-V"]])
    def test_the_version_can_be_asked_for(self, pybwrap: RunPybwrap, arguments: list[str]) -> None:
        done = pybwrap(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("pybwrap 0.")

    def test_an_unknown_command_is_refused(self, pybwrap: RunPybwrap) -> None:
        done = pybwrap("frobnicate")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "pybwrap: unknown command 'frobnicate'; pybwrap --help lists them\n"

    def test_without_arguments_the_usage_goes_to_stderr(self, pybwrap: RunPybwrap) -> None:
        done = pybwrap()
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("usage: pybwrap run")


class TestRealWork:
    @pytest.fixture
    def environment(self, workspace: Path) -> dict[str, str]:
        names = {f"GIT_{who}_{what}": "someone" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        return clean_environment(HOME=str(workspace), GIT_CONFIG_GLOBAL="/dev/null", GIT_CONFIG_NOSYSTEM="1", **names)

    def test_a_repository_is_made_and_committed_to(
        self, pybwrap: RunPybwrap, workspace: Path, environment: dict[str, str]
    ) -> None:
        script = """
            set -e
            git init -q repository
            cd repository
            echo content > file
            git add file
            git commit -q -m first
            git rev-list --count HEAD
        """
        done = pybwrap("run", "-w", ".", "--", "sh", "-c", script, env=environment)
        assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
        shown = subprocess.run(
            ["git", "show", "HEAD:file"],
            cwd=workspace / "repository",
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert shown.stdout == "content\n"
        assert names_in(workspace) == ["repository"]

    def test_the_repository_around_can_be_read_and_not_changed(
        self, pybwrap: RunPybwrap, workspace: Path, environment: dict[str, str]
    ) -> None:
        subprocess.run(["git", "init", "-q"], cwd=workspace, env=environment, check=True)
        script = "echo content > file; git status --short; git add file; git config user.name mallory; git init -q ."
        done = pybwrap("run", "-w", ".", "--", "sh", "-c", script, env=environment)
        assert done.stdout == "?? file\n"
        assert "Read-only file system" in done.stderr
        assert names_in(workspace) == [".git", "file"]
        assert "mallory" not in (workspace / ".git" / "config").read_text()

    def test_a_pipeline_of_processes_builds_something(self, pybwrap: RunPybwrap, workspace: Path) -> None:
        script = (
            "import concurrent.futures, pathlib, subprocess, sys\n"
            "def make(number):\n"
            "    with open(f'{number}.out', 'w') as file:\n"
            "        subprocess.run([sys.executable, '-c', f'print({number})'], stdout=file, check=True)\n"
            "    return int(pathlib.Path(f'{number}.out').read_text())\n"
            "with concurrent.futures.ThreadPoolExecutor(4) as pool:\n"
            "    print(sum(pool.map(make, range(20))))\n"
        )
        done = pybwrap("run", "-w", ".", "--", sys.executable, "-c", script)
        assert (done.returncode, done.stdout, done.stderr) == (0, "190\n", "")
        assert len(names_in(workspace)) == 20
