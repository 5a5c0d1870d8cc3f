"""Policies from JSON: what is accepted, and how each mistake is told."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from pybwrap.errors import PolicyError
from pybwrap.policy import Access, Enforcement, FilesystemEntry, Network, PermissionProfile, SandboxPolicy
from pybwrap.policy.decode import permission_profile_from_json, sandbox_policy_from_json

if TYPE_CHECKING:
    from collections.abc import Callable


def refusal(document: object, read: Callable[[str], object] = sandbox_policy_from_json) -> str:
    """What is said against *document*, which is JSON text or what becomes it."""
    with pytest.raises(PolicyError) as caught:
        read(document if isinstance(document, str) else json.dumps(document))
    return str(caught.value)


def profile_refusal(document: object) -> str:
    return refusal(document, permission_profile_from_json)


def managed(*entries: object, network: str = "restricted", **more: object) -> dict[str, object]:
    filesystem = {"type": "restricted", "entries": entries, **more}
    return {"type": "managed", "file_system": filesystem, "network": network}


def entry(path: object, access: str = "read", **more: object) -> dict[str, object]:
    return {"path": path, "access": access, **more}


def at(path: str) -> dict[str, str]:
    return {"type": "path", "path": path}


def special(kind: str, **more: object) -> dict[str, object]:
    return {"type": "special", "value": {"kind": kind, **more}}


def entries_of(*items: object) -> tuple[FilesystemEntry, ...] | None:
    return permission_profile_from_json(json.dumps(managed(*items))).filesystem


# --- The four short policies ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"type": "danger-full-access"}, SandboxPolicy.danger_full_access()),
        ({"type": "read-only"}, SandboxPolicy.read_only()),
        ({"type": "read-only", "network_access": True}, SandboxPolicy.read_only(network_access=True)),
        ({"type": "external-sandbox"}, SandboxPolicy.external_sandbox("restricted")),
        ({"type": "external-sandbox", "network_access": "enabled"}, SandboxPolicy.external_sandbox("enabled")),
        ({"type": "workspace-write"}, SandboxPolicy.workspace_write()),
        (
            {
                "type": "workspace-write",
                "writable_roots": ["/a", "/b"],
                "network_access": True,
                "exclude_tmpdir_env_var": True,
                "exclude_slash_tmp": True,
            },
            SandboxPolicy.workspace_write(
                ["/a", "/b"], network_access=True, exclude_tmpdir_env_var=True, exclude_slash_tmp=True
            ),
        ),
    ],
)
def test_each_policy_is_read_with_its_defaults(document: dict[str, object], expected: SandboxPolicy) -> None:
    text = json.dumps(document)
    assert sandbox_policy_from_json(text) == expected
    assert sandbox_policy_from_json(text.encode()) == expected
    assert sandbox_policy_from_json(document) == expected
    assert SandboxPolicy.from_json(text) == expected


@pytest.mark.parametrize("name", ["network_access", "exclude_tmpdir_env_var", "exclude_slash_tmp"])
def test_each_switch_of_workspace_write_sets_itself_alone(name: str) -> None:
    policy = sandbox_policy_from_json({"type": "workspace-write", name: True})
    switches = ("network_access", "exclude_tmpdir_env_var", "exclude_slash_tmp")
    assert [switch for switch in switches if getattr(policy, switch)] == [name]


def test_a_writable_root_keeps_the_bytes_of_a_name_that_is_not_utf_8() -> None:
    policy = sandbox_policy_from_json('{"type":"workspace-write","writable_roots":["/caf\\udce9"]}')
    assert policy.writable_roots == ("/caf\udce9",)


@pytest.mark.parametrize("text", ["", "{", "{'type': 'read-only'}", '{"type":"read-only"} x', "read-only"])
def test_what_is_not_json_is_refused_with_the_place(text: str) -> None:
    message = refusal(text)
    assert message.startswith("invalid sandbox policy: not valid JSON: ")
    assert "line 1" in message


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(PolicyError, match="not valid JSON"):
        sandbox_policy_from_json(b'{"type":"\xff"}')


@pytest.mark.parametrize(("text", "kind"), [("[]", "an array"), ("null", "null"), ("1", "a number"), ('"x"', "string")])
def test_a_policy_that_is_no_object_is_refused(text: str, kind: str) -> None:
    message = refusal(text)
    assert "at $: expected an object" in message
    assert kind in message


def test_a_policy_without_a_type_is_refused_with_the_types_there_are() -> None:
    message = refusal({"network_access": True})
    assert "at $.type: is required" in message
    for kind in ("danger-full-access", "read-only", "external-sandbox", "workspace-write"):
        assert f'"{kind}"' in message


def test_an_unknown_type_is_refused_with_the_closest_one() -> None:
    message = refusal({"type": "workspace-writable"})
    assert "at $.type: expected one of" in message
    assert 'got "workspace-writable" (did you mean "workspace-write"?)' in message


def test_an_unknown_field_is_refused_with_its_path_the_closest_one_and_all_allowed() -> None:
    message = refusal({"type": "workspace-write", "writeable_roots": []})
    assert "at $.writeable_roots: unknown field" in message
    assert 'did you mean "writable_roots"?' in message
    assert "allowed: type, writable_roots, network_access, exclude_tmpdir_env_var, exclude_slash_tmp" in message


@pytest.mark.parametrize(
    ("kind", "field", "allowed"),
    [
        ("danger-full-access", "network_access", "type"),
        ("read-only", "writable_roots", "type, network_access"),
        ("external-sandbox", "exclude_slash_tmp", "type, network_access"),
    ],
)
def test_a_field_of_another_policy_is_refused(kind: str, field: str, allowed: str) -> None:
    message = refusal({"type": kind, field: []})
    assert f"at $.{field}: unknown field" in message
    assert message.endswith(f"allowed: {allowed}")


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"type": 1}, "at $.type: expected a string, got a number"),
        ({"type": None}, "at $.type: expected a string, got null"),
        ({"type": "read-only", "network_access": 1}, "at $.network_access: expected true or false, got a number"),
        ({"type": "read-only", "network_access": "true"}, "at $.network_access: expected true or false, got a string"),
        ({"type": "read-only", "network_access": None}, "at $.network_access: expected true or false, got null"),
        ({"type": "workspace-write", "writable_roots": "/a"}, "at $.writable_roots: expected an array, got a string"),
        ({"type": "workspace-write", "writable_roots": {}}, "at $.writable_roots: expected an array, got an object"),
        ({"type": "workspace-write", "writable_roots": ["/", 2]}, "at $.writable_roots[1]: expected a string, got a n"),
        ({"type": "workspace-write", "exclude_slash_tmp": []}, "at $.exclude_slash_tmp: expected true or false, got a"),
        ({"type": "external-sandbox", "network_access": True}, "at $.network_access: expected a string, got a boolean"),
        ({"type": "external-sandbox", "network_access": "full"}, 'expected one of "restricted", "enabled", got "full"'),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_its_path(document: dict[str, object], expected: str) -> None:
    assert expected in refusal(document)


@pytest.mark.parametrize("root", ["relative", "", ".", "~", ":root"])
def test_a_root_that_is_not_an_absolute_path_is_refused_with_its_path(root: str) -> None:
    message = refusal({"type": "workspace-write", "writable_roots": ["/a", root]})
    assert f"at $.writable_roots[1]: path {root!r}: must be absolute" in message


def test_a_nul_in_a_path_is_refused_with_its_place() -> None:
    message = refusal('{"type":"workspace-write","writable_roots":["/a\\u0000b"]}')
    assert "at $.writable_roots[0]: " in message
    assert "NUL" in message


def test_half_a_surrogate_pair_in_a_path_is_refused_with_its_place() -> None:
    message = refusal('{"type":"workspace-write","writable_roots":["/a\\ud800"]}')
    assert "at $.writable_roots[0]: " in message


@pytest.mark.parametrize("read", [sandbox_policy_from_json, permission_profile_from_json])
def test_a_field_given_twice_is_refused_by_name(read: Callable[[str], object]) -> None:
    # Two readers of one document could else each believe another value.
    message = refusal('{"type":"read-only","network_access":true,"network_access":false}', read)
    assert "field network_access is given twice" in message


def test_a_field_given_twice_further_inside_is_refused() -> None:
    text = json.dumps(managed(entry(at("/a")))).replace('"access"', '"access": "write", "access"')
    assert "field access is given twice" in profile_refusal(text)


@pytest.mark.parametrize("read", [sandbox_policy_from_json, permission_profile_from_json])
def test_deep_nesting_is_refused_and_does_not_exhaust_the_stack(read: Callable[[str], object]) -> None:
    message = refusal('{"type":' + "[" * 200_000, read)
    assert "nested too deeply" in message


def test_all_faults_are_told_together() -> None:
    message = refusal(
        {"type": "workspace-write", "writable_roots": ["a", 1], "network_access": 1, "exclude_slash_tmp": 0, "x": 0}
    )
    for path in ("writable_roots[0]", "writable_roots[1]", "network_access", "exclude_slash_tmp", "x"):
        assert f"at $.{path}: " in message


@pytest.mark.parametrize(
    "policy",
    [
        SandboxPolicy.danger_full_access(),
        SandboxPolicy.read_only(network_access=True),
        SandboxPolicy.external_sandbox(),
        SandboxPolicy.workspace_write(["/a"], exclude_slash_tmp=True),
    ],
    ids=repr,
)
def test_a_short_policy_and_its_general_form_in_json_are_one_profile(policy: SandboxPolicy) -> None:
    profile = policy.to_profile()
    if profile.enforcement is Enforcement.DISABLED:
        document: dict[str, object] = {"type": "disabled"}
    elif profile.enforcement is Enforcement.EXTERNAL:
        document = {"type": "external", "network": profile.network.value}
    else:
        kinds = {":root": "root", ":workspace_roots": "project_roots", ":tmpdir": "tmpdir", ":slash_tmp": "slash_tmp"}
        items = [
            entry(special(kinds[rule.location]) if rule.special else at(rule.location), rule.access.value)
            for rule in profile.filesystem or ()
        ]
        document = managed(*items, network=profile.network.value)
    read = permission_profile_from_json(json.dumps(document))
    assert (read.network, read.enforcement) == (profile.network, profile.enforcement)
    assert [rule[:2] for rule in read.filesystem or ()] == [rule[:2] for rule in profile.filesystem or ()]


# --- The general form -------------------------------------------------------------------------------------------


def test_disabled_means_no_sandbox() -> None:
    expected = PermissionProfile(None, "enabled", enforcement=Enforcement.DISABLED)
    assert permission_profile_from_json('{"type":"disabled"}') == expected


@pytest.mark.parametrize("network", Network)
def test_external_and_unrestricted_leave_files_alone(network: Network) -> None:
    external = {"type": "external", "network": network.value}
    assert permission_profile_from_json(dict(external)) == PermissionProfile(
        None, network, enforcement=Enforcement.EXTERNAL
    )
    unrestricted: dict[str, object] = {
        "type": "managed",
        "file_system": {"type": "unrestricted"},
        "network": network.value,
    }
    assert permission_profile_from_json(unrestricted) == PermissionProfile(None, network)


@pytest.mark.parametrize(
    ("document", "missing"),
    [
        ({"type": "external"}, "network"),
        ({"type": "managed", "network": "enabled"}, "file_system"),
        ({"type": "managed", "file_system": {"type": "unrestricted"}}, "network"),
        ({"type": "managed", "file_system": {}, "network": "enabled"}, "file_system.type"),
    ],
)
def test_a_required_field_that_is_missing_is_named(document: dict[str, object], missing: str) -> None:
    assert f"at $.{missing}: is required" in profile_refusal(document)


@pytest.mark.parametrize(
    ("access", "expected"),
    [("read", Access.READ), ("write", Access.WRITE), ("deny", Access.DENY), ("none", Access.DENY)],
)
def test_an_entry_grants_what_it_says_and_none_means_deny(access: str, expected: Access) -> None:
    assert entries_of(entry(at("/a"), access)) == (FilesystemEntry("/a", expected),)


@pytest.mark.parametrize(
    ("kind", "location"),
    [
        ("root", ":root"),
        ("minimal", ":minimal"),
        ("project_roots", ":workspace_roots"),
        ("current_working_directory", ":workspace_roots"),
        ("tmpdir", ":tmpdir"),
        ("slash_tmp", ":slash_tmp"),
    ],
)
def test_each_special_location_is_read_and_may_be_missing(kind: str, location: str) -> None:
    assert entries_of(entry(special(kind))) == (FilesystemEntry(location, Access.READ, must_exist=False),)


@pytest.mark.parametrize("kind", ["project_roots", "current_working_directory"])
@pytest.mark.parametrize("subpath", ["docs/new", "docs/new/"])
def test_a_subpath_is_one_of_the_workspace(kind: str, subpath: str) -> None:
    (rule,) = entries_of(entry(special(kind, subpath=subpath), "write")) or ()
    assert rule.location == ":workspace_roots/docs/new"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (special("project_roots", subpath="../x"), "'..'"),
        (special("project_roots", subpath="/etc"), "must be relative"),
        (special("project_roots", subpath="a\0"), "NUL"),
        (special("project_roots", subpath=1), "expected a string"),
        (special("minimal", subpath="x"), "only :workspace_roots takes a subpath"),
        (special("root", path="/x"), "only a special location of kind unknown has a path"),
        (special("home"), "expected one of"),
        ({"type": "special", "value": {}}, "value.kind: is required"),
        ({"type": "special"}, "value: is required"),
        ({"type": "path"}, "path.path: is required"),
        ({"type": "path", "path": "a"}, "must be absolute"),
        ({"type": "path", "path": ":root"}, "must be absolute"),
        ({"type": "path", "path": "/a", "value": 1}, "unknown field"),
        ({"type": "paths", "path": "/a"}, 'did you mean "path"?'),
        ({"path": "/a"}, "path.type: is required"),
        ("/a", "expected an object, got a string"),
    ],
)
def test_a_path_that_is_not_one_is_refused_at_its_entry(path: object, said: str) -> None:
    message = profile_refusal(managed(entry(at("/ok")), entry(path)))
    assert "at $.file_system.entries[1].path" in message
    assert said in message


def test_a_glob_pattern_is_refused_with_what_to_do_instead() -> None:
    message = profile_refusal(managed(entry({"type": "glob_pattern", "pattern": "**/*.env"}, "deny")))
    assert "at $.file_system.entries[0].path: glob patterns are not supported; name the paths" in message


@pytest.mark.parametrize("access", ["read", "write"])
def test_a_location_of_a_newer_generation_grants_nothing_and_leaves_the_rest(access: str) -> None:
    unknown = special("unknown", path=":future", subpath="x")
    assert entries_of(entry(unknown, access), entry(at("/a"))) == (FilesystemEntry("/a", Access.READ),)


@pytest.mark.parametrize("access", ["deny", "none"])
def test_a_location_of_a_newer_generation_cannot_be_denied(access: str) -> None:
    message = profile_refusal(managed(entry(special("unknown", path=":future"), access)))
    assert "at $.file_system.entries[0].path: a location that is not known here cannot be denied" in message


def test_missing_path_behavior_skip_lets_a_path_be_missing() -> None:
    assert entries_of(entry(at("/a"), "write", missing_path_behavior="skip")) == (
        FilesystemEntry("/a", Access.WRITE, must_exist=False),
    )


def test_another_missing_path_behavior_is_refused() -> None:
    message = profile_refusal(managed(entry(at("/a"), missing_path_behavior="create")))
    assert 'missing_path_behavior: expected one of "skip", got "create"' in message


def test_an_entry_with_an_unknown_field_is_refused() -> None:
    message = profile_refusal(managed(entry(at("/a"), mode="rw")))
    assert "at $.file_system.entries[0].mode: unknown field" in message
    assert "allowed: path, access, missing_path_behavior" in message


@pytest.mark.parametrize("missing", ["path", "access"])
def test_an_entry_without_a_path_or_an_access_is_refused(missing: str) -> None:
    incomplete = entry(at("/a"))
    del incomplete[missing]
    assert f"at $.file_system.entries[0].{missing}: is required" in profile_refusal(managed(incomplete))


def test_an_entry_with_an_unknown_access_is_refused() -> None:
    message = profile_refusal(managed(entry(at("/a"), "wirte")))
    assert 'entries[0].access: expected one of "read", "write", "deny", got "wirte" (did you mean "write"?)' in message


def test_a_glob_scan_depth_is_accepted() -> None:
    profile = permission_profile_from_json(json.dumps(managed(entry(at("/a")), glob_scan_max_depth=3)))
    assert profile == PermissionProfile({"/a": "read"})


@pytest.mark.parametrize(
    ("depth", "said"), [(0, "must be at least 1"), (-1, "at least 1"), (True, "a boolean"), ("3", "a string")]
)
def test_a_glob_scan_depth_that_is_no_depth_is_refused(depth: object, said: str) -> None:
    message = profile_refusal(managed(glob_scan_max_depth=depth))
    assert "at $.file_system.glob_scan_max_depth: " in message
    assert said in message


@pytest.mark.parametrize(("name", "content"), [("entries", []), ("glob_scan_max_depth", 1)])
def test_an_unrestricted_filesystem_has_no_entries(name: str, content: object) -> None:
    filesystem = {"type": "unrestricted", name: content}
    message = profile_refusal({"type": "managed", "file_system": filesystem, "network": "enabled"})
    assert f"at $.file_system.{name}: not allowed where the type is unrestricted" in message


@pytest.mark.parametrize("kind", ["disabled", "external"])
def test_a_filesystem_where_none_is_enforced_is_refused(kind: str) -> None:
    message = profile_refusal({"type": kind, "network": "enabled", "file_system": {"type": "unrestricted"}})
    assert "at $.file_system: unknown field" in message


def test_an_unknown_profile_type_is_refused_with_the_closest_one() -> None:
    message = profile_refusal({"type": "manage"})
    assert message.startswith("invalid permission profile: at $.type: expected one of")
    assert 'did you mean "managed"?' in message


def test_all_faults_of_a_profile_are_told_together() -> None:
    message = profile_refusal(managed(entry(at("a")), entry(at("/b"), "x"), 3, network="on", more=1))
    for path in (
        "file_system.entries[0].path.path",
        "file_system.entries[1].access",
        "file_system.entries[2]",
        "file_system.more",
        "network",
    ):
        assert f"at $.{path}: " in message


def test_the_empty_profile_of_the_older_form_allows_nothing() -> None:
    assert permission_profile_from_json("{}") == PermissionProfile()


@pytest.mark.parametrize(("enabled", "network"), [(True, Network.ENABLED), (False, Network.RESTRICTED)])
def test_the_older_form_says_whether_the_network_is_enabled(enabled: bool, network: Network) -> None:  # noqa: FBT001
    profile = permission_profile_from_json({"network": {"enabled": enabled}})
    assert (profile.network, profile.filesystem) == (network, ())


def test_the_older_form_lists_what_is_read_and_written() -> None:
    profile = permission_profile_from_json({"file_system": {"read": ["/a"], "write": ["/b", "/c"]}})
    assert profile == PermissionProfile({"/a": "read", "/b": "write", "/c": "write"})


def test_the_older_form_takes_entries_as_well() -> None:
    profile = permission_profile_from_json({"file_system": {"entries": [entry(at("/a"), "deny")]}})
    assert profile == PermissionProfile({"/a": "deny"})


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"network": {"enabled": 1}}, "at $.network.enabled: expected true or false, got a number"),
        ({"network": "enabled"}, "at $.network: expected an object, got a string"),
        ({"network": {"enable": True}}, 'at $.network.enable: unknown field (did you mean "enabled"?)'),
        ({"file_system": {"read": ["a"]}}, "at $.file_system.read[0]: path 'a': must be absolute"),
        ({"file_system": {"write": "/a"}}, "at $.file_system.write: expected an array, got a string"),
        ({"filesystem": {}}, 'at $.filesystem: unknown field (did you mean "file_system"?)'),
    ],
)
def test_a_fault_in_the_older_form_is_refused_with_its_path(document: dict[str, object], said: str) -> None:
    assert said in profile_refusal(document)
