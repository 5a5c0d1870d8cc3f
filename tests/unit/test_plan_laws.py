"""What holds for every policy over every tree: the planned mounts are replayed, and the view that they make is asked.

The replay knows nothing of rules: a path is in the last mount that covers it, as in the kernel.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st

from pybwrap.errors import PolicyError
from pybwrap.plan.filesystem import plan_filesystem
from pybwrap.plan.operation import OperationKind
from pybwrap.plan.paths import ancestors, is_below, resolve
from pybwrap.policy import Access, FilesystemEntry, PermissionProfile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pybwrap.plan.filesystem import FilesystemPlan
    from pybwrap.plan.operation import Operation

READ, WRITE, DENY = Access
STRENGTH = {READ: 0, WRITE: 1, DENY: 2}
PROTECTED = (".git", ".codex")


# --- Trees and policies -----------------------------------------------------------------------------------------


class Link(NamedTuple):
    target: str


Tree = dict[str, "Tree | Link | str"]
"""Names with what they are: a directory, a symlink, or a file with its text. `@` stands for the tree's place."""

names = st.sampled_from(["a", "b", ".git", ".codex"])
relative_paths = st.lists(names, min_size=1, max_size=3).map("/".join)
targets = st.one_of(
    relative_paths,
    relative_paths.map("../{}".format),
    relative_paths.map("@/{}".format),
    st.sampled_from([".", "..", "a/../b", "gone/../a", "/"]),
)
leaves = st.one_of(
    st.just(""),
    targets.map(Link),
    targets.map("gitdir: {}\n".format),
)
trees: st.SearchStrategy[Tree] = st.recursive(
    st.dictionaries(names, leaves, max_size=3),
    lambda inner: st.dictionaries(names, st.one_of(leaves, inner), max_size=4),
    max_leaves=12,
)
rules = st.lists(st.tuples(relative_paths, st.sampled_from(Access)), max_size=6)
bases = st.sampled_from([None, READ, WRITE])


def grow(tree: Tree, place: Path, top: Path) -> None:
    for name, node in tree.items():
        path = place / name
        if isinstance(node, dict):
            path.mkdir()
            grow(node, path, top)
        elif isinstance(node, Link):
            path.symlink_to(node.target.replace("@", str(top)))
        else:
            path.write_text(node.replace("@", str(top)))


@contextmanager
def grown(tree: Tree) -> Iterator[Path]:
    # One directory for each example; the fixture would be one for all of them.
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory).resolve()
        grow(tree, top, top)
        yield top


def entries_for(base: Access | None, rules: list[tuple[str, Access]], top: Path) -> list[FilesystemEntry]:
    entries = [FilesystemEntry(f"{top}/{path}", access, must_exist=False) for path, access in rules]
    return entries if base is None else [FilesystemEntry(":root", base), *entries]


def plan_or_reject(entries: list[FilesystemEntry]) -> FilesystemPlan:
    try:
        return plan_filesystem(PermissionProfile(entries, protected_names=PROTECTED), "/", {})
    except PolicyError:
        reject()  # a loop of symlinks: refused, and so nothing to judge


def paths_in(top: Path) -> Iterator[str]:
    """Every canonical path of the tree, and in each directory one that is not there."""
    yield str(top)
    for directory, folders, files in os.walk(top):
        yield f"{directory}/new"
        yield from (path for name in (*folders, *files) if not Path(path := f"{directory}/{name}").is_symlink())


# --- The view that the mounts make ------------------------------------------------------------------------------


class Mount:
    """What is seen at a path and below it: the host's files or none, writable or not."""

    def __init__(self, operation: Operation) -> None:
        kind = operation.kind
        self.destination = operation.destination
        shows_itself = operation.source == operation.destination
        self.is_host = kind is OperationKind.PIN_SYMLINK or shows_itself
        self.is_writable = kind in (OperationKind.BIND, OperationKind.TMPFS, OperationKind.DEVICES)
        assert kind is not OperationKind.BIND or shows_itself
        assert kind is not OperationKind.READ_ONLY_BIND or shows_itself or operation.source == "/dev/null"

    @property
    def access(self) -> Access:
        if not self.is_host:
            return DENY
        return WRITE if self.is_writable else READ


class View:
    def __init__(self, operations: tuple[Operation, ...]) -> None:
        self.mounts: list[Mount] = []
        for operation in operations:
            if operation.kind is OperationKind.REMOUNT_READ_ONLY:
                self.mount_at(operation.destination).is_writable = False
            elif operation.kind is not OperationKind.SYMLINK:
                self.mounts.append(Mount(operation))

    def mount_at(self, destination: str) -> Mount:
        return next(mount for mount in reversed(self.mounts) if mount.destination == destination)

    def covering(self, path: str) -> Mount:
        return next(
            mount for mount in reversed(self.mounts) if path == mount.destination or is_below(path, mount.destination)
        )

    def access(self, path: str) -> Access:
        return self.covering(path).access

    def is_mount_point(self, path: str) -> bool:
        return any(mount.destination == path for mount in self.mounts)

    def keeps(self, path: str) -> bool:
        """Whether *path* cannot be made or changed: it is not writable, or below a file that stays where it is."""
        parent = Path(path).parent
        return self.access(path) is not WRITE or (not parent.is_dir() and self.is_mount_point(str(parent)))


def expected_access(entries: list[FilesystemEntry], path: str) -> Access:
    """What the entries say about a canonical path, without what is protected: the longest match, the strongest."""
    matching: list[tuple[int, int, Access]] = []
    for entry in entries:
        real = "/" if entry.special else os.path.realpath(entry.location)
        if entry.access is WRITE and not os.path.lexists(real):
            continue
        if path == real or is_below(path, real):
            matching.append((len(real), STRENGTH[entry.access], entry.access))
    return max(matching)[2] if matching else DENY


# --- The laws ---------------------------------------------------------------------------------------------------

law = settings(max_examples=100, deadline=None)


@law
@given(trees, bases, rules)
def test_the_mounts_make_the_access_that_the_plan_says(
    tree: Tree, base: Access | None, rules: list[tuple[str, Access]]
) -> None:
    with grown(tree) as top:
        plan = plan_or_reject(entries_for(base, rules, top))
        view = View(plan.operations)
        for path in paths_in(top):
            rule = plan.access_at(path)
            assert view.access(path) is (DENY if rule is None else rule.access), path


@law
@given(trees, bases, rules)
@example({"a": {".git": "gitdir: ../b/a"}, "b": {"a": {}}}, READ, [("a", WRITE), ("b", DENY)])
@example({"a": {".codex": Link("../b/a")}, "b": {"a": {}}}, None, [("a", WRITE)])
@example({"a": {}}, READ, [("gone/../a", DENY)])
def test_a_deny_or_read_only_rule_wins_below_what_is_writable_and_nothing_else_is_writable(
    tree: Tree, base: Access | None, rules: list[tuple[str, Access]]
) -> None:
    with grown(tree) as top:
        entries = entries_for(base, rules, top)
        plan = plan_or_reject(entries)
        view = View(plan.operations)
        for path in paths_in(top):
            expected = expected_access(entries, path)
            if expected is not WRITE:
                assert view.access(path) is expected, path
            elif view.access(path) is not WRITE:
                assert view.access(path) is READ, path
                rule = plan.access_at(path)
                assert rule is not None
                assert "protected name" in rule.reason, path


@law
@given(trees, bases, rules)
def test_every_empty_cover_is_sealed(tree: Tree, base: Access | None, rules: list[tuple[str, Access]]) -> None:
    with grown(tree) as top:
        view = View(plan_or_reject(entries_for(base, rules, top)).operations)
        unsealed = {mount.destination for mount in view.mounts if mount.is_writable and not mount.is_host}
        assert unsealed == {"/dev"}


@law
@given(trees, bases, rules)
def test_the_top_of_every_writable_directory_keeps_its_protected_names(
    tree: Tree, base: Access | None, rules: list[tuple[str, Access]]
) -> None:
    with grown(tree) as top:
        entries = entries_for(base, rules, top)
        plan = plan_or_reject(entries)
        view = View(plan.operations)
        named = {os.path.realpath(entry.location) for entry in entries if not entry.special}
        named |= {entry.location for entry in entries}
        for root in plan.writable_paths:
            for name in PROTECTED if Path(root).is_dir() and root != "/" else ():
                path = f"{root}/{name}"
                resolved = resolve(path)
                if path in named or resolved.real in named:
                    continue
                covered = resolved.missing or resolved.real
                assert view.keeps(covered), path


@law
@given(trees, bases, rules)
def test_a_missing_path_that_is_not_writable_cannot_be_made(
    tree: Tree, base: Access | None, rules: list[tuple[str, Access]]
) -> None:
    with grown(tree) as top:
        entries = entries_for(base, rules, top)
        plan = plan_or_reject(entries)
        view = View(plan.operations)
        for entry in entries:
            resolved = resolve("/" if entry.special else entry.location)
            if resolved.missing is None or entry.access is WRITE:
                continue
            assert view.keeps(resolved.missing), entry


@law
@given(trees, bases, rules)
def test_whatever_is_placed_stands_at_a_missing_path_and_is_covered(
    tree: Tree, base: Access | None, rules: list[tuple[str, Access]]
) -> None:
    with grown(tree) as top:
        plan = plan_or_reject(entries_for(base, rules, top))
        view = View(plan.operations)
        for placeholder in plan.placeholders:
            assert not os.path.lexists(placeholder.path)
            assert Path(placeholder.path).parent.is_dir()
            assert view.mount_at(placeholder.path).access is READ
        on_host = {operation.destination for operation in plan.operations if operation.source == operation.destination}
        missing = {path for path in on_host if not os.path.lexists(path)}
        assert missing <= {placeholder.path for placeholder in plan.placeholders}


@law
@given(trees, bases, rules)
@example({"a": {"b": {".git": Link("../../b")}}, "b": {}}, READ, [("a", WRITE), ("a/b/.git", DENY)])
def test_every_directory_between_a_writable_mount_and_what_is_protected_below_is_a_mount_point(
    tree: Tree, base: Access | None, rules: list[tuple[str, Access]]
) -> None:
    with grown(tree) as top:
        view = View(plan_or_reject(entries_for(base, rules, top)).operations)
        for mount in view.mounts:
            if mount.access is WRITE or mount.destination in ("/", "/dev"):
                continue
            for directory in ancestors(mount.destination)[:-1]:
                if view.access(directory) is not WRITE:
                    break
                assert view.is_mount_point(directory), (directory, mount.destination)


@law
@given(trees, bases, rules)
def test_every_symlink_that_leads_to_what_is_not_writable_cannot_be_replaced(
    tree: Tree, base: Access | None, rules: list[tuple[str, Access]]
) -> None:
    with grown(tree) as top:
        entries = entries_for(base, rules, top)
        view = View(plan_or_reject(entries).operations)
        for entry in entries:
            for link in resolve(entry.location).links if entry.access is not WRITE and not entry.special else ():
                assert view.is_mount_point(link) or view.access(str(Path(link).parent)) is not WRITE, link


@law
@given(trees, bases, rules, st.randoms(use_true_random=False))
def test_the_order_of_the_entries_does_not_matter(
    tree: Tree,
    base: Access | None,
    rules: list[tuple[str, Access]],
    random: object,
) -> None:
    with grown(tree) as top:
        entries = entries_for(base, rules, top)
        plan = plan_or_reject(entries)
        shuffled = list(entries)
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        other = plan_or_reject(shuffled)
        # Where two entries say the same, either may be the reason.
        assert [op._replace(reason="") for op in other.operations] == [op._replace(reason="") for op in plan.operations]
        assert [rule[:2] for rule in other.rules] == [rule[:2] for rule in plan.rules]
        assert other.placeholders == plan.placeholders


@law
@given(trees, bases, rules)
def test_the_same_policy_over_the_same_tree_is_the_same_plan_and_changes_nothing(
    tree: Tree, base: Access | None, rules: list[tuple[str, Access]]
) -> None:
    with grown(tree) as top:
        before = sorted(str(path) for path in top.rglob("*"))
        entries = entries_for(base, rules, top)
        assert plan_or_reject(entries) == plan_or_reject(entries)
        assert sorted(str(path) for path in top.rglob("*")) == before


@law
@given(trees, bases, rules)
def test_every_operation_has_a_reason(tree: Tree, base: Access | None, rules: list[tuple[str, Access]]) -> None:
    with grown(tree) as top:
        assert all(operation.reason for operation in plan_or_reject(entries_for(base, rules, top)).operations)


def test_the_replay_tells_a_wrong_order_of_mounts() -> None:
    # The laws are worth as much as the model they are judged by.
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory).resolve()
        (top / "a/b").mkdir(parents=True)
        entries = entries_for(READ, [("a", WRITE), ("a/b", DENY)], top)
        plan = plan_or_reject(entries)
        assert View(plan.operations).access(f"{top}/a/b") is DENY
        bind = next(op for op in plan.operations if op.destination == f"{top}/a")
        assert View((*plan.operations, bind)).access(f"{top}/a/b") is WRITE
        with pytest.raises(StopIteration):
            View(()).access("/")
