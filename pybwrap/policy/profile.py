"""The general form of a policy: which paths may be read or written, and whether there is a network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

from pybwrap.errors import PolicyError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["DEFAULT_PROTECTED_NAMES", "Access", "Enforcement", "FilesystemEntry", "Network", "PermissionProfile"]

DEFAULT_PROTECTED_NAMES = (".git", ".agents", ".codex", ".aws")
"""Names at the top of every writable root that stay read-only: what they hold makes tools outside run code."""


class Access(Enum):
    """What a filesystem entry grants. At the same path, DENY beats WRITE beats READ."""

    READ = "read"
    WRITE = "write"
    DENY = "deny"


class Network(Enum):
    """RESTRICTED is a network namespace of its own with nothing but a loopback; ENABLED is the host's network."""

    RESTRICTED = "restricted"
    ENABLED = "enabled"


class Enforcement(Enum):
    """Who keeps the command in its bounds."""

    MANAGED = "managed"
    """This package does."""
    EXTERNAL = "external"
    """A sandbox around this process does, for files; the network is still ours to restrict."""
    DISABLED = "disabled"
    """Nobody does."""


E = TypeVar("E", bound=Enum)

SPECIAL_LOCATIONS = (":root", ":minimal", ":workspace_roots", ":tmpdir", ":slash_tmp")


class FilesystemEntry(NamedTuple):
    """One rule. *location* is an absolute path, or one of SPECIAL_LOCATIONS with an optional `/subpath`.

    *must_exist* makes a missing location an error where write access is granted; otherwise it is left out.
    """

    location: str
    access: Access
    must_exist: bool = True

    @property
    def special(self) -> str | None:
        """The special location's name, or None for a path."""
        return self.location.partition("/")[0] if self.location.startswith(":") else None

    @property
    def subpath(self) -> str:
        """What follows a special location's name; empty when nothing does."""
        return self.location.partition("/")[2] if self.location.startswith(":") else ""


class PermissionProfile:
    """What may be read, written and reached.

    *filesystem* maps locations to "read", "write" or "deny" (or is a sequence of `FilesystemEntry`): absolute
    paths, `:root`, `:minimal` (what programs need to start), `:workspace_roots` (the policy's directory, also as
    `:workspace_roots/sub`), `:tmpdir` ($TMPDIR) and `:slash_tmp`. The longest matching path decides; what nothing
    matches cannot be read. None leaves the filesystem as it is. *network* is "restricted" or "enabled".

    Raises `PolicyError` for anything else.

    >>> import pybwrap
    >>> policy = pybwrap.PermissionProfile({":root": "read", ":workspace_roots": "write", "/etc/passwd": "deny"})
    >>> pybwrap.run(["touch", "here"], policy=policy).returncode
    0
    >>> pybwrap.run(["cat", "/etc/passwd"], policy=policy, stderr=pybwrap.DEVNULL).returncode
    1
    """

    __slots__ = ("enforcement", "filesystem", "network", "protected_names")

    enforcement: Enforcement
    filesystem: tuple[FilesystemEntry, ...] | None
    network: Network
    protected_names: tuple[str, ...]

    def __init__(
        self,
        filesystem: Mapping[str, str | Access] | Iterable[FilesystemEntry] | None = (),
        network: str | Network = Network.RESTRICTED,
        *,
        enforcement: Enforcement = Enforcement.MANAGED,
        protected_names: Iterable[str] = DEFAULT_PROTECTED_NAMES,
    ) -> None:
        entries: tuple[FilesystemEntry, ...] | None
        if filesystem is None:
            entries = None
        elif isinstance(filesystem, Mapping):
            entries = tuple(
                FilesystemEntry(location, member_of(Access, access, f"access of {location!r}"))
                for location, access in cast("Mapping[str, str | Access]", filesystem).items()
            )
        else:
            entries = tuple(
                entry._replace(access=member_of(Access, entry.access, f"access of {entry.location!r}"))
                for entry in filesystem
            )
        for entry in entries or ():
            check_location(entry.location)
        names = tuple(protected_names)
        for name in names:
            if not name or "/" in name or "\0" in name or name in {".", ".."}:
                raise PolicyError(f"protected name {name!r}: expected one file name, without a slash")
        set_once = object.__setattr__
        set_once(self, "enforcement", enforcement)
        set_once(self, "filesystem", entries)
        set_once(self, "network", member_of(Network, network, "network"))
        set_once(self, "protected_names", names)

    @classmethod
    def from_json(cls, document: str | bytes | dict[str, object]) -> PermissionProfile:
        """Reads the JSON form, as text or already parsed. Raises `PolicyError` that names every key at fault.

        >>> import pybwrap
        >>> pybwrap.PermissionProfile.from_json('{"file_system": {"read": [":root"], "write": ["/srv"]}}')
        PermissionProfile(filesystem={':root': 'read', '/srv': 'write'}, network='restricted')
        """
        from pybwrap.policy.decode import permission_profile_from_json

        return permission_profile_from_json(document)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __reduce__(self) -> tuple[object, ...]:
        return _restore_profile, (self.filesystem, self.network, self.enforcement, self.protected_names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PermissionProfile) and self.__reduce__() == other.__reduce__()

    def __hash__(self) -> int:
        return hash((self.filesystem, self.network, self.enforcement, self.protected_names))

    def __repr__(self) -> str:
        if self.enforcement is not Enforcement.MANAGED:
            return f"PermissionProfile(enforcement={self.enforcement}, network={self.network.value!r})"
        files = None if self.filesystem is None else {e.location: e.access.value for e in self.filesystem}
        return f"PermissionProfile(filesystem={files!r}, network={self.network.value!r})"


def _restore_profile(
    filesystem: tuple[FilesystemEntry, ...] | None,
    network: Network,
    enforcement: Enforcement,
    protected_names: tuple[str, ...],
) -> PermissionProfile:
    return PermissionProfile(filesystem, network, enforcement=enforcement, protected_names=protected_names)


def member_of(kind: type[E], value: object, what: str) -> E:
    """The member of *kind* with that value. Raises `PolicyError` that says *what* it was for, and what is allowed."""
    try:
        return kind(value)
    except ValueError:
        allowed = ", ".join(repr(member.value) for member in kind)
        raise PolicyError(f"{what}: expected one of {allowed}, got {value!r}") from None


def check_text(path: str) -> None:
    """Raises `PolicyError` for what cannot be a path: a NUL byte, or a character that no file name can hold."""
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError as error:
        raise PolicyError(f"path {path!r}: cannot be a file name: {error.reason}") from None
    if b"\0" in encoded:
        raise PolicyError(f"path {path!r}: contains a NUL byte")


def check_location(location: str) -> None:
    """Raises `PolicyError` unless *location* is an absolute path or a special location."""
    check_text(location)
    if location.startswith(":"):
        special, _, subpath = location.partition("/")
        if special not in SPECIAL_LOCATIONS:
            raise PolicyError(f"location {location!r}: expected one of {', '.join(SPECIAL_LOCATIONS)}")
        if subpath and special != ":workspace_roots":
            raise PolicyError(f"location {location!r}: only :workspace_roots takes a subpath")
        if ".." in subpath.split("/"):
            raise PolicyError(f"location {location!r}: a subpath must not contain '..'")
    elif not location.startswith("/"):
        raise PolicyError(f"path {location!r}: must be absolute")
