"""The mounts of a policy: every state that a path can be in, and what is made of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pybwrap.errors import PolicyError
from pybwrap.plan.filesystem import MINIMAL_PATHS, plan_filesystem
from pybwrap.plan.operation import OperationKind
from pybwrap.plan.placeholder import DIRECTORY_MODE, TARGET, Placeholder
from pybwrap.policy import Access, FilesystemEntry, PermissionProfile, SandboxPolicy
from tests.unit.conftest import NOBODY, plan_for, run_unprivileged, steps

if TYPE_CHECKING:
    from pybwrap.plan.filesystem import FilesystemPlan

NAMES = (".git", ".agents", ".codex", ".aws")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A writable root with nothing in it."""
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def writable(root: Path, *protected: str, **rules: str) -> FilesystemPlan:
    """The plan for a readable machine where *root* can be written; *rules* are below the root."""
    below: dict[str | Path, str] = {root / name: access for name, access in rules.items()}
    return plan_for({":root": "read", root: "write", **below}, protected=protected)


def access_at(plan: FilesystemPlan, path: Path | str) -> Access | None:
    rule = plan.access_at(str(path))
    return None if rule is None else rule.access


# --- The base ---------------------------------------------------------------------------------------------------


def words(plan: FilesystemPlan) -> list[str]:
    return [" ".join(operation.arguments()) for operation in plan.operations]


def test_a_readable_root_is_the_whole_machine_read_only_with_a_private_dev() -> None:
    assert words(plan_for({":root": "read"})) == ["--ro-bind / /", "--dev /dev"]


def test_a_writable_root_is_the_whole_machine_with_a_private_dev() -> None:
    assert words(plan_for({":root": "write"})) == ["--bind / /", "--dev /dev"]


@pytest.mark.parametrize("rules", [{}, {":root": "deny"}])
def test_without_a_readable_root_nothing_is_there_and_nothing_can_be_written(rules: dict[str | Path, str]) -> None:
    # Writes to a tmpfs that nobody keeps would succeed and vanish (codex issue 36852).
    assert words(plan_for(rules)) == ["--tmpfs /", "--dev /dev", "--remount-ro /"]


def test_the_path_of_the_root_is_the_same_as_its_special_location() -> None:
    assert plan_for({"/": "read"}).operations[0].arguments() == ["--ro-bind", "/", "/"]


# --- Protected names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", ["full directory", "empty directory", "full file", "empty file"])
def test_a_protected_name_that_exists_is_bound_read_only_after_its_root(root: Path, name: str, content: str) -> None:
    if content.endswith("directory"):
        (root / name).mkdir()
        if content.startswith("full"):
            (root / name / "config").touch()
    else:
        (root / name).write_text("x" if content.startswith("full") else "")
    plan = writable(root, name)
    assert steps(plan, root) == ["--bind .", f"--ro-bind /{name}"]
    assert plan.placeholders == ()


def test_a_missing_git_is_covered_by_a_dangling_symlink_that_cannot_be_replaced(root: Path) -> None:
    plan = writable(root, ".git")
    assert plan.placeholders == (Placeholder(f"{root}/.git", is_symlink=True),)
    assert steps(plan, root) == ["--bind .", "pin-symlink /.git"]


@pytest.mark.parametrize("name", NAMES[1:])
def test_another_missing_protected_name_is_covered_by_an_empty_directory(root: Path, name: str) -> None:
    plan = writable(root, name)
    assert plan.placeholders == (Placeholder(f"{root}/{name}", is_symlink=False),)
    assert steps(plan, root) == ["--bind .", f"--ro-bind /{name}"]


def test_planning_puts_nothing_on_the_host(root: Path) -> None:
    assert len(writable(root, *NAMES).placeholders) == 4
    assert list(root.iterdir()) == []


def test_a_placeholder_of_another_sandbox_counts_as_missing_still(root: Path) -> None:
    (root / ".codex").mkdir(DIRECTORY_MODE)
    (root / ".git").symlink_to(TARGET)
    plan = plan_for({":root": "read", root: "write"}, protected=(".git", ".codex"))
    assert plan.placeholders == (Placeholder(f"{root}/.codex", False), Placeholder(f"{root}/.git", True))
    assert steps(plan, root) == ["--bind .", "--ro-bind /.codex", "pin-symlink /.git"]


def test_an_empty_directory_of_the_users_is_no_placeholder(root: Path) -> None:
    (root / ".codex").mkdir()
    assert plan_for({":root": "read", root: "write"}, protected=(".codex",)).placeholders == ()


def test_a_placeholder_that_the_host_has_filled_is_none_any_more(root: Path) -> None:
    (root / ".codex").mkdir(DIRECTORY_MODE)
    (root / ".codex/config").touch()
    assert plan_for({":root": "read", root: "write"}, protected=(".codex",)).placeholders == ()


def test_a_standing_placeholder_on_the_way_to_a_denied_path_is_not_opened(root: Path) -> None:
    (root / "a").mkdir(DIRECTORY_MODE)
    plan = plan_for({":root": "read", root: "write", root / "a/b": "deny"})
    assert steps(plan, root) == ["--bind .", "--ro-bind /a"]


def test_protected_names_of_a_read_only_directory_need_nothing(root: Path) -> None:
    assert steps(plan_for({":root": "read", root: "read"}, protected=NAMES), root) == []


def test_only_the_top_of_a_root_is_protected(root: Path) -> None:
    (root / "sub/.git").mkdir(parents=True)
    plan = writable(root, ".git")
    assert access_at(plan, root / "sub/.git") is Access.WRITE


def test_the_protected_names_are_those_of_the_profile(root: Path) -> None:
    (root / ".git").mkdir()
    (root / ".hg").mkdir()
    assert steps(writable(root, ".hg"), root) == ["--bind .", "--ro-bind /.hg"]


def test_a_protected_symlink_to_a_directory_of_the_root_protects_the_directory_and_pins_the_link(root: Path) -> None:
    (root / "real/deep").mkdir(parents=True)
    (root / ".codex").symlink_to("real/deep")
    plan = writable(root, ".codex")
    assert steps(plan, root) == ["--bind .", "--bind /real", "--ro-bind /real/deep", "pin-symlink /.codex"]


def test_a_protected_symlink_out_of_the_root_is_pinned_and_its_target_stays_read_only(
    root: Path, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    (root / ".codex").symlink_to("../outside")
    plan = writable(root, ".codex")
    assert steps(plan, tmp_path) == ["--bind /root", "pin-symlink /root/.codex"]
    assert access_at(plan, tmp_path / "outside") is Access.READ


def test_a_protected_symlink_into_another_root_is_read_only_there(root: Path, tmp_path: Path) -> None:
    (tmp_path / "other/real").mkdir(parents=True)
    (root / ".codex").symlink_to(tmp_path / "other/real")
    plan = plan_for({":root": "read", root: "write", tmp_path / "other": "write"}, protected=(".codex",))
    assert "--ro-bind /other/real" in steps(plan, tmp_path)
    assert "pin-symlink /root/.codex" in steps(plan, tmp_path)


def test_a_dangling_protected_symlink_is_pinned_and_its_target_cannot_be_made(root: Path) -> None:
    (root / ".codex").symlink_to("gone")
    plan = writable(root, ".codex")
    assert plan.placeholders == (Placeholder(f"{root}/gone", is_symlink=False),)
    assert steps(plan, root) == ["--bind .", "--ro-bind /gone", "pin-symlink /.codex"]


def test_every_symlink_of_a_protected_chain_is_pinned(root: Path) -> None:
    (root / "real").mkdir()
    (root / "middle").symlink_to("real")
    (root / ".codex").symlink_to("middle")
    plan = writable(root, ".codex")
    assert steps(plan, root)[-2:] == ["pin-symlink /.codex", "pin-symlink /middle"]


def test_a_loop_at_a_protected_name_is_a_policy_error(root: Path) -> None:
    (root / ".codex").symlink_to(".codex")
    with pytest.raises(PolicyError, match="too many symlinks"):
        writable(root, ".codex")


def test_what_is_named_like_a_protected_path_below_a_file_cannot_come_into_being(root: Path) -> None:
    # Nothing can be put at `file/x`, but the file could make room for a directory: it is held in its place.
    (root / "file").touch()
    (root / ".codex").symlink_to("file/x")
    plan = writable(root, ".codex")
    assert plan.placeholders == ()
    assert steps(plan, root) == ["--bind .", "--bind /file", "pin-symlink /.codex"]


# --- Explicit rules at protected names --------------------------------------------------------------------------


def test_explicit_write_entry_on_dot_git_drops_the_protection_of_that_name_only(root: Path) -> None:
    for name in (".git", ".codex"):
        (root / name).mkdir()
    rules: dict[str | Path, str] = {":root": "read", root: "write", root / ".git": "write"}
    plan = plan_for(rules, protected=(".git", ".codex"))
    assert access_at(plan, root / ".git/config") is Access.WRITE
    assert access_at(plan, root / ".codex/config") is Access.READ


def test_explicit_deny_entry_on_dot_git_stays_a_deny(root: Path) -> None:
    (root / ".git").mkdir()
    rules: dict[str | Path, str] = {":root": "read", root: "write", root / ".git": "deny"}
    assert access_at(plan_for(rules, protected=(".git",)), root / ".git") is Access.DENY


def test_explicit_write_entry_on_the_target_of_a_protected_symlink_stands(root: Path) -> None:
    (root / "real").mkdir()
    (root / ".codex").symlink_to("real")
    rules: dict[str | Path, str] = {":root": "read", root: "write", root / "real": "write"}
    assert access_at(plan_for(rules, protected=(".codex",)), root / "real") is Access.WRITE


# --- Where .git is a file ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pointer", ["{root}/store/git", "store/git", "./store/../store/git"])
@pytest.mark.parametrize("form", ["gitdir: {}\n", "gitdir:{}", "gitdir: {}\r\n"])
def test_the_git_directory_that_a_pointer_names_in_the_root_is_read_only_too(
    root: Path, pointer: str, form: str
) -> None:
    (root / "store/git").mkdir(parents=True)
    (root / ".git").write_text(form.format(pointer.format(root=root)))
    plan = writable(root, ".git")
    assert steps(plan, root) == ["--bind .", "--ro-bind /.git", "--bind /store", "--ro-bind /store/git"]


def test_a_git_directory_outside_every_root_is_read_only_anyway(root: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (root / ".git").write_text("gitdir: ../store\n")
    plan = writable(root, ".git")
    assert steps(plan, tmp_path) == ["--bind /root", "--ro-bind /root/.git"]
    assert access_at(plan, tmp_path / "store") is Access.READ


def test_a_git_directory_in_another_root_is_read_only_there(root: Path, tmp_path: Path) -> None:
    (tmp_path / "other/worktrees/root").mkdir(parents=True)
    (root / ".git").write_text("gitdir: ../other/worktrees/root\n")
    plan = plan_for({":root": "read", root: "write", tmp_path / "other": "write"}, protected=(".git",))
    assert access_at(plan, tmp_path / "other/worktrees/root/config") is Access.READ
    assert "--bind /other/worktrees" in steps(plan, tmp_path)


def test_a_git_directory_that_is_missing_in_the_root_cannot_be_made(root: Path) -> None:
    (root / ".git").write_text("gitdir: store/git\n")
    plan = writable(root, ".git")
    assert plan.placeholders == (Placeholder(f"{root}/store", is_symlink=False),)


def test_a_git_directory_that_is_read_only_in_a_deny_stays_denied(root: Path) -> None:
    (root / "store").mkdir()
    (root / ".git").write_text("gitdir: store\n")
    rules: dict[str | Path, str] = {":root": "read", root: "write", root / "store": "deny"}
    assert access_at(plan_for(rules, protected=(".git",)), root / "store") is Access.DENY


def test_explicit_write_entry_on_the_git_directory_of_a_pointer_stands(root: Path) -> None:
    (root / "store").mkdir()
    (root / ".git").write_text("gitdir: store\n")
    rules: dict[str | Path, str] = {":root": "read", root: "write", root / "store": "write"}
    plan = plan_for(rules, protected=(".git",))
    assert access_at(plan, root / "store") is Access.WRITE
    assert access_at(plan, root / ".git") is Access.READ


def test_a_pointer_that_is_reached_through_a_symlink_pins_the_symlink(root: Path) -> None:
    (root / "real").mkdir()
    (root / "link").symlink_to("real")
    (root / ".git").write_text("gitdir: link\n")
    assert "pin-symlink /link" in steps(writable(root, ".git"), root)


def test_the_directory_that_a_worktree_shares_its_hooks_with_is_read_only_too(tmp_path: Path) -> None:
    root = tmp_path / "work"
    (root / "store/worktrees/work").mkdir(parents=True)
    (root / "store/worktrees/work/commondir").write_text("../..\n")
    (root / ".git").write_text("gitdir: store/worktrees/work\n")
    plan = plan_for({root: "write"}, protected=(".git",))
    decided = plan.access_at(f"{root}/store/hooks/post-commit")
    assert decided is not None
    assert decided.access is Access.READ


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"gitdir:",
        b"gitdir: \n",
        b"ref: store",
        b"gitdir: store\0x",
        b"\xff" * 100,
        b"gitdir: " + b"x" * 300,
        b"gitdir: " + b"x/" * 5000,
        b"gitdir: " + b"x" * 1_000_000,
        b"x" * 1_000_000,
    ],
    ids=lambda content: repr(content[:20]) + str(len(content)),
)
def test_a_git_file_that_points_nowhere_is_protected_and_means_nothing_more(root: Path, content: bytes) -> None:
    (root / "store").mkdir()
    (root / ".git").write_bytes(content)
    plan = writable(root, ".git")
    assert steps(plan, root) == ["--bind .", "--ro-bind /.git"]
    assert plan.placeholders == ()


def test_a_pipe_at_dot_git_is_protected_and_not_waited_for(root: Path) -> None:
    os.mkfifo(root / ".git")
    assert steps(writable(root, ".git"), root) == ["--bind .", "--ro-bind /.git"]


def test_a_pointer_in_another_protected_file_means_nothing(root: Path) -> None:
    (root / "store").mkdir()
    (root / ".codex").write_text("gitdir: store\n")
    assert access_at(writable(root, ".codex"), root / "store") is Access.WRITE


def test_protecting_what_a_pointer_or_a_symlink_names_makes_nothing_denied_readable(root: Path, tmp_path: Path) -> None:
    # What stands in a workspace is not the policy's word: it could name any secret.
    (tmp_path / "secret/keys").mkdir(parents=True)
    (root / ".git").write_text("gitdir: ../secret/keys")
    (root / ".codex").symlink_to("../secret/keys")
    around: list[dict[str | Path, str]] = [{":root": "read", tmp_path / "secret": "deny"}, {}]
    for rules in around:
        plan = plan_for({**rules, root: "write"}, protected=(".git", ".codex"))
        assert access_at(plan, tmp_path / "secret/keys") in (Access.DENY, None)
        assert not any(step.endswith("/keys") for step in steps(plan, tmp_path))
        assert "pin-symlink /root/.codex" in steps(plan, tmp_path)


# --- Writable roots ---------------------------------------------------------------------------------------------


def test_a_root_that_is_a_file_is_bound_and_has_no_protected_names(root: Path) -> None:
    (root / "file").touch()
    plan = plan_for({":root": "read", root / "file": "write"}, protected=NAMES)
    assert steps(plan, root) == ["--bind /file"]
    assert plan.placeholders == ()


def test_a_root_inside_a_protected_directory_opens_that_part_only(root: Path) -> None:
    (root / ".codex/cache").mkdir(parents=True)
    rules: dict[str | Path, str] = {":root": "read", root: "write", root / ".codex/cache": "write"}
    plan = plan_for(rules, protected=(".codex",))
    assert steps(plan, root)[:3] == ["--bind .", "--ro-bind /.codex", "--bind /.codex/cache"]
    assert access_at(plan, root / ".codex/config") is Access.READ


def test_a_root_in_a_root_needs_no_mount_but_is_held_for_its_protected_names(root: Path) -> None:
    (root / "a/b/.git").mkdir(parents=True)
    (root / ".git").mkdir()
    rules: dict[str | Path, str] = {":root": "read", root: "write", root / "a/b": "write"}
    plan = plan_for(rules, protected=(".git",))
    assert steps(plan, root) == ["--bind .", "--ro-bind /.git", "--bind /a", "--bind /a/b", "--ro-bind /a/b/.git"]


def test_a_held_directory_says_what_it_is_held_for(root: Path) -> None:
    (root / "a/secret").mkdir(parents=True)
    plan = plan_for({":root": "read", root: "write", root / "a/secret": "deny"})
    (held,) = (operation for operation in plan.operations if operation.destination == f"{root}/a")
    assert held.reason == f"cannot be renamed, above: denied path {root}/a/secret"


def test_a_symlinked_root_is_bound_at_its_target_with_its_protected_names(root: Path, tmp_path: Path) -> None:
    (root / ".git").mkdir()
    (tmp_path / "link").symlink_to("root")
    plan = plan_for({":root": "read", tmp_path / "link": "write"}, protected=(".git",))
    assert steps(plan, tmp_path) == ["--bind /root", "--ro-bind /root/.git"]


def test_two_names_of_one_root_are_one_mount(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("root")
    assert steps(plan_for({":root": "read", tmp_path / "link": "write", root: "write"}), tmp_path) == ["--bind /root"]


def test_a_root_that_the_caller_named_must_exist(root: Path) -> None:
    with pytest.raises(PolicyError, match="does not exist") as caught:
        writable(root, gone="write")
    assert f"writable root '{root}/gone'" in str(caught.value)


def test_a_dangling_symlink_is_a_root_that_does_not_exist(root: Path) -> None:
    (root / "link").symlink_to("gone")
    with pytest.raises(PolicyError, match="does not exist"):
        writable(root, link="write")


def test_a_root_that_may_be_missing_is_left_out(root: Path) -> None:
    entries = [
        FilesystemEntry(":root", Access.READ),
        FilesystemEntry(f"{root}/gone", Access.WRITE, must_exist=False),
    ]
    assert steps(plan_filesystem(PermissionProfile(entries), "/", {}), root) == []


def test_a_file_that_may_be_missing_is_writable_when_it_is_there(root: Path) -> None:
    (root / "file").touch()
    entries = [
        FilesystemEntry(":root", Access.READ),
        FilesystemEntry(f"{root}/file", Access.WRITE, must_exist=False),
    ]
    assert steps(plan_filesystem(PermissionProfile(entries), "/", {}), root) == ["--bind /file"]


@pytest.mark.parametrize("access", ["read", "deny"])
def test_a_path_below_a_root_that_is_missing_cannot_be_made(root: Path, access: str) -> None:
    plan = plan_for({":root": "read", root: "write", root / "a/b/c": access})
    assert plan.placeholders == (Placeholder(f"{root}/a", is_symlink=False),)
    assert steps(plan, root) == ["--bind .", "--ro-bind /a"]


def test_a_missing_path_outside_every_root_needs_nothing(root: Path) -> None:
    plan = plan_for({":root": "read", root / "gone": "deny"})
    assert plan.placeholders == ()
    assert steps(plan, root) == []


def test_two_missing_paths_below_one_directory_share_a_placeholder(root: Path) -> None:
    plan = plan_for({":root": "read", root: "write", root / "a/b": "deny", root / "a/c": "read"})
    assert plan.placeholders == (Placeholder(f"{root}/a", is_symlink=False),)
    assert steps(plan, root) == ["--bind .", "--ro-bind /a"]


def test_a_missing_path_below_a_file_is_kept_from_being_by_holding_the_file(root: Path) -> None:
    (root / "file").touch()
    plan = plan_for({":root": "read", root: "write", root / "file/x": "deny"})
    assert plan.placeholders == ()
    assert steps(plan, root) == ["--bind .", "--bind /file"]


def test_a_denied_path_spelt_through_a_missing_directory_is_denied(root: Path) -> None:
    (root / "secret").mkdir()
    plan = plan_for({":root": "read", root: "write", f"{root}/gone/../secret": "deny"})
    assert access_at(plan, root / "secret") is Access.DENY
    assert "--perms 0 --tmpfs /secret" in steps(plan, root)


def test_a_root_that_the_user_cannot_write_to_needs_no_placeholders() -> None:
    # /usr is root's: what is missing there cannot be made, neither by the command nor as a placeholder.
    run_unprivileged(lambda: _assert_no_placeholders("/usr"))


def _assert_no_placeholders(path: str) -> None:
    plan = plan_for({":root": "read", path: "write"}, protected=(".codex", ".git"))
    assert plan.placeholders == ()
    assert [operation.destination for operation in plan.operations if operation.destination.startswith(path)] == [path]


def test_a_root_that_its_owner_has_made_read_only_is_refused(workspace: Path) -> None:
    # The command may make it writable again; a placeholder cannot be put there before.
    (workspace / "mine").mkdir()
    if os.geteuid() == 0:
        os.chown(workspace / "mine", NOBODY, NOBODY)
    (workspace / "mine").chmod(0o555)

    def as_nobody() -> None:
        with pytest.raises(PolicyError, match=r"cannot keep .*\.codex' from being made .* chmod u\+w"):
            plan_for({":root": "read", workspace / "mine": "write"}, protected=(".codex",))

    run_unprivileged(as_nobody)


# --- Special locations ------------------------------------------------------------------------------------------


def test_the_workspace_is_the_directory_that_the_policy_is_resolved_against(root: Path) -> None:
    plan = plan_for({":root": "read", ":workspace_roots": "write"}, cwd=root)
    assert steps(plan, root) == ["--bind ."]


def test_a_subpath_of_the_workspace_is_below_it(root: Path) -> None:
    (root / "docs/new").mkdir(parents=True)
    plan = plan_for({":root": "read", ":workspace_roots/docs/new": "write"}, cwd=root)
    assert steps(plan, root) == ["--bind /docs/new"]


def test_a_subpath_with_a_slash_too_many_does_not_leave_the_workspace(root: Path) -> None:
    (root / "etc").mkdir()
    plan = plan_for({":root": "read", ":workspace_roots//etc": "write"}, cwd=root)
    assert plan.writable_paths == (f"{root}/etc",)


def test_a_subpath_of_the_workspace_that_is_missing_must_exist_to_be_writable(root: Path) -> None:
    with pytest.raises(PolicyError, match="does not exist"):
        plan_for({":root": "read", ":workspace_roots/gone": "write"}, cwd=root)


def test_slash_tmp_is_the_machines_tmp_with_its_protected_names() -> None:
    plan = plan_for({":root": "read", ":slash_tmp": "write"}, protected=(".agents",))
    assert steps(plan, Path("/tmp")) == ["--bind .", "--ro-bind /.agents"]  # noqa: S108


def test_tmpdir_is_writable_wherever_it_is(root: Path) -> None:
    plan = plan_for({":root": "read", ":tmpdir": "write"}, tmpdir=root)
    assert steps(plan, root) == ["--bind ."]


def test_a_symlinked_tmpdir_is_bound_at_its_target(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    plan = plan_for({":root": "read", ":tmpdir": "write"}, tmpdir=tmp_path / "link")
    assert steps(plan, tmp_path) == ["--bind /root"]


@pytest.mark.parametrize("tmpdir", [None, "", "relative", "./x", "{root}/gone", "{root}/file", "{root}/file/x"])
def test_a_tmpdir_that_is_no_directory_is_left_out(root: Path, tmpdir: str | None) -> None:
    (root / "file").touch()
    policy = SandboxPolicy.workspace_write(exclude_slash_tmp=True).to_profile()
    environment = {} if tmpdir is None else {"TMPDIR": tmpdir.format(root=root)}
    assert plan_filesystem(policy, "/usr", environment).writable_paths == ("/usr",)


@pytest.mark.parametrize("tmpdir", ["{root}/gone", "{root}/file"])
def test_a_tmpdir_that_is_no_directory_is_left_out_of_a_profile_made_by_hand_too(root: Path, tmpdir: str) -> None:
    (root / "file").touch()
    plan = plan_for({":root": "read", ":tmpdir": "write"}, tmpdir=tmpdir.format(root=root))
    assert plan.writable_paths == ()


def test_tmpdir_below_another_root_needs_no_mount_of_its_own(root: Path) -> None:
    (root / "tmp").mkdir()
    plan = plan_for({":root": "read", root: "write", ":tmpdir": "write"}, tmpdir=root / "tmp")
    assert steps(plan, root) == ["--bind ."]


def test_minimal_is_what_programs_need_to_start_and_nothing_else() -> None:
    plan = plan_for({":minimal": "read"})
    bound = [op.destination for op in plan.operations if op.kind is OperationKind.READ_ONLY_BIND]
    assert bound == sorted({os.path.realpath(path) for path in MINIMAL_PATHS if Path(path).exists()} - _below(bound))
    assert access_at(plan, "/root") is access_at(plan, "/home") is access_at(plan, "/var") is None


def _below(paths: list[str]) -> set[str]:
    """What of the minimal paths lies in another one, as /usr/bin in /usr."""
    real = {os.path.realpath(path) for path in MINIMAL_PATHS}
    return {path for path in real if any(path.startswith(f"{top}/") for top in paths)}


def test_minimal_remakes_the_links_of_a_merged_usr() -> None:
    links = {path: str(Path(path).readlink()) for path in MINIMAL_PATHS if Path(path).is_symlink()}
    made = [op for op in plan_for({":minimal": "read"}).operations if op.kind is OperationKind.SYMLINK]
    assert {op.destination: op.source for op in made if op.destination in MINIMAL_PATHS} == links


# --- Denied paths -----------------------------------------------------------------------------------------------


def test_a_denied_directory_is_an_empty_one_that_cannot_be_entered_or_written(root: Path) -> None:
    (root / "secret").mkdir()
    plan = plan_for({":root": "read", root / "secret": "deny"})
    assert steps(plan, root) == ["--perms 0 --tmpfs /secret", "--remount-ro /secret"]


def test_a_denied_directory_lies_over_the_root_around_it(root: Path) -> None:
    (root / "secret").mkdir()
    plan = plan_for({":root": "read", root: "write", root / "secret": "deny"})
    assert steps(plan, root) == ["--bind .", "--perms 0 --tmpfs /secret", "--remount-ro /secret"]


@pytest.mark.parametrize("kind", ["file", "empty", "fifo"])
def test_a_denied_file_is_a_device_that_cannot_be_opened(root: Path, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(root / "secret")
    else:
        (root / "secret").write_text("x" if kind == "file" else "")
    assert steps(plan_for({":root": "read", root / "secret": "deny"}), root) == ["--ro-bind /dev/null /secret"]


@pytest.mark.parametrize(("access", "bind"), [("read", "--ro-bind"), ("write", "--bind")])
def test_a_child_of_a_denied_directory_is_reopened_before_the_cover_is_sealed(
    root: Path, access: str, bind: str
) -> None:
    (root / "secret/open").mkdir(parents=True)
    plan = plan_for({":root": "read", root / "secret": "deny", root / "secret/open": access})
    assert steps(plan, root) == ["--perms 111 --tmpfs /secret", f"{bind} /secret/open", "--remount-ro /secret"]


def test_a_file_in_a_denied_directory_is_reopened(root: Path) -> None:
    (root / "secret").mkdir()
    (root / "secret/open").touch()
    plan = plan_for({":root": "read", root / "secret": "deny", root / "secret/open": "write"})
    assert "--bind /secret/open" in steps(plan, root)


def test_a_deny_in_a_reopened_child_is_covered_again(root: Path) -> None:
    (root / "secret/open/key").mkdir(parents=True)
    rules: dict[str | Path, str] = {":root": "read", root / "secret": "deny", root / "secret/open": "read"}
    plan = plan_for({**rules, root / "secret/open/key": "deny"})
    assert steps(plan, root) == [
        "--perms 111 --tmpfs /secret",
        "--ro-bind /secret/open",
        "--perms 0 --tmpfs /secret/open/key",
        "--remount-ro /secret",
        "--remount-ro /secret/open/key",
    ]


def test_a_deny_through_a_symlink_denies_the_target_and_pins_the_link(root: Path) -> None:
    (root / "real").mkdir()
    (root / "link").symlink_to("real")
    plan = plan_for({":root": "read", root: "write", root / "link": "deny"})
    assert steps(plan, root) == [
        "--bind .",
        "--perms 0 --tmpfs /real",
        "--remount-ro /real",
        "pin-symlink /link",
    ]


def test_a_deny_through_a_symlink_that_nobody_can_replace_needs_no_pin(root: Path) -> None:
    (root / "real").touch()
    (root / "link").symlink_to("real")
    plan = plan_for({":root": "read", root / "link": "deny"})
    assert steps(plan, root) == ["--ro-bind /dev/null /real"]


def test_the_directory_of_a_pinned_symlink_cannot_be_renamed_either(root: Path, tmp_path: Path) -> None:
    (root / "sub").mkdir()
    (tmp_path / "secret").mkdir()
    (root / "sub/link").symlink_to("../../secret")
    plan = plan_for({":root": "read", root: "write", root / "sub/link": "deny"})
    assert steps(plan, root) == ["--bind .", "--bind /sub", "pin-symlink /sub/link"]


def test_the_strongest_rule_at_one_path_stands(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("root")
    for first, second in (("deny", "write"), ("write", "deny")):
        plan = plan_for({":root": "read", root: first, tmp_path / "link": second})
        assert access_at(plan, root) is Access.DENY
    for first, second in (("read", "write"), ("write", "read")):
        plan = plan_for({":root": "read", root: first, tmp_path / "link": second})
        assert access_at(plan, root) is Access.WRITE


def test_a_denied_path_that_nothing_opens_needs_nothing(root: Path) -> None:
    (root / "secret").mkdir()
    assert steps(plan_for({root / "secret": "deny"}), root) == []


# --- Restricted reads -------------------------------------------------------------------------------------------


def test_what_is_readable_is_bound_into_an_empty_view_that_is_sealed_last(root: Path) -> None:
    (root / "docs").mkdir()
    (root / "work").mkdir()
    plan = plan_for({root / "work": "write", root / "docs": "read"})
    assert words(plan) == [
        "--tmpfs /",
        "--dev /dev",
        f"--ro-bind {root}/docs {root}/docs",
        f"--bind {root}/work {root}/work",
        "--remount-ro /",
    ]


def test_a_symlink_through_which_a_path_was_granted_is_remade(root: Path) -> None:
    (root / "real").mkdir()
    (root / "link").symlink_to("real")
    plan = plan_for({root / "link": "read"})
    assert steps(plan, root) == ["--ro-bind /real", "--symlink real /link"]
    assert plan.operations[-1].arguments() == ["--remount-ro", "/"]


def test_a_symlink_that_the_view_shows_anyway_is_not_remade(root: Path) -> None:
    (root / "real").mkdir()
    (root / "link").symlink_to("real")
    assert steps(plan_for({root: "read", root / "link": "write"}), root) == ["--ro-bind .", "--bind /real"]


def test_a_symlink_that_only_a_deny_goes_through_is_not_remade(root: Path) -> None:
    (root / "real").mkdir()
    (root / "link").symlink_to("real")
    assert steps(plan_for({root / "link": "deny"}), root) == []


def test_a_readable_path_that_is_missing_is_left_out(root: Path) -> None:
    assert steps(plan_for({root / "gone": "read"}), root) == []


# --- /proc and /dev ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("access", Access)
@pytest.mark.parametrize("path", ["/proc", "/proc/sys", "/proc/", "/usr/../proc/1"])
def test_a_rule_about_proc_is_refused(path: str, access: Access) -> None:
    with pytest.raises(PolicyError, match="/proc belongs to the sandbox"):
        plan_for({":root": "read", path: access.value})


def test_a_symlink_to_proc_is_refused(root: Path) -> None:
    (root / "link").symlink_to("/proc/sys")
    with pytest.raises(PolicyError, match="/proc belongs to the sandbox"):
        plan_for({root / "link": "read"})


@pytest.mark.parametrize("access", ["write", "deny"])
def test_dev_as_a_whole_can_be_neither_writable_nor_denied(access: str) -> None:
    with pytest.raises(PolicyError, match="private /dev"):
        plan_for({":root": "read", "/dev": access})


def test_dev_may_be_named_as_readable_and_stays_the_sandboxs_own() -> None:
    assert words(plan_for({":root": "read", "/dev": "read"})) == ["--ro-bind / /", "--dev /dev"]


@pytest.mark.parametrize("base", ["read", "write"])
def test_a_directory_below_dev_is_the_hosts_when_it_is_named(base: str) -> None:
    # Devices open only on a mount without nodev, which --bind would set.
    plan = plan_for({":root": base, "/dev/shm": "write"})  # noqa: S108 - read by the plan only
    assert words(plan)[2:] == ["--dev-bind /dev/shm /dev/shm"]


def test_a_directory_of_the_private_dev_can_be_denied() -> None:
    plan = plan_for({":root": "read", "/dev/shm": "deny"})  # noqa: S108 - read by the plan only
    assert words(plan)[2:] == ["--perms 0 --tmpfs /dev/shm", "--remount-ro /dev/shm"]


def test_a_rule_about_the_whole_root_does_not_bring_the_hosts_dev_in() -> None:
    # A deny below the private /dev must not be made by holding the host's directory in it.
    plan = plan_for({":root": "write", "/dev/shm/pybwrap-test-missing": "deny"})  # noqa: S108 - read by the plan only
    assert words(plan) == ["--bind / /", "--dev /dev"]
    assert plan.placeholders == ()


# --- This package's own directories -----------------------------------------------------------------------------


def test_a_hidden_directory_is_denied_where_it_could_be_written(root: Path) -> None:
    (root / "registry").mkdir()
    plan = plan_for({":root": "read", root: "write"}, hidden=(f"{root}/registry",))
    assert steps(plan, root) == ["--bind .", "--perms 0 --tmpfs /registry", "--remount-ro /registry"]


def test_a_hidden_directory_is_hidden_although_a_rule_names_it(root: Path) -> None:
    (root / "registry").mkdir()
    plan = plan_for({":root": "read", root / "registry": "write"}, hidden=(f"{root}/registry",))
    assert access_at(plan, root / "registry") is Access.DENY


def test_a_hidden_directory_in_a_symlinked_place_is_hidden_where_it_is(root: Path, tmp_path: Path) -> None:
    (root / "registry").mkdir()
    (tmp_path / "link").symlink_to("root")
    plan = plan_for({":root": "read", root: "write"}, hidden=(f"{tmp_path}/link/registry",))
    assert access_at(plan, root / "registry") is Access.DENY


def test_a_hidden_directory_that_is_read_only_stays_as_it_is(root: Path) -> None:
    assert steps(plan_for({":root": "read"}, hidden=(f"{root}/registry",)), root) == []


def test_a_hidden_directory_that_is_not_made_yet_cannot_be_made_inside(root: Path) -> None:
    plan = plan_for({":root": "read", root: "write"}, hidden=(f"{root}/registry",))
    assert steps(plan, root) == ["--bind .", "--ro-bind /registry"]


def test_a_hidden_directory_below_dev_is_out_of_reach_of_a_writable_root() -> None:
    plan = plan_for({":root": "write"}, hidden=("/dev/shm/pybwrap-test-missing",))  # noqa: S108 - read by the plan only
    assert words(plan) == ["--bind / /", "--dev /dev"]


# --- Reasons ----------------------------------------------------------------------------------------------------


def test_every_operation_gives_its_reason_in_the_policys_own_words(root: Path, tmp_path: Path) -> None:
    (root / "secret/open").mkdir(parents=True)
    (root / "store").mkdir()
    (root / ".git").write_text("gitdir: store")
    (root / ".codex").symlink_to("../outside")
    (tmp_path / "outside").mkdir()
    (tmp_path / "tmp").mkdir()
    rules: dict[str | Path, str] = {
        ":root": "read",
        ":workspace_roots": "write",
        ":tmpdir": "write",
        root / "secret": "deny",
        root / "secret/open": "read",
        root / "gone": "deny",
    }
    plan = plan_for(rules, cwd=root, tmpdir=tmp_path / "tmp", protected=(".git", ".codex", ".aws"))
    reasons = {
        (operation.destination.removeprefix(str(tmp_path)), operation.kind.value): operation.reason
        for operation in plan.operations
    }
    assert reasons == {
        ("/", "--ro-bind"): "readable :root",
        ("/dev", "--dev"): "a private /dev with the standard nodes",
        ("/root", "--bind"): "writable :workspace_roots",
        ("/tmp", "--bind"): "writable :tmpdir",  # noqa: S108 - relative to this test's directory
        ("/tmp/.git", "pin-symlink"): "missing, and must stay so: protected name .git of writable :tmpdir",  # noqa: S108
        ("/tmp/.codex", "--ro-bind"): "missing, and must stay so: protected name .codex of writable :tmpdir",  # noqa: S108
        ("/tmp/.aws", "--ro-bind"): "missing, and must stay so: protected name .aws of writable :tmpdir",  # noqa: S108
        ("/root/.aws", "--ro-bind"): "missing, and must stay so: protected name .aws of writable :workspace_roots",
        ("/root/.git", "--ro-bind"): "protected name .git of writable :workspace_roots",
        ("/root/.codex", "pin-symlink"): (
            "cannot be replaced, leads to: protected name .codex of writable :workspace_roots"
        ),
        ("/root/gone", "--ro-bind"): f"missing, and must stay so: denied path {root}/gone",
        ("/root/secret", "--tmpfs"): f"denied path {root}/secret",
        ("/root/secret", "--remount-ro"): f"denied path {root}/secret",
        ("/root/secret/open", "--ro-bind"): f"readable path {root}/secret/open",
        ("/root/store", "--ro-bind"): "git directory of protected name .git of writable :workspace_roots",
    }


def test_the_rules_of_a_plan_are_sorted_by_depth(root: Path) -> None:
    (root / "a/b").mkdir(parents=True)
    plan = plan_for({root / "a/b": "read", ":root": "read", root: "write"})
    assert [rule.path for rule in plan.rules] == ["/", str(root), f"{root}/a/b"]


def test_the_longest_rule_decides_and_what_nothing_matches_has_no_rule(root: Path) -> None:
    (root / "a").mkdir()
    plan = plan_for({root: "write", root / "a": "read"})
    assert access_at(plan, root / "a/x") is Access.READ
    assert access_at(plan, root / "ab") is Access.WRITE
    assert access_at(plan, "/usr") is None
