"""Policies as values: made once, compared, stored, sent to other processes, and never changed."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from pybwrap.errors import PolicyError
from pybwrap.policy import Access, Enforcement, FilesystemEntry, Network, PermissionProfile, PolicyType, SandboxPolicy

POLICIES = [
    SandboxPolicy.read_only(),
    SandboxPolicy.read_only(network_access=True),
    SandboxPolicy.workspace_write(),
    SandboxPolicy.workspace_write(["/a"]),
    SandboxPolicy.workspace_write(["/a", "/b"]),
    SandboxPolicy.workspace_write(network_access=True),
    SandboxPolicy.workspace_write(exclude_tmpdir_env_var=True),
    SandboxPolicy.workspace_write(exclude_slash_tmp=True),
    SandboxPolicy.danger_full_access(),
    SandboxPolicy.external_sandbox(),
    SandboxPolicy.external_sandbox("enabled"),
]
PROFILES = [
    *(policy.to_profile() for policy in POLICIES),
    PermissionProfile(),
    PermissionProfile(None),
    PermissionProfile({"/a": "deny"}),
    PermissionProfile({"/a": "read"}),
    PermissionProfile({"/a": "read"}, protected_names=()),
    PermissionProfile([FilesystemEntry("/a", Access.READ, must_exist=False)]),
]
VALUES = [*POLICIES, *PROFILES]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_policy_survives_pickling(value: object) -> None:
    twin = pickle.loads(pickle.dumps(value))  # noqa: S301
    assert twin == value
    assert hash(twin) == hash(value)


def test_policies_that_differ_in_anything_are_not_equal() -> None:
    assert all(one != other for index, one in enumerate(POLICIES) for other in POLICIES[:index])
    assert len(set(POLICIES)) == len(POLICIES)


def test_profiles_that_differ_in_anything_are_not_equal() -> None:
    assert all(one != other for index, one in enumerate(PROFILES) for other in PROFILES[:index])
    assert len(set(PROFILES)) == len(PROFILES)


@pytest.mark.parametrize("value", [POLICIES[0], PROFILES[0]], ids=repr)
def test_a_policy_equals_nothing_of_another_type(value: object) -> None:
    assert value != repr(value)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        *((SandboxPolicy.read_only(), name) for name in ("type", "network_access", "writable_roots", "anything")),
        *((PermissionProfile(), name) for name in ("filesystem", "network", "enforcement", "anything")),
    ],
)
def test_a_policy_cannot_be_changed(value: object, name: str) -> None:
    with pytest.raises(AttributeError, match="immutable"):
        setattr(value, name, None)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_policys_repr_says_its_type_and_every_choice(policy: SandboxPolicy) -> None:
    text = repr(policy)
    assert policy.type.value in text
    for name in ("network_access", "exclude_tmpdir_env_var", "exclude_slash_tmp"):
        assert (f"{name}=True" in text) is getattr(policy, name)
    assert all(repr(root) in text for root in policy.writable_roots)


def test_a_profiles_repr_says_every_rule_and_the_network() -> None:
    text = repr(PermissionProfile({"/a": "read", "/b": "deny"}, "enabled"))
    assert text == "PermissionProfile(filesystem={'/a': 'read', '/b': 'deny'}, network='enabled')"


def test_the_repr_of_an_unmanaged_profile_says_who_enforces_it() -> None:
    assert "EXTERNAL" in repr(SandboxPolicy.external_sandbox().to_profile())


def test_writable_roots_may_be_any_kind_of_path() -> None:
    roots = SandboxPolicy.workspace_write(["/a", b"/b\xff", Path("/c")]).writable_roots
    assert roots == ("/a", "/b\udcff", "/c")


def test_a_caller_that_changes_its_list_afterwards_does_not_change_the_policy() -> None:
    roots = ["/a"]
    policy = SandboxPolicy.workspace_write(roots)
    roots.append("/etc")
    assert policy.writable_roots == ("/a",)


@pytest.mark.parametrize("root", ["relative", "", "./a", "~/a"])
def test_a_relative_writable_root_is_refused_by_name(root: str) -> None:
    with pytest.raises(PolicyError, match="must be an absolute path") as caught:
        SandboxPolicy.workspace_write([root])
    assert repr(root) in str(caught.value)


@pytest.mark.parametrize("roots", ["/a", b"/a", Path("/a")])
def test_one_path_in_place_of_a_list_of_them_is_refused(roots: object) -> None:
    # A str is a sequence of one-letter strings: "/a" would open "/" for writing.
    with pytest.raises(PolicyError, match="expected several paths"):
        SandboxPolicy.workspace_write(roots)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["/a\0b", "/\0"])
def test_a_nul_in_a_path_is_refused(path: str) -> None:
    with pytest.raises(PolicyError, match="NUL"):
        SandboxPolicy.workspace_write([path])
    with pytest.raises(PolicyError, match="NUL"):
        PermissionProfile({path: "read"})


def test_a_path_that_no_file_can_have_is_refused() -> None:
    # JSON can say half a surrogate pair; no encoding of a file name can.
    with pytest.raises(PolicyError):
        SandboxPolicy.workspace_write(["/a\ud800"])
    with pytest.raises(PolicyError):
        PermissionProfile({"/a\ud800": "deny"})


def test_an_unknown_policy_type_is_a_policy_error() -> None:
    with pytest.raises(PolicyError):
        SandboxPolicy("read-mostly")  # type: ignore[arg-type]


def test_an_external_sandbox_with_an_unknown_network_is_refused() -> None:
    with pytest.raises(PolicyError, match="network_access: expected one of 'restricted', 'enabled'"):
        SandboxPolicy.external_sandbox("full")


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("relative", "must be absolute"),
        ("", "must be absolute"),
        (":workspace", ":workspace_roots"),
        (":unknown", "expected one of"),
        (":root/etc", "only :workspace_roots takes a subpath"),
        (":tmpdir/x", "only :workspace_roots takes a subpath"),
        (":workspace_roots/../x", r"'\.\.'"),
        (":workspace_roots/a/..", r"'\.\.'"),
    ],
)
def test_a_location_that_means_nothing_is_refused(location: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        PermissionProfile({location: "read"})


def test_an_unknown_access_is_refused_with_the_location_and_what_is_allowed() -> None:
    with pytest.raises(PolicyError, match=r"access of '/a': expected one of 'read', 'write', 'deny', got 'none'"):
        PermissionProfile({"/a": "none"})


def test_an_entry_whose_access_is_not_an_access_is_refused() -> None:
    with pytest.raises(PolicyError):
        PermissionProfile([FilesystemEntry("/a", "rw")])  # type: ignore[arg-type]


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(PolicyError, match="network: expected one of 'restricted', 'enabled'"):
        PermissionProfile((), "full")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/", "a\0"])
def test_a_protected_name_that_is_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(PolicyError, match="one file name"):
        PermissionProfile(protected_names=[name])


def test_an_entry_knows_its_special_location_and_what_follows_it() -> None:
    path = FilesystemEntry("/a:b/c", Access.READ)
    assert (path.special, path.subpath) == (None, "")
    root = FilesystemEntry(":root", Access.READ)
    assert (root.special, root.subpath) == (":root", "")
    docs = FilesystemEntry(":workspace_roots/docs/new", Access.READ)
    assert (docs.special, docs.subpath) == (":workspace_roots", "docs/new")


def test_read_only_reads_everything_and_has_no_network() -> None:
    profile = SandboxPolicy.read_only().to_profile()
    assert profile == PermissionProfile({":root": "read"})
    assert profile.network is Network.RESTRICTED


def test_workspace_write_opens_the_workspace_its_roots_and_the_temporary_directories() -> None:
    profile = SandboxPolicy.workspace_write(["/a"], network_access=True).to_profile()
    assert profile.filesystem == (
        FilesystemEntry(":root", Access.READ),
        FilesystemEntry(":workspace_roots", Access.WRITE),
        FilesystemEntry("/a", Access.WRITE),
        FilesystemEntry(":slash_tmp", Access.WRITE, must_exist=False),
        FilesystemEntry(":tmpdir", Access.WRITE, must_exist=False),
    )
    assert profile.network is Network.ENABLED


@pytest.mark.parametrize(
    ("policy", "excluded"),
    [
        (SandboxPolicy.workspace_write(exclude_slash_tmp=True), ":slash_tmp"),
        (SandboxPolicy.workspace_write(exclude_tmpdir_env_var=True), ":tmpdir"),
    ],
)
def test_an_excluded_temporary_directory_is_not_opened_and_the_other_is(policy: SandboxPolicy, excluded: str) -> None:
    locations = {entry.location for entry in policy.to_profile().filesystem or ()}
    assert {":slash_tmp", ":tmpdir"} - locations == {excluded}


def test_the_default_protected_names_are_those_of_the_reference() -> None:
    assert SandboxPolicy.workspace_write().to_profile().protected_names == (".git", ".agents", ".codex", ".aws")


def test_full_access_is_enforced_by_nobody() -> None:
    profile = SandboxPolicy.danger_full_access().to_profile()
    assert (profile.filesystem, profile.network, profile.enforcement) == (None, Network.ENABLED, Enforcement.DISABLED)
    assert SandboxPolicy.danger_full_access().type is PolicyType.DANGER_FULL_ACCESS


@pytest.mark.parametrize("network", Network)
def test_an_external_sandbox_leaves_files_alone_and_keeps_its_word_on_the_network(network: Network) -> None:
    profile = SandboxPolicy.external_sandbox(network).to_profile()
    assert (profile.filesystem, profile.network, profile.enforcement) == (None, network, Enforcement.EXTERNAL)
