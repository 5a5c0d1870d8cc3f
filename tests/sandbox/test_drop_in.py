"""`python -m pybwrap --sandbox-policy-cwd DIR --sandbox-policy JSON ... COMMAND`: the command line and each policy."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import (
    SHARED_MEMORY,
    TMP,
    as_ordinary_user,
    bare_environment,
    clean_environment,
    command_line,
    in_private_namespaces,
    names_in,
    probe,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.conftest import Completed, RunPolicy, RunPybwrap, Word

READ_ONLY: dict[str, object] = {"type": "read-only"}
WORKSPACE_WRITE: dict[str, object] = {"type": "workspace-write", "exclude_slash_tmp": True}
FULL_ACCESS: dict[str, object] = {"type": "danger-full-access"}
EXTERNAL: dict[str, object] = {"type": "external-sandbox", "network_access": "restricted"}
VAR_TMP = Path("/var/tmp")  # noqa: S108
POLICIES = [READ_ONLY, WORKSPACE_WRITE, FULL_ACCESS, EXTERNAL]
PROXY = {"HTTP_PROXY": "http://127.0.0.1:8080"}

every_policy = pytest.mark.parametrize("policy", POLICIES, ids=[str(policy["type"]) for policy in POLICIES])


def facts(done: Completed) -> Any:  # noqa: ANN401 - JSON
    assert done.stderr == ""
    assert done.returncode == 0
    return json.loads(done.stdout)


def namespace(name: str) -> str:
    return str(Path(f"/proc/self/ns/{name}").readlink())


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


def flags(policy: Mapping[str, object], cwd: Path) -> list[Word]:
    return ["--sandbox-policy-cwd", cwd, "--sandbox-policy", json.dumps(policy)]


class TestCommandLine:
    def test_flags_are_taken_in_any_order(self, pybwrap: RunPybwrap, workspace: Path) -> None:
        options: list[list[Word]] = [
            ["--sandbox-policy-cwd", workspace],
            ["--sandbox-policy", json.dumps(READ_ONLY)],
            ["--use-bwrap-sandbox"],
            ["--no-proc"],
        ]
        for order in itertools.permutations(options):
            done = pybwrap(*itertools.chain(*order), "--", "echo", "ran")
            assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")

    def test_the_separator_may_be_left_out(self, pybwrap: RunPybwrap, workspace: Path) -> None:
        done = pybwrap(*flags(READ_ONLY, workspace), "/bin/echo", "ran")
        assert (done.returncode, done.stdout) == (0, "ran\n")

    @pytest.mark.parametrize("separator", [[], ["--"]], ids=["without", "with"])
    def test_everything_behind_the_command_is_the_commands(
        self, pybwrap: RunPybwrap, workspace: Path, separator: list[str]
    ) -> None:
        words = ["--", "--no-proc", "--argv0", "--sandbox-policy", "x", "--"]
        done = pybwrap(*flags(READ_ONLY, workspace), *separator, "printf", "%s\n", *words)
        assert (done.returncode, done.stdout.splitlines()) == (0, words)

    def test_what_follows_the_separator_is_the_command_even_if_it_looks_like_a_flag(
        self, pybwrap: RunPybwrap, workspace: Path
    ) -> None:
        environment = clean_environment(PATH="/usr/bin:/bin")
        done = pybwrap(*flags(READ_ONLY, workspace), "--", "--no-proc", env=environment)
        assert (done.returncode, done.stderr) == (127, "pybwrap: --no-proc: command not found on PATH\n")

    def test_values_may_follow_an_equals_sign(self, pybwrap: RunPybwrap, workspace: Path) -> None:
        policy = json.dumps({"type": "workspace-write", "writable_roots": [f"{workspace}/a=b"]})
        (workspace / "a=b").mkdir()
        done = pybwrap(f"--sandbox-policy-cwd={workspace}", f"--sandbox-policy={policy}", "echo", "ran")
        assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (["--sandbox-policy-cwd", "/", "true"], "--sandbox-policy JSON is required"),
            (["--sandbox-policy", '{"type":"read-only"}', "true"], "--sandbox-policy-cwd DIR is required"),
            (["--sandbox-policy-cwd", "/", "--sandbox-policy"], "--sandbox-policy needs a value"),
            (["--sandbox-policy-cwd", "/", "--sandbox-polic", "{}", "true"], "unknown option '--sandbox-polic'"),
            (["--sandbox-policy-cwd", "/", "--no-proc=yes", "true"], "unknown option '--no-proc=yes'"),
            (["--no-proc", "--no-proc", "true"], "--no-proc is given twice"),
            (["--sandbox-policy-cwd", "/", "--sandbox-policy-cwd=/tmp", "true"], "--sandbox-policy-cwd is given twice"),
            (
                ["--sandbox-policy-cwd=/", "--sandbox-policy={}", "--permission-profile={}", "true"],
                "cannot both be given",
            ),
            (
                [
                    "--sandbox-policy-cwd=/",
                    '--sandbox-policy={"type":"read-only"}',
                    "--apply-seccomp-then-exec",
                    "--use-legacy-landlock",
                    "true",
                ],
                "cannot be combined",
            ),
        ],
        ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
    )
    def test_a_wrong_command_line_is_refused(self, pybwrap: RunPybwrap, arguments: list[str], complaint: str) -> None:
        done = pybwrap(*arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("pybwrap: ")
        assert done.stderr.count("\n") == 1
        assert complaint in done.stderr

    @pytest.mark.parametrize("option", ["--help", "-h", "--help-helper"])
    def test_help_goes_to_stdout(self, pybwrap: RunPybwrap, option: str) -> None:
        done = pybwrap(option)
        assert (done.returncode, done.stderr) == (0, "")
        assert "--sandbox-policy-cwd DIR" in done.stdout

    def test_hidden_flags_are_not_in_the_help(self, pybwrap: RunPybwrap) -> None:
        shown = pybwrap("--help").stdout + pybwrap("--help-helper").stdout
        assert "--apply-seccomp-then-exec" not in shown
        assert "--allow-network-for-proxy" not in shown

    def test_help_is_not_taken_from_the_command(self, pybwrap: RunPybwrap, workspace: Path) -> None:
        done = pybwrap(*flags(READ_ONLY, workspace), "printf", "%s", "--help")
        assert (done.returncode, done.stdout) == (0, "--help")


class TestReadOnly:
    def test_nothing_on_the_host_can_be_written(self, run_policy: RunPolicy, workspace: Path) -> None:
        file = workspace / "file"
        file.write_text("before")
        found = facts(
            run_policy(READ_ONLY, probe(workspace, file, TMP, VAR_TMP), env=clean_environment(TMPDIR=str(workspace)))
        )
        assert found["writes"] == dict.fromkeys([str(workspace), str(file), str(TMP), str(VAR_TMP)], "EROFS")
        assert names_in(workspace) == ["file"]
        assert file.read_text() == "before"

    def test_everything_on_the_host_can_be_read(self, run_policy: RunPolicy, workspace: Path) -> None:
        (workspace / "file").write_text("content")
        done = run_policy(READ_ONLY, ["cat", workspace / "file"])
        assert (done.returncode, done.stdout) == (0, "content")

    def test_shared_memory_is_private(self, run_policy: RunPolicy, workspace: Path) -> None:
        path = SHARED_MEMORY / workspace.name
        done = run_policy(READ_ONLY, ["sh", "-c", f"echo x > {path} && cat {path}"])
        assert (done.returncode, done.stdout) == (0, "x\n")
        assert not path.exists()

    def test_there_is_no_network(self, run_policy: RunPolicy) -> None:
        found = facts(run_policy(READ_ONLY, probe()))
        assert found["internet"] == "EPERM"
        assert found["namespaces"]["net"] != namespace("net")

    def test_the_network_can_be_granted(self, run_policy: RunPolicy) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            connect = f"import socket; socket.create_connection(('127.0.0.1', {port}), 10).sendall(b'hello')"
            done = run_policy({**READ_ONLY, "network_access": True}, [sys.executable, "-c", connect])
            assert (done.returncode, done.stderr) == (0, "")
            server.settimeout(10)
            with server.accept()[0] as connection:
                assert connection.recv(5) == b"hello"

    def test_the_command_has_no_privileges_and_namespaces_of_its_own(self, run_policy: RunPolicy) -> None:
        found = facts(run_policy(READ_ONLY, probe()))
        assert found["status"] | {"SigIgn": "", "SigBlk": ""} == {
            "NoNewPrivs": "1",
            "Seccomp": "2",
            "CapPrm": "0000000000000000",
            "CapEff": "0000000000000000",
            "CapBnd": "0000000000000000",
            "SigIgn": "",
            "SigBlk": "",
        }
        assert [name for name, link in found["namespaces"].items() if link == namespace(name)] == []


class TestWorkspaceWrite:
    @pytest.fixture
    def places(self, workspace: Path) -> dict[str, Path]:
        found = {name: workspace / name for name in ("cwd", "root", "tmpdir", "elsewhere")}
        for path in found.values():
            path.mkdir()
        return found

    @pytest.mark.parametrize(
        ("fields", "writable"),
        [
            ({}, {"cwd", "tmpdir"}),
            ({"writable_roots": ["root"]}, {"cwd", "root", "tmpdir"}),
            ({"exclude_tmpdir_env_var": True}, {"cwd"}),
            ({"exclude_slash_tmp": False}, {"cwd", "root", "tmpdir", "elsewhere"}),
        ],
        ids=["defaults", "a-root", "without-TMPDIR", "with-slash-tmp"],
    )
    def test_only_the_roots_can_be_written(
        self, run_policy: RunPolicy, places: dict[str, Path], fields: dict[str, object], writable: set[str]
    ) -> None:
        policy = WORKSPACE_WRITE | fields
        if "writable_roots" in policy:
            policy["writable_roots"] = [str(places["root"])]
        environment = clean_environment(TMPDIR=str(places["tmpdir"]))
        found = facts(run_policy(policy, probe(*places.values()), places["cwd"], env=environment))
        assert found["writes"] == {str(path): "ok" if name in writable else "EROFS" for name, path in places.items()}
        assert {name for name, path in places.items() if (path / "written").exists()} == writable

    def test_slash_tmp_can_be_written_unless_it_is_excluded(self, run_policy: RunPolicy, workspace: Path) -> None:
        marker = TMP / f"{workspace.name}.marker"
        command = ["sh", "-c", f"echo x > {marker} && rm {marker}"]
        assert run_policy({"type": "workspace-write"}, command).returncode == 0
        refused = run_policy(WORKSPACE_WRITE, command)
        assert refused.returncode != 0
        assert "Read-only file system" in refused.stderr

    @pytest.mark.parametrize("value", ["", "relative", "/nowhere/at/all"])
    def test_a_useless_tmpdir_is_skipped(self, run_policy: RunPolicy, value: str) -> None:
        done = run_policy(WORKSPACE_WRITE, ["echo", "ran"], env=clean_environment(TMPDIR=value))
        assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")

    def test_the_policy_is_resolved_against_its_own_directory(
        self, run_policy: RunPolicy, places: dict[str, Path]
    ) -> None:
        here, there = places["elsewhere"], places["cwd"]
        found = facts(run_policy(WORKSPACE_WRITE, probe(here, there), here, policy_cwd=there))
        assert found["cwd"] == str(here)
        assert found["writes"] == {str(here): "EROFS", str(there): "ok"}

    def test_a_relative_policy_directory_counts_from_the_current_one(
        self, run_policy: RunPolicy, workspace: Path, places: dict[str, Path]
    ) -> None:
        done = run_policy(WORKSPACE_WRITE, probe(*places.values()), workspace, policy_cwd=Path("root"))
        assert [path for path, result in facts(done)["writes"].items() if result == "ok"] == [str(places["root"])]

    def test_the_network_is_refused_and_can_be_granted(self, run_policy: RunPolicy) -> None:
        refused = facts(run_policy(WORKSPACE_WRITE, probe()))
        granted = facts(run_policy({**WORKSPACE_WRITE, "network_access": True}, probe()))
        assert (refused["internet"], granted["internet"]) == ("EPERM", "ok")
        assert refused["namespaces"]["net"] != namespace("net") == granted["namespaces"]["net"]

    def test_no_placeholder_outlives_the_command(self, run_policy: RunPolicy, workspace: Path) -> None:
        done = run_policy(WORKSPACE_WRITE, ["sh", "-c", "ls -A; mkdir .git .codex"])
        assert sorted(done.stdout.split()) == [".agents", ".aws", ".codex", ".git"]
        assert done.returncode != 0
        assert names_in(workspace) == []


class TestExternalSandbox:
    def test_restricted_isolates_the_network_and_leaves_the_files(self, run_policy: RunPolicy, workspace: Path) -> None:
        device = SHARED_MEMORY / workspace.name
        found = facts(run_policy(EXTERNAL, probe(workspace, device)))
        device.unlink()
        assert found["namespaces"]["net"] != namespace("net")
        assert found["internet"] == "EPERM"
        assert found["writes"] == {str(workspace): "ok", str(device): "ok"}
        assert (found["status"]["NoNewPrivs"], found["status"]["CapEff"]) == ("1", "0000000000000000")

    def test_enabled_leaves_everything(self, run_policy: RunPolicy, workspace: Path) -> None:
        found = facts(run_policy({**EXTERNAL, "network_access": "enabled"}, probe(workspace)))
        assert found["namespaces"] == {name: namespace(name) for name in found["namespaces"]}
        assert found["internet"] == "ok"

    def test_restricted_is_the_default(self, run_policy: RunPolicy) -> None:
        assert facts(run_policy({"type": "external-sandbox"}, probe()))["internet"] == "EPERM"


class TestFullAccess:
    def test_it_is_a_plain_execution(self, run_policy: RunPolicy, workspace: Path) -> None:
        found = facts(run_policy(FULL_ACCESS, probe(workspace)))
        bare = json.loads(subprocess.run([str(word) for word in probe()], stdout=subprocess.PIPE, check=True).stdout)
        assert found["namespaces"] == bare["namespaces"]
        assert {**found["status"], "SigIgn": "", "SigBlk": ""} == {**bare["status"], "SigIgn": "", "SigBlk": ""}
        assert found["status"]["NoNewPrivs"] == "0"
        assert found["writes"] == {str(workspace): "ok"}

    def test_the_process_becomes_the_command(self, workspace: Path) -> None:
        command = command_line(*flags(FULL_ACCESS, workspace), "sh", "-c", "echo $$")
        with subprocess.Popen(command, cwd=workspace, stdout=subprocess.PIPE, env=clean_environment()) as process:
            assert process.communicate(timeout=60)[0] == f"{process.pid}\n".encode()


class TestPermissionProfile:
    def test_entries_decide(self, pybwrap: RunPybwrap, workspace: Path) -> None:
        for name in ("open", "open/kept", "secret"):
            (workspace / name).mkdir()
        (workspace / "secret" / "file").write_text("secret")
        profile = {
            "type": "managed",
            "network": "enabled",
            "file_system": {
                "type": "restricted",
                "entries": [
                    {"path": {"type": "special", "value": {"kind": "root"}}, "access": "read"},
                    {
                        "path": {"type": "special", "value": {"kind": "project_roots", "subpath": "open"}},
                        "access": "write",
                    },
                    {"path": {"type": "path", "path": f"{workspace}/open/kept"}, "access": "read"},
                    {"path": {"type": "path", "path": f"{workspace}/secret"}, "access": "deny"},
                ],
            },
        }
        paths = [workspace / name for name in ("open", "open/kept", ".")]
        options: list[Word] = ["--sandbox-policy-cwd", workspace, "--permission-profile", json.dumps(profile)]
        found = facts(pybwrap(*options, *probe(*paths)))
        assert found["internet"] == "ok"
        assert list(found["writes"].values()) == ["ok", "EROFS", "EROFS"]
        hidden = pybwrap(*options, "cat", workspace / "secret" / "file")
        assert hidden.returncode != 0
        assert "secret\n" not in hidden.stdout

    @pytest.mark.parametrize(
        ("profile", "internet", "no_new_privs"),
        [
            ({"type": "disabled"}, "ok", "0"),
            ({"type": "external", "network": "enabled"}, "ok", "0"),
            ({"type": "external", "network": "restricted"}, "EPERM", "1"),
            (
                {"type": "managed", "file_system": {"type": "unrestricted"}, "network": "restricted"},
                "EPERM",
                "1",
            ),
        ],
        ids=["disabled", "external-enabled", "external-restricted", "unrestricted-files"],
    )
    def test_files_can_be_left_as_they_are(
        self, pybwrap: RunPybwrap, workspace: Path, profile: dict[str, object], internet: str, no_new_privs: str
    ) -> None:
        options: list[Word] = ["--sandbox-policy-cwd", workspace, "--permission-profile", json.dumps(profile)]
        found = facts(pybwrap(*options, *probe(workspace)))
        assert found["writes"] == {str(workspace): "ok"}
        assert (found["internet"], found["status"]["NoNewPrivs"]) == (internet, no_new_privs)
        assert (found["namespaces"]["net"] == namespace("net")) == (internet == "ok")


class TestProc:
    def test_a_fresh_proc_shows_the_sandbox_alone(self, run_policy: RunPolicy) -> None:
        found = facts(run_policy(READ_ONLY, probe()))
        assert found["proc_self"] == str(found["pid"])
        done = run_policy(READ_ONLY, ["sh", "-c", "cd /proc && echo [0-9]*"])
        assert len(done.stdout.split()) < 5

    def test_no_proc_keeps_the_namespace_and_the_old_proc(self, run_policy: RunPolicy) -> None:
        found = facts(run_policy(READ_ONLY, probe(), options=["--no-proc"]))
        assert found["pid"] < 5
        assert found["proc_self"] != str(found["pid"])
        assert found["namespaces"]["pid"] != namespace("pid")


class TestProxyOnlyNetwork:
    @pytest.mark.parametrize(
        "environment", [{}, {"HTTP_PROXY": ""}, {"NO_PROXY": "localhost"}], ids=["none", "empty", "only-NO_PROXY"]
    )
    @every_policy
    def test_it_is_refused_without_a_proxy(
        self, run_policy: RunPolicy, workspace: Path, policy: dict[str, object], environment: dict[str, str]
    ) -> None:
        done = run_policy(
            policy,
            ["touch", workspace / "ran"],
            options=["--allow-network-for-proxy"],
            env=clean_environment(**environment),
        )
        assert done.returncode == 2
        assert done.stderr.startswith("pybwrap: --allow-network-for-proxy needs a proxy")
        assert names_in(workspace) == []

    @pytest.mark.parametrize(
        "policy",
        [
            {**READ_ONLY, "network_access": True},
            {**WORKSPACE_WRITE, "network_access": True},
            {**EXTERNAL, "network_access": "enabled"},
            FULL_ACCESS,
        ],
        ids=lambda policy: policy["type"],
    )
    def test_it_takes_precedence_over_a_policy_with_full_network(
        self, run_policy: RunPolicy, policy: dict[str, object]
    ) -> None:
        found = facts(
            run_policy(policy, probe(), options=["--allow-network-for-proxy"], env=clean_environment(**PROXY))
        )
        assert found["namespaces"]["net"] != namespace("net")
        assert found["status"]["NoNewPrivs"] == "1"
        assert (found["internet"], found["unix"]) == ("ok", "EPERM")

    def test_full_access_keeps_its_files(self, run_policy: RunPolicy, workspace: Path) -> None:
        options = ["--allow-network-for-proxy"]
        found = facts(run_policy(FULL_ACCESS, probe(workspace), options=options, env=clean_environment(**PROXY)))
        assert found["writes"] == {str(workspace): "ok"}

    @pytest.mark.parametrize("name", ["https_proxy", "ALL_PROXY", "Http_Proxy"])
    def test_names_of_proxy_variables_are_taken_in_any_case(self, run_policy: RunPolicy, name: str) -> None:
        environment = clean_environment(**{name: "http://127.0.0.1:8080"})
        done = run_policy(READ_ONLY, ["true"], options=["--allow-network-for-proxy"], env=environment)
        assert (done.returncode, done.stderr) == (0, "")


class TestInnerStage:
    def test_it_restricts_this_process_and_becomes_the_command(self, workspace: Path) -> None:
        workspace.chmod(0o777)
        options = [*flags(READ_ONLY, workspace), "--apply-seccomp-then-exec"]
        found = facts(run_prefixed(as_ordinary_user(), [*options, *probe(workspace)], workspace))
        assert (found["status"]["NoNewPrivs"], found["status"]["Seccomp"]) == ("1", "2")
        assert found["internet"] == "EPERM"
        # The namespaces and mounts are for somebody else to make.
        assert found["namespaces"] == {name: namespace(name) for name in found["namespaces"]}
        assert found["writes"] == {str(workspace): "ok"}

    def test_it_keeps_the_network_that_the_policy_grants(self, workspace: Path) -> None:
        options = [*flags({**READ_ONLY, "network_access": True}, workspace), "--apply-seccomp-then-exec"]
        found = facts(run_prefixed(as_ordinary_user(), [*options, *probe()], workspace))
        assert (found["status"]["NoNewPrivs"], found["status"]["Seccomp"]) == ("1", "2")
        assert found["internet"] == "ok"

    def test_it_takes_the_proxy_only_network(self, workspace: Path) -> None:
        options = [*flags(READ_ONLY, workspace), "--apply-seccomp-then-exec", "--allow-network-for-proxy"]
        found = facts(run_prefixed(as_ordinary_user(), [*options, *probe()], workspace, **PROXY))
        assert (found["internet"], found["unix"]) == ("ok", "EPERM")

    @pytest.mark.parametrize("policy", [READ_ONLY, {**READ_ONLY, "network_access": True}, WORKSPACE_WRITE, EXTERNAL])
    def test_it_refuses_retained_capabilities(self, workspace: Path, policy: dict[str, object]) -> None:
        options = [*flags(policy, workspace), "--apply-seccomp-then-exec", "touch", workspace / "ran"]
        prefixes: list[list[Word]] = [["unshare", "--user", "--map-root-user"]]
        if os.geteuid() == 0:
            prefixes.append([])
        for prefix in prefixes:
            done = run_prefixed(prefix, options, workspace)
            assert done.returncode == 125
            assert done.stderr.startswith("pybwrap: cannot set up the sandbox (capabilities): ")
            assert done.stderr.count("\n") == 1
            assert names_in(workspace) == []

    def test_a_disabled_policy_restricts_nothing(self, workspace: Path) -> None:
        options = [*flags(FULL_ACCESS, workspace), "--apply-seccomp-then-exec"]
        found = facts(run_prefixed([], [*options, *probe()], workspace))
        assert (found["status"]["NoNewPrivs"], found["internet"]) == ("0", "ok")


class TestExitStatus:
    @every_policy
    @pytest.mark.parametrize("status", [0, 1, 2, 77, 125, 126, 127, 255])
    def test_it_is_the_commands(self, run_policy: RunPolicy, policy: dict[str, object], status: int) -> None:
        done = run_policy(policy, ["sh", "-c", f"exit {status}"])
        assert (done.returncode, done.stdout, done.stderr) == (status, "", "")

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGPIPE])
    @pytest.mark.parametrize("policy", [READ_ONLY, WORKSPACE_WRITE, EXTERNAL], ids=lambda policy: policy["type"])
    def test_death_by_a_signal_is_128_and_its_number(
        self, run_policy: RunPolicy, policy: dict[str, object], number: signal.Signals
    ) -> None:
        done = run_policy(policy, ["sh", "-c", f"kill -{number.value} $$"])
        assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "")

    @every_policy
    @pytest.mark.parametrize(
        ("command", "status", "message"),
        [
            ("no-such-command", 127, "no-such-command: command not found on PATH"),
            ("/no/such/command", 127, "/no/such/command: command not found"),
            ("/dev/null/x", 127, "/dev/null/x: command not found"),
            ("/etc/passwd", 126, "/etc/passwd: cannot be executed: Permission denied"),
            ("/usr", 126, "/usr: cannot be executed: Permission denied"),
        ],
    )
    def test_a_command_that_cannot_be_executed_is_126_or_127(
        self, run_policy: RunPolicy, policy: dict[str, object], command: str, status: int, message: str
    ) -> None:
        # A directory on PATH that may not be searched would be EACCES, as it is for execvp(3).
        done = run_policy(policy, [command], env=clean_environment(PATH="/no/such/directory:/usr/bin:/bin"))
        assert (done.returncode, done.stdout, done.stderr) == (status, "", f"pybwrap: {message}\n")

    def test_a_script_without_an_interpreter_is_126(self, run_policy: RunPolicy, workspace: Path) -> None:
        script = workspace / "script"
        script.write_text("echo hello\n")
        script.chmod(0o755)
        done = run_policy(READ_ONLY, [script])
        assert done.returncode == 126
        assert "a script must begin with #!" in done.stderr

    def test_a_sandbox_that_cannot_be_built_is_125(self, workspace: Path) -> None:
        prefix = in_private_namespaces("echo 0 > /proc/sys/user/max_user_namespaces")
        done = run_prefixed(prefix, [*flags(READ_ONLY, workspace), "true"], workspace)
        assert done.returncode == 125
        assert done.stderr.startswith("pybwrap: cannot set up the sandbox (namespaces): ")

    def test_the_path_of_the_environment_is_searched(self, run_policy: RunPolicy, workspace: Path) -> None:
        script = workspace / "found-on-path"
        script.write_text("#!/bin/sh\necho found\n")
        script.chmod(0o755)
        environment = clean_environment(PATH=f"/no/such/directory:{workspace}:/usr/bin:/bin")
        done = run_policy(READ_ONLY, ["found-on-path"], env=environment)
        assert (done.returncode, done.stdout) == (0, "found\n")


class TestWhatTheCommandInherits:
    @every_policy
    def test_the_working_directory_and_its_name(
        self, run_policy: RunPolicy, workspace: Path, policy: dict[str, object]
    ) -> None:
        for pwd in (None, "/", "relative", "/no/such/directory"):
            found = facts(run_policy(policy, probe(), env=clean_environment(PWD=pwd)))
            assert (found["cwd"], found["pwd"]) == (str(workspace), str(workspace))

    def test_the_logical_name_of_the_working_directory_is_kept(self, run_policy: RunPolicy, workspace: Path) -> None:
        (workspace / "real").mkdir()
        alias = workspace / "alias"
        alias.symlink_to("real")
        found = facts(run_policy(READ_ONLY, probe(), alias, env=clean_environment(PWD=str(alias))))
        assert (found["cwd"], found["pwd"]) == (str(workspace / "real"), str(alias))

    @every_policy
    @pytest.mark.parametrize("name", ["cat", "/bin/cat"])
    def test_the_name_that_it_was_called_by(self, run_policy: RunPolicy, policy: dict[str, object], name: str) -> None:
        done = run_policy(policy, [name, "/proc/self/cmdline"])
        assert done.stdout.split("\0") == [name, "/proc/self/cmdline", ""]

    @every_policy
    def test_arguments_and_variables_that_are_not_utf_8(self, run_policy: RunPolicy, policy: dict[str, object]) -> None:
        every_byte = bytes(range(1, 256))
        environment = clean_environment(ODD=os.fsdecode(every_byte))
        done = run_policy(policy, ["sh", "-c", 'printf "%s\\0" "$1" "$ODD"', "sh", every_byte], env=environment)
        assert os.fsencode(done.stdout) == every_byte + b"\0" + every_byte + b"\0"

    @every_policy
    def test_an_empty_argument_and_an_empty_environment(self, run_policy: RunPolicy, policy: dict[str, object]) -> None:
        done = run_policy(policy, ["sh", "-c", 'printf "<%s>" "$@"; env', "sh", "", "a b", ""], env=bare_environment())
        assert done.stdout.startswith("<><a b><>")
        names = {line.partition("=")[0] for line in done.stdout.removeprefix("<><a b><>").splitlines()}
        assert names <= {"PWD", "LC_CTYPE", "PYTHONPATH"}

    def test_directories_whose_names_are_not_utf_8(self, workspace: Path) -> None:
        cwd = workspace / os.fsdecode(b"caf\xe9 \n\xff")
        root = workspace / os.fsdecode(b"\x80root")
        for path in (cwd, root):
            path.mkdir()
        policy = json.dumps({**WORKSPACE_WRITE, "writable_roots": [str(root)]}, ensure_ascii=False)
        command: list[Word] = ["sh", "-c", 'echo x > here && echo x > "$1/there"', "sh", root]
        done = subprocess.run(
            command_line("--sandbox-policy-cwd", cwd, "--sandbox-policy", policy, *command),
            cwd=cwd,
            env=clean_environment(),
            check=False,
            capture_output=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert (names_in(cwd), names_in(root)) == (["here"], ["there"])

    @every_policy
    def test_the_standard_streams(self, run_policy: RunPolicy, policy: dict[str, object]) -> None:
        done = run_policy(policy, ["sh", "-c", "cat; echo error >&2"], stdin="input\n" * 100_000)
        assert (done.stdout, done.stderr) == ("input\n" * 100_000, "error\n")

    @every_policy
    @pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
    def test_closed_standard_streams_do_no_harm(self, workspace: Path, policy: dict[str, object], closed: str) -> None:
        prefix = ["sh", "-c", f'exec "$@" {closed}', "sh"]
        done = run_prefixed(
            prefix, [*flags(policy, workspace), "sh", "-c", "echo out; echo err >&2; exit 7"], workspace
        )
        assert done.returncode == 7
        assert done.stdout == ("" if ">&-" in closed.replace("2>&-", "") else "out\n")
        assert done.stderr.endswith("" if "2>&-" in closed else "err\n")

    def test_closed_standard_streams_are_dev_null_inside(self, workspace: Path) -> None:
        result = workspace / "result"
        script = """if True:
            import os, sys
            found = [os.readlink(f"/proc/self/fd/{number}") for number in range(3)]
            with open(sys.argv[1], "w") as file:
                file.write(" ".join(found))
        """
        prefix = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
        run_prefixed(
            prefix, [*flags(WORKSPACE_WRITE, workspace), sys.executable, "-I", "-c", script, result], workspace
        )
        assert result.read_text() == "/dev/null /dev/null /dev/null"

    @every_policy
    def test_no_other_descriptor(self, workspace: Path, policy: dict[str, object]) -> None:
        (workspace / "file").write_text("secret")
        # Not sh: that of Debian knows descriptors of one digit only.
        prefix = ["bash", "-c", f'exec "$@" 3<{workspace}/file 7<>{workspace}/file 9</ 200<&0', "bash"]
        found = facts(run_prefixed(prefix, [*flags(policy, workspace), *probe()], workspace))
        assert found["fds"] == [0, 1, 2]
