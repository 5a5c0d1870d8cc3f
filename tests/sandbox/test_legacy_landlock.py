"""`--use-legacy-landlock`: Landlock and seccomp in the process that becomes the command, and no namespaces."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import TMP, as_ordinary_user, clean_environment, command_line, names_in, probe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.conftest import Completed, RunPolicy, RunPybwrap, Word

READ_ONLY: dict[str, object] = {"type": "read-only"}
WORKSPACE_WRITE: dict[str, object] = {"type": "workspace-write", "exclude_slash_tmp": True}
LEGACY: list[Word] = ["--use-legacy-landlock"]


@pytest.fixture(autouse=True)
def landlock() -> None:
    """The tests are of what the kernel does; without Landlock there is only the refusal (test_bad_input.py)."""
    modules = Path("/sys/kernel/security/lsm")
    if modules.exists() and "landlock" not in modules.read_text():
        pytest.skip("THIS KERNEL HAS NO LANDLOCK")


def facts(done: Completed) -> Any:  # noqa: ANN401 - JSON
    assert done.stderr == ""
    assert done.returncode == 0
    return json.loads(done.stdout)


def namespace(name: str) -> str:
    return str(Path(f"/proc/self/ns/{name}").readlink())


@pytest.fixture
def places(workspace: Path) -> dict[str, Path]:
    found = {name: workspace / name for name in ("cwd", "root", "elsewhere")}
    for path in found.values():
        path.mkdir()
    return found


def test_only_the_roots_and_dev_null_can_be_written(run_policy: RunPolicy, places: dict[str, Path]) -> None:
    policy = {**WORKSPACE_WRITE, "writable_roots": [str(places["root"])]}
    paths = [*places.values(), TMP, Path("/dev/null"), Path("/dev/zero")]
    found = facts(run_policy(policy, probe(*paths), places["cwd"], options=LEGACY))
    assert list(found["writes"].values()) == ["ok", "ok", "EACCES", "EACCES", "ok", "EACCES"]
    assert [name for name, path in places.items() if names_in(path)] == ["cwd", "root"]


def test_read_only_lets_nothing_but_dev_null_be_written(run_policy: RunPolicy, workspace: Path) -> None:
    found = facts(run_policy(READ_ONLY, probe(workspace, TMP, "/dev/null"), options=LEGACY))
    assert list(found["writes"].values()) == ["EACCES", "EACCES", "ok"]


def test_a_file_outside_is_not_changed_in_any_way(run_policy: RunPolicy, places: dict[str, Path]) -> None:
    file = places["elsewhere"] / "file"
    file.write_text("content")
    script = 'echo x > "$1"; rm -f "$1"; mv "$1" moved; ln "$1" linked; true > "$1"; mkdir "$1.d"; ln -s x "$1.l"'
    done = run_policy(WORKSPACE_WRITE, ["sh", "-c", script, "sh", file], places["cwd"], options=LEGACY)
    assert done.stderr.count("\n") == 7
    assert names_in(places["elsewhere"]) == ["file"]
    assert names_in(places["cwd"]) == []
    assert file.read_text() == "content"


def test_files_move_between_the_roots(run_policy: RunPolicy, places: dict[str, Path]) -> None:
    (places["cwd"] / "file").write_text("content")
    policy = {**WORKSPACE_WRITE, "writable_roots": [str(places["root"])]}
    done = run_policy(policy, ["mv", "file", places["root"]], places["cwd"], options=LEGACY)
    assert (done.returncode, done.stderr) == (0, "")
    assert names_in(places["root"]) == ["file"]


def test_everything_can_be_read_and_executed(run_policy: RunPolicy, workspace: Path) -> None:
    script = workspace / "script"
    script.write_text("#!/bin/sh\ncat /etc/passwd /proc/self/comm; ls /\n")
    script.chmod(0o755)
    done = run_policy(READ_ONLY, [script], options=LEGACY)
    assert (done.returncode, done.stderr) == (0, "")
    assert "root:" in done.stdout
    assert "usr" in done.stdout.split()


def test_it_makes_no_namespaces_and_no_process(workspace: Path) -> None:
    options = ["--sandbox-policy-cwd", workspace, "--sandbox-policy", json.dumps(READ_ONLY), *LEGACY]
    with subprocess.Popen(
        command_line(*options, *probe()), cwd=workspace, env=clean_environment(), stdout=subprocess.PIPE
    ) as process:
        found = json.loads(process.communicate(timeout=60)[0])
    assert found["pid"] == process.pid
    assert found["namespaces"] == {name: namespace(name) for name in found["namespaces"]}


def test_it_adds_no_new_privs_and_the_filter(run_policy: RunPolicy) -> None:
    found = facts(run_policy(READ_ONLY, probe(), options=LEGACY))
    assert (found["status"]["NoNewPrivs"], found["status"]["Seccomp"]) == ("1", "2")
    assert found["internet"] == "EPERM"
    found = facts(run_policy({**READ_ONLY, "network_access": True}, probe(), options=LEGACY))
    assert (found["status"]["NoNewPrivs"], found["status"]["Seccomp"]) == ("1", "2")
    assert found["internet"] == "ok"


def test_it_works_without_any_privilege(workspace: Path) -> None:
    workspace.chmod(0o777)
    options = ["--sandbox-policy-cwd", workspace, "--sandbox-policy", json.dumps(WORKSPACE_WRITE), *LEGACY]
    done = subprocess.run(
        [*as_ordinary_user(), *command_line(*options, *probe(workspace, TMP))],
        cwd=workspace,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = facts(done)
    assert list(found["writes"].values()) == ["ok", "EACCES"]
    assert found["status"]["CapEff"] == "0000000000000000"


def test_a_process_outside_cannot_be_signalled(run_policy: RunPolicy) -> None:
    with subprocess.Popen(["sleep", "300"]) as outside:
        try:
            done = run_policy(READ_ONLY, ["sh", "-c", f"kill -TERM {outside.pid}"], options=LEGACY)
            assert done.returncode != 0
            assert "not permitted" in done.stderr
            assert outside.poll() is None
        finally:
            outside.kill()


def test_the_exit_status_is_the_commands(run_policy: RunPolicy) -> None:
    done = run_policy(READ_ONLY, ["sh", "-c", "exit 77"], options=LEGACY)
    assert (done.returncode, done.stdout, done.stderr) == (77, "", "")
    assert run_policy(READ_ONLY, ["/no/such/command"], options=LEGACY).returncode == 127
    assert run_policy(READ_ONLY, ["/etc/passwd"], options=LEGACY).returncode == 126


@pytest.mark.parametrize(
    "entries",
    [
        [({"type": "special", "value": {"kind": "minimal"}}, "read")],
        [({"type": "special", "value": {"kind": "root"}}, "read"), ({"type": "path", "path": "/etc"}, "deny")],
        [],
    ],
    ids=["restricted-reads", "a-denied-path", "nothing"],
)
def test_what_landlock_cannot_express_is_an_error(
    pybwrap: RunPybwrap, workspace: Path, entries: Sequence[tuple[Mapping[str, object], str]]
) -> None:
    profile = json.dumps({"file_system": {"entries": [{"path": path, "access": access} for path, access in entries]}})
    options: list[Word] = ["--sandbox-policy-cwd", workspace, "--permission-profile", profile]
    done = pybwrap(*options, *LEGACY, "touch", workspace / "ran")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("pybwrap: the legacy Landlock pipeline cannot restrict what is read")
    assert done.stderr.count("\n") == 1
    assert names_in(workspace) == []


def test_a_read_only_path_below_a_writable_one_is_an_error(pybwrap: RunPybwrap, places: dict[str, Path]) -> None:
    kept = places["cwd"] / "kept"
    kept.mkdir()
    entries = [
        {"path": {"type": "special", "value": {"kind": "root"}}, "access": "read"},
        {"path": {"type": "path", "path": str(places["cwd"])}, "access": "write"},
        {"path": {"type": "path", "path": str(kept)}, "access": "read"},
    ]
    profile = json.dumps({"file_system": {"entries": entries}})
    options: list[Word] = ["--sandbox-policy-cwd", places["cwd"], "--permission-profile", profile]
    done = pybwrap(*options, *LEGACY, "touch", kept / "ran")
    assert done.returncode == 2
    assert names_in(kept) == []


def test_files_that_are_left_as_they_are_get_the_filter_alone(run_policy: RunPolicy, workspace: Path) -> None:
    policy = {"type": "external-sandbox", "network_access": "restricted"}
    found = facts(run_policy(policy, probe(workspace), options=LEGACY))
    assert found["writes"] == {str(workspace): "ok"}
    assert (found["internet"], found["status"]["Seccomp"]) == ("EPERM", "2")
