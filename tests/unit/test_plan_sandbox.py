"""The whole command line of each policy, word for word, and which engine and filters go with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pybwrap.errors import PolicyError, UnsupportedHostError
from pybwrap.plan.sandbox import Engine, NetworkMode, plan_landlock, plan_sandbox
from pybwrap.plan.seccomp import SeccompMode
from pybwrap.policy import Network, PermissionProfile, SandboxPolicy

if TYPE_CHECKING:
    from pathlib import Path

    from pybwrap.plan.sandbox import SandboxPlan

NAMESPACES = ["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
FRONT = ["bwrap", "--new-session", "--die-with-parent"]


def plan(
    policy: SandboxPolicy | PermissionProfile,
    cwd: Path | str = "/",
    *,
    abi: int = 0,
    proxy_only: bool = False,
    fresh_proc: bool = True,
    nested: bool = False,
) -> SandboxPlan:
    profile = policy.to_profile() if isinstance(policy, SandboxPolicy) else policy
    return plan_sandbox(
        profile,
        policy_cwd=str(cwd),
        environment={},
        landlock_abi=abi,
        proxy_only=proxy_only,
        fresh_proc=fresh_proc,
        allow_nested_sandboxes=nested,
    )


def tail(cwd: str = "/", *, proc: bool = True, net: bool = False, sealed: bool = False) -> list[str]:
    """What follows the mounts, for the command `sh -c -- x`."""
    return [
        *NAMESPACES,
        *(["--unshare-net"] if net else []),
        *(["--proc", "/proc"] if proc else []),
        *(["--remount-ro", "/"] if sealed else []),
        *("--cap-drop", "ALL", "--chdir", cwd),
        *("--argv0", "sh", "--", "sh", "-c", "--", "x"),
    ]


COMMAND = ["sh", "-c", "--", "x"]


# --- Whole command lines ----------------------------------------------------------------------------------------


def test_read_only_with_the_network_makes_this_command_line() -> None:
    line = plan(SandboxPolicy.read_only(network_access=True)).command_line(COMMAND, "/")
    assert line == [*FRONT, "--ro-bind", "/", "/", "--dev", "/dev", *tail()]


def test_read_only_without_the_network_makes_this_command_line() -> None:
    line = plan(SandboxPolicy.read_only()).command_line(COMMAND, "/usr")
    assert line == [*FRONT, "--ro-bind", "/", "/", "--dev", "/dev", *tail("/usr", net=True)]


def test_without_a_fresh_proc_the_pid_namespace_stays() -> None:
    line = plan(SandboxPolicy.read_only(), fresh_proc=False).command_line(COMMAND, "/")
    assert line == [*FRONT, "--ro-bind", "/", "/", "--dev", "/dev", *tail(proc=False, net=True)]


def test_a_machine_that_refuses_a_fresh_proc_gets_the_same_plan_without_it() -> None:
    with_proc = plan(SandboxPolicy.read_only())
    assert with_proc.without_fresh_proc() == plan(SandboxPolicy.read_only(), fresh_proc=False)
    assert with_proc.fresh_proc


def test_workspace_write_makes_this_command_line(tmp_path: Path) -> None:
    for name in ("work/.git", "work/.codex", "other"):
        (tmp_path / name).mkdir(parents=True)
    work, other = f"{tmp_path}/work", f"{tmp_path}/other"
    (tmp_path / "work/.agents").symlink_to("../other")
    policy = SandboxPolicy.workspace_write([other], exclude_slash_tmp=True)
    assert plan(policy, work).command_line(COMMAND, work) == [
        *FRONT,
        *("--ro-bind", "/", "/"),
        *("--dev", "/dev"),
        *("--bind", other, other),
        *("--bind", work, work),
        *("--ro-bind", f"{other}/.agents", f"{other}/.agents"),
        *("--ro-bind", f"{other}/.aws", f"{other}/.aws"),
        *("--ro-bind", f"{other}/.codex", f"{other}/.codex"),
        *("--ro-bind", f"{work}/.aws", f"{work}/.aws"),
        *("--ro-bind", f"{work}/.codex", f"{work}/.codex"),
        *("--ro-bind", f"{work}/.git", f"{work}/.git"),
        *tail(work, net=True),
    ]


def test_workspace_write_holds_in_place_the_symlinks_that_bubblewrap_cannot(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "work").mkdir()
    (tmp_path / "work/.agents").symlink_to("../outside")
    pinned = plan(SandboxPolicy.workspace_write(exclude_slash_tmp=True), tmp_path / "work").pinned_symlinks
    assert pinned == (f"{tmp_path}/work/.git", f"{tmp_path}/work/.agents")


def test_restricted_reads_make_this_command_line(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    docs = f"{tmp_path}/docs"
    line = plan(PermissionProfile({docs: "read"})).command_line(COMMAND, docs)
    assert line == [
        *FRONT,
        *("--tmpfs", "/"),
        *("--dev", "/dev"),
        *("--ro-bind", docs, docs),
        *tail(docs, net=True, sealed=True),
    ]


def test_proc_has_its_place_in_a_restricted_view_before_that_is_sealed() -> None:
    # Bubblewrap makes the directory that it mounts on, which a read-only root refuses.
    words = plan(PermissionProfile({"/usr": "read"})).command_line(COMMAND, "/usr")
    assert "/proc" in words[: words.index("--remount-ro")]


def test_an_external_sandbox_with_a_restricted_network_makes_this_command_line() -> None:
    line = plan(SandboxPolicy.external_sandbox()).command_line(COMMAND, "/")
    assert line == [*FRONT, "--dev-bind", "/", "/", *tail(net=True)]


@pytest.mark.parametrize(
    "policy", [SandboxPolicy.danger_full_access(), SandboxPolicy.read_only(network_access=True)], ids=repr
)
def test_proxy_only_takes_precedence_over_a_policy_with_the_full_network(policy: SandboxPolicy) -> None:
    made = plan(policy, proxy_only=True)
    assert (made.engine, made.network, made.seccomp) == (
        Engine.BUBBLEWRAP,
        NetworkMode.PROXY_ONLY,
        SeccompMode.PROXY_ONLY,
    )
    assert "--unshare-net" in made.command_line(COMMAND, "/")


def test_full_access_keeps_the_filesystem_when_its_network_is_the_proxy_only() -> None:
    line = plan(SandboxPolicy.danger_full_access(), proxy_only=True).command_line(COMMAND, "/")
    assert line == [*FRONT, "--dev-bind", "/", "/", *tail(net=True)]


# --- What the reference demands of the order --------------------------------------------------------------------


@pytest.mark.parametrize("network", [False, True])
def test_the_flags_of_the_reference_stand_in_its_order(network: bool) -> None:  # noqa: FBT001
    words = iter(plan(SandboxPolicy.read_only(network_access=network)).command_line(["NAME", "x"], "/"))
    wanted = ["--new-session", "--die-with-parent", "--ro-bind", "/", "/", "--unshare-pid"]
    wanted += [] if network else ["--unshare-net"]
    wanted += ["--proc", "/proc", "--argv0", "NAME", "--", "NAME", "x"]
    assert [word for word in wanted if word not in words] == []


@pytest.mark.parametrize("network", Network)
@pytest.mark.parametrize("proxy_only", [False, True])
def test_the_network_namespace_is_unshared_unless_the_network_is_full(network: Network, proxy_only: bool) -> None:  # noqa: FBT001
    made = plan(PermissionProfile({":root": "read"}, network), proxy_only=proxy_only)
    is_full = network is Network.ENABLED and not proxy_only
    assert ("--unshare-net" not in made.command_line(COMMAND, "/")) is is_full


@pytest.mark.parametrize("command", [["sh"], ["sh", "--", "x"], ["--", "x"], ["sh", "--argv0", "y", "--", "--"]])
def test_argv0_stands_directly_before_the_first_separator_and_the_commands_own_stay(command: list[str]) -> None:
    line = plan(SandboxPolicy.read_only()).command_line(command, "/")
    end = len(line) - len(command)
    assert line[end - 3 :] == ["--argv0", command[0], "--", *command]
    assert "--" not in line[: end - 3]
    assert "--argv0" not in line[: end - 3]


def test_writable_mounts_come_after_the_root_and_protections_after_them(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    line = plan(SandboxPolicy.workspace_write(exclude_slash_tmp=True), tmp_path).command_line(COMMAND, "/")
    text = " ".join(line)
    root, bound, protected = (
        text.index(part) for part in ("--ro-bind / /", f"--bind {tmp_path} ", f"--ro-bind {tmp_path}/.git ")
    )
    assert root < bound < protected < text.index("--unshare-pid")


# --- Engine and filters -----------------------------------------------------------------------------------------


def test_full_access_needs_no_sandbox_and_is_not_restricted() -> None:
    made = plan(SandboxPolicy.danger_full_access(), abi=7)
    assert (made.engine, made.operations, made.seccomp, made.landlock) == (Engine.STAGE, (), None, None)
    assert not made.is_restricted


def test_an_external_sandbox_with_the_network_needs_none_of_ours() -> None:
    made = plan(SandboxPolicy.external_sandbox("enabled"))
    assert (made.engine, made.is_restricted) == (Engine.STAGE, False)


@pytest.mark.parametrize(
    ("policy", "proxy_only", "mode"),
    [
        (SandboxPolicy.read_only(), False, SeccompMode.RESTRICTED),
        (SandboxPolicy.read_only(network_access=True), False, SeccompMode.VSOCK_ONLY),
        (SandboxPolicy.read_only(), True, SeccompMode.PROXY_ONLY),
        (SandboxPolicy.external_sandbox(), False, SeccompMode.RESTRICTED),
    ],
)
def test_the_filter_is_that_of_the_network(policy: SandboxPolicy, proxy_only: bool, mode: SeccompMode) -> None:  # noqa: FBT001
    made = plan(policy, proxy_only=proxy_only)
    assert made.seccomp is mode
    assert made.is_restricted


def test_landlock_is_a_second_layer_that_opens_what_the_mounts_open(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "work").mkdir()
    profile = PermissionProfile({":root": "read", f"{tmp_path}/file": "write", f"{tmp_path}/work": "write"})
    layer = plan(profile, abi=5).landlock
    assert layer is not None
    rights = {rule.path: rule.access for rule in layer.rules}
    make_dir = 1 << 7
    assert rights[f"{tmp_path}/work"] & make_dir
    assert not rights[f"{tmp_path}/file"] & make_dir
    assert set(rights) == {"/", "/dev", "/proc", f"{tmp_path}/file", f"{tmp_path}/work"}


def test_nested_sandboxes_have_no_landlock_rules_that_would_forbid_their_mounts() -> None:
    made = plan(SandboxPolicy.read_only(), abi=7, nested=True)
    assert made.allow_nested_sandboxes
    assert made.landlock is not None
    assert made.landlock.filesystem == 0


def test_a_kernel_without_landlock_runs_without_the_second_layer() -> None:
    assert plan(SandboxPolicy.read_only(), abi=0).landlock is None


# --- The directory that the policy is resolved against ----------------------------------------------------------


def test_the_policys_directory_may_be_named_through_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    made = plan(SandboxPolicy.workspace_write(exclude_slash_tmp=True), tmp_path / "link")
    assert made.filesystem is not None
    assert made.filesystem.writable_paths == (f"{tmp_path}/real",)


def test_the_policys_directory_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path)
    made = plan(SandboxPolicy.workspace_write(exclude_slash_tmp=True), "work")
    assert made.filesystem is not None
    assert made.filesystem.writable_paths == (f"{tmp_path}/work",)


def test_dot_dot_in_the_policys_directory_is_followed_as_the_kernel_follows_it(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a/b")
    made = plan(SandboxPolicy.workspace_write(exclude_slash_tmp=True), f"{tmp_path}/link/..")
    assert made.filesystem is not None
    assert made.filesystem.writable_paths == (f"{tmp_path}/a",)


@pytest.mark.parametrize(
    ("name", "message"), [("gone", "does not exist"), ("file", "is not a directory"), ("a\0", "contains a NUL byte")]
)
def test_a_policy_directory_that_is_none_is_refused_by_name(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PolicyError, match=message) as caught:
        plan(SandboxPolicy.read_only(), f"{tmp_path}/{name}")
    assert repr(f"{tmp_path}/{name}") in str(caught.value)


# --- The legacy pipeline ----------------------------------------------------------------------------------------


def legacy(policy: SandboxPolicy | PermissionProfile, cwd: Path | str = "/", *, abi: int = 5) -> SandboxPlan:
    profile = policy.to_profile() if isinstance(policy, SandboxPolicy) else policy
    return plan_landlock(profile, policy_cwd=str(cwd), environment={}, landlock_abi=abi)


def test_the_legacy_pipeline_has_no_namespaces_and_opens_what_the_policy_opens(tmp_path: Path) -> None:
    made = legacy(SandboxPolicy.workspace_write(exclude_slash_tmp=True), tmp_path)
    assert (made.engine, made.operations, made.seccomp) == (Engine.STAGE, (), SeccompMode.RESTRICTED)
    assert made.landlock is not None
    assert [rule.path for rule in made.landlock.rules] == ["/", "/dev/null", str(tmp_path)]


@pytest.mark.parametrize("rules", [{"/usr": "read"}, {":root": "read", "/usr": "deny"}])
def test_the_legacy_pipeline_refuses_what_it_cannot_enforce(rules: dict[str, str]) -> None:
    with pytest.raises(PolicyError, match="cannot restrict what is read"):
        legacy(PermissionProfile(rules))


def test_the_legacy_pipeline_without_landlock_is_an_unsupported_machine() -> None:
    with pytest.raises(UnsupportedHostError, match="no Landlock"):
        legacy(SandboxPolicy.read_only(), abi=0)


def test_the_legacy_pipeline_of_an_unrestricted_filesystem_is_the_filter_alone() -> None:
    made = legacy(SandboxPolicy.external_sandbox(), abi=0)
    assert (made.engine, made.landlock, made.seccomp) == (Engine.STAGE, None, SeccompMode.RESTRICTED)
    assert not legacy(SandboxPolicy.danger_full_access(), abi=0).is_restricted
