"""Policies from JSON, strictly: every key is known, every value has its type, and all faults are told at once.

Written here rather than with a decoding library because the drop-in command reads a policy at every start: the
libraries measured cost 15 to 20 ms to import, of the 25 ms that such a start may take.
"""

from __future__ import annotations

import json
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from pybwrap.errors import PolicyError
from pybwrap.policy.profile import Access, Enforcement, FilesystemEntry, Network, PermissionProfile, check_location
from pybwrap.policy.sandbox_policy import PolicyType, SandboxPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["permission_profile_from_json", "sandbox_policy_from_json"]

Document = str | bytes | dict[str, object]
T = TypeVar("T")
E = TypeVar("E", bound=Enum)


class Fault(NamedTuple):
    """One thing wrong, at a JSON path such as `$.writable_roots[0]`."""

    path: str
    message: str


class Value:
    """A JSON value with the place where it stands, and the list that faults go to."""

    __slots__ = ("content", "faults", "path")

    def __init__(self, content: object, path: str, faults: list[Fault]) -> None:
        self.content: object = content
        self.path: str = path
        self.faults: list[Fault] = faults

    def refuse(self, message: str) -> None:
        self.faults.append(Fault(self.path, message))

    def expect(self, kind: type[T], name: str) -> T | None:
        """The content if it is of *kind*. `true` is not a number and `1` is not a boolean."""
        if type(self.content) is kind:
            return self.content
        self.refuse(f"expected {name}, got {_describe(self.content)}")
        return None

    def fields(self, allowed: Iterable[str], required: Iterable[str] = ()) -> dict[str, Value]:
        content = self.expect(dict, "an object")
        if content is None:
            return {}
        names = tuple(allowed)
        for name in content:
            if name not in names:
                self.faults.append(
                    Fault(
                        f"{self.path}.{name}", f"unknown field{_suggestion(name, names)}; allowed: {', '.join(names)}"
                    )
                )
        for name in required:
            if name not in content:
                self.faults.append(Fault(f"{self.path}.{name}", "is required"))
        return {n: Value(c, f"{self.path}.{n}", self.faults) for n, c in content.items() if n in names}

    def items(self) -> list[Value]:
        content = self.expect(list, "an array") or []
        return [Value(item, f"{self.path}[{index}]", self.faults) for index, item in enumerate(content)]

    def member(self, kind: type[E], default: E, aliases: dict[str, E] | None = None) -> E:
        text = self.expect(str, "a string")
        if text is None:
            return default
        if aliases and text in aliases:
            return aliases[text]
        try:
            return kind(text)
        except ValueError:
            allowed = [str(member.value) for member in kind]
            listed = ", ".join(f'"{name}"' for name in allowed)
            self.refuse(f'expected one of {listed}, got "{text}"{_suggestion(text, allowed)}')
            return default

    def boolean(self) -> bool:
        return self.expect(bool, "true or false") or False

    def location(self) -> str | None:
        """An absolute path or a special location, as text."""
        text = self.expect(str, "a string")
        if text is None:
            return None
        try:
            check_location(text)
        except PolicyError as error:
            self.refuse(str(error))
            return None
        return text


def _describe(content: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(content), "a number")


def _suggestion(given: str, allowed: Iterable[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(given, list(allowed), n=1)
    return f' (did you mean "{close[0]}"?)' if close else ""


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"field {', '.join(twice)} is given twice")
    return content


def _decode(document: Document, what: str, read: Callable[[Value], T]) -> T:
    content: object = document
    if isinstance(document, (str, bytes)):
        try:
            content = json.loads(document, object_pairs_hook=_no_duplicates)
        except RecursionError:
            raise PolicyError(f"invalid {what}: nested too deeply") from None
        except ValueError as error:
            raise PolicyError(f"invalid {what}: not valid JSON: {error}") from None
    faults: list[Fault] = []
    result = read(Value(content, "$", faults))
    if faults:
        raise PolicyError(f"invalid {what}: " + "; ".join(f"at {fault.path}: {fault.message}" for fault in faults))
    return result


# --- The four short policies ------------------------------------------------------------------------------------

_FIELDS = {
    PolicyType.DANGER_FULL_ACCESS: (),
    PolicyType.READ_ONLY: ("network_access",),
    PolicyType.EXTERNAL_SANDBOX: ("network_access",),
    PolicyType.WORKSPACE_WRITE: (
        "writable_roots",
        "network_access",
        "exclude_tmpdir_env_var",
        "exclude_slash_tmp",
    ),
}


def sandbox_policy_from_json(document: Document) -> SandboxPolicy:
    """Reads `{"type": "workspace-write", ...}`; every field but `type` has a default.

    Raises `PolicyError` that names the key path of each fault and what is allowed there.
    """
    return _decode(document, "sandbox policy", _sandbox_policy)


def _sandbox_policy(value: Value) -> SandboxPolicy:
    content = value.expect(dict, "an object")
    if content is None:
        return SandboxPolicy.read_only()
    if "type" not in content:
        allowed = ", ".join(f'"{kind.value}"' for kind in PolicyType)
        value.faults.append(Fault("$.type", f"is required; one of {allowed}"))
        return SandboxPolicy.read_only()
    before = len(value.faults)
    kind = Value(content["type"], "$.type", value.faults).member(PolicyType, PolicyType.READ_ONLY)
    if len(value.faults) > before:
        return SandboxPolicy.read_only()

    fields = value.fields(("type", *_FIELDS[kind]))
    roots: list[str] = []
    for item in fields["writable_roots"].items() if "writable_roots" in fields else ():
        root = item.location()
        if root is not None and root.startswith(":"):
            item.refuse(f"path {root!r}: must be absolute")
        elif root is not None:
            roots.append(root)
    network_access = kind is PolicyType.DANGER_FULL_ACCESS
    if "network_access" in fields:
        if kind is PolicyType.EXTERNAL_SANDBOX:
            network_access = fields["network_access"].member(Network, Network.RESTRICTED) is Network.ENABLED
        else:
            network_access = fields["network_access"].boolean()
    flags = {
        name: name in fields and fields[name].boolean() for name in ("exclude_tmpdir_env_var", "exclude_slash_tmp")
    }
    return SandboxPolicy(kind, roots, network_access=network_access, **flags)


# --- The general form -------------------------------------------------------------------------------------------


class _ProfileType(Enum):
    MANAGED = "managed"
    EXTERNAL = "external"
    DISABLED = "disabled"


class _FilesystemType(Enum):
    RESTRICTED = "restricted"
    UNRESTRICTED = "unrestricted"


class _MissingPath(Enum):
    SKIP = "skip"


class _PathType(Enum):
    PATH = "path"
    GLOB_PATTERN = "glob_pattern"
    SPECIAL = "special"


class _SpecialKind(Enum):
    ROOT = "root"
    MINIMAL = "minimal"
    PROJECT_ROOTS = "project_roots"
    CURRENT_WORKING_DIRECTORY = "current_working_directory"
    TMPDIR = "tmpdir"
    SLASH_TMP = "slash_tmp"
    UNKNOWN = "unknown"


_UNKNOWN_LOCATION = ":unknown"

_SPECIAL_LOCATION = {
    _SpecialKind.ROOT: ":root",
    _SpecialKind.MINIMAL: ":minimal",
    _SpecialKind.PROJECT_ROOTS: ":workspace_roots",
    _SpecialKind.CURRENT_WORKING_DIRECTORY: ":workspace_roots",
    _SpecialKind.TMPDIR: ":tmpdir",
    _SpecialKind.SLASH_TMP: ":slash_tmp",
}


def permission_profile_from_json(document: Document) -> PermissionProfile:
    """Reads the general form, tagged by `type` or in the older form without a tag.

    Raises `PolicyError` that names the key path of each fault and what is allowed there.
    """
    return _decode(document, "permission profile", _permission_profile)


def _permission_profile(value: Value) -> PermissionProfile:
    content = value.expect(dict, "an object")
    if content is None:
        return PermissionProfile()
    if "type" not in content:
        return _untagged_profile(value)

    kind = Value(content["type"], "$.type", value.faults).member(_ProfileType, _ProfileType.MANAGED)
    if kind is _ProfileType.DISABLED:
        value.fields(("type",))
        return PermissionProfile(None, Network.ENABLED, enforcement=Enforcement.DISABLED)
    if kind is _ProfileType.EXTERNAL:
        fields = value.fields(("type", "network"), required=("network",))
        return PermissionProfile(None, _network(fields), enforcement=Enforcement.EXTERNAL)

    fields = value.fields(("type", "file_system", "network"), required=("file_system", "network"))
    filesystem = _managed_filesystem(fields["file_system"]) if "file_system" in fields else ()
    return PermissionProfile(filesystem, _network(fields))


def _managed_filesystem(value: Value) -> list[FilesystemEntry] | None:
    fields = value.fields(("type", "entries", "glob_scan_max_depth"), required=("type",))
    shape = _FilesystemType.RESTRICTED
    if "type" in fields:
        shape = fields["type"].member(_FilesystemType, shape)
    if shape is _FilesystemType.UNRESTRICTED:
        for name in ("entries", "glob_scan_max_depth"):
            if name in fields:
                fields[name].refuse("not allowed where the type is unrestricted")
        return None
    if "glob_scan_max_depth" in fields:
        depth = fields["glob_scan_max_depth"].expect(int, "a number")
        if depth is not None and depth < 1:
            fields["glob_scan_max_depth"].refuse("must be at least 1")
    return _entries(fields["entries"].items() if "entries" in fields else [])


def _network(fields: dict[str, Value]) -> Network:
    return fields["network"].member(Network, Network.RESTRICTED) if "network" in fields else Network.RESTRICTED


def _untagged_profile(value: Value) -> PermissionProfile:
    fields = value.fields(("network", "file_system"))
    network = Network.RESTRICTED
    if "network" in fields:
        enabled = fields["network"].fields(("enabled",))
        if "enabled" in enabled and enabled["enabled"].boolean():
            network = Network.ENABLED
    entries: list[FilesystemEntry] = []
    if "file_system" in fields:
        filesystem = fields["file_system"].fields(("read", "write", "entries"))
        for name, access in (("read", Access.READ), ("write", Access.WRITE)):
            for item in filesystem[name].items() if name in filesystem else ():
                location = item.location()
                if location is not None:
                    entries.append(FilesystemEntry(location, access))
        if "entries" in filesystem:
            entries += _entries(filesystem["entries"].items())
    return PermissionProfile(entries, network)


def _entries(items: list[Value]) -> list[FilesystemEntry]:
    entries = []
    for item in items:
        fields = item.fields(("path", "access", "missing_path_behavior"), required=("path", "access"))
        if "path" not in fields or "access" not in fields:
            continue
        access = fields["access"].member(Access, Access.DENY, aliases={"none": Access.DENY})
        location = _entry_location(fields["path"])
        if location == _UNKNOWN_LOCATION:
            # Only a newer generation knows it. Granting nothing is safe, and keeps such profiles usable.
            if access is Access.DENY:
                fields["path"].refuse("a location that is not known here cannot be denied")
            continue
        skip = "missing_path_behavior" in fields
        if skip:
            fields["missing_path_behavior"].member(_MissingPath, _MissingPath.SKIP)
        if location is not None:
            entries.append(FilesystemEntry(location, access, must_exist=not skip and location[0] == "/"))
    return entries


def _entry_location(value: Value) -> str | None:
    content = value.expect(dict, "an object")
    if content is None:
        return None
    if "type" not in content:
        value.faults.append(Fault(f"{value.path}.type", "is required"))
        return None
    kind = Value(content["type"], f"{value.path}.type", value.faults).member(_PathType, _PathType.PATH)
    if kind is _PathType.GLOB_PATTERN:
        value.fields(("type", "pattern"), required=("pattern",))
        value.refuse("glob patterns are not supported; name the paths")
        return None
    if kind is _PathType.PATH:
        fields = value.fields(("type", "path"), required=("path",))
        location = fields["path"].location() if "path" in fields else None
        if location is not None and location.startswith(":"):
            fields["path"].refuse(f"path {location!r}: must be absolute")
            return None
        return location
    fields = value.fields(("type", "value"), required=("value",))
    return _special_location(fields["value"]) if "value" in fields else None


def _special_location(value: Value) -> str | None:
    fields = value.fields(("kind", "subpath", "path"), required=("kind",))
    if "kind" not in fields:
        return None
    kind = fields["kind"].member(_SpecialKind, _SpecialKind.UNKNOWN)
    if kind is _SpecialKind.UNKNOWN:
        return _UNKNOWN_LOCATION
    if "path" in fields:
        fields["path"].refuse("only a special location of kind unknown has a path")
    location = _SPECIAL_LOCATION[kind]
    subpath = fields["subpath"].expect(str, "a string") if "subpath" in fields else None
    if subpath:
        if subpath.startswith("/"):
            fields["subpath"].refuse(f"path {subpath!r}: must be relative")
            return None
        location += "/" + subpath.rstrip("/")
        try:
            check_location(location)
        except PolicyError as error:
            value.refuse(str(error))
            return None
    return location
