"""The short form of a policy: four variants that cover most needs."""

from __future__ import annotations

import os
from enum import Enum
from typing import TYPE_CHECKING, Any

from pybwrap.errors import PolicyError
from pybwrap.policy.profile import (
    Access,
    Enforcement,
    FilesystemEntry,
    Network,
    PermissionProfile,
    check_text,
    member_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]

__all__ = ["PolicyType", "SandboxPolicy"]


class PolicyType(Enum):
    """The `type` of a policy in its JSON form."""

    DANGER_FULL_ACCESS = "danger-full-access"
    READ_ONLY = "read-only"
    EXTERNAL_SANDBOX = "external-sandbox"
    WORKSPACE_WRITE = "workspace-write"


class SandboxPolicy:
    """One of four policies; made by the class methods, which give each its own parameters.

    Two policies that say the same are equal, none can be changed, and all can be pickled.

    >>> from pybwrap import SandboxPolicy
    >>> SandboxPolicy.workspace_write(["/srv/cache"], exclude_slash_tmp=True)
    SandboxPolicy('workspace-write', exclude_slash_tmp=True, writable_roots=('/srv/cache',))
    >>> SandboxPolicy.from_json('{"type": "read-only"}') == SandboxPolicy.read_only()
    True
    """

    __slots__ = ("exclude_slash_tmp", "exclude_tmpdir_env_var", "network_access", "type", "writable_roots")

    type: PolicyType
    writable_roots: tuple[str, ...]
    network_access: bool
    exclude_tmpdir_env_var: bool
    exclude_slash_tmp: bool

    def __init__(
        self,
        type: PolicyType,  # noqa: A002 - the name that the JSON form has
        writable_roots: Iterable[Path] = (),
        *,
        network_access: bool = False,
        exclude_tmpdir_env_var: bool = False,
        exclude_slash_tmp: bool = False,
    ) -> None:
        if isinstance(writable_roots, (str, bytes, os.PathLike)):
            raise PolicyError("writable_roots: expected several paths, got one; write [path]")
        roots = tuple(os.fsdecode(root) for root in writable_roots)
        for root in roots:
            check_text(root)
            if not root.startswith("/"):
                raise PolicyError(f"writable root {root!r}: must be an absolute path")
        set_once = object.__setattr__
        set_once(self, "type", member_of(PolicyType, type, "type"))
        set_once(self, "writable_roots", roots)
        set_once(self, "network_access", bool(network_access))
        set_once(self, "exclude_tmpdir_env_var", bool(exclude_tmpdir_env_var))
        set_once(self, "exclude_slash_tmp", bool(exclude_slash_tmp))

    @classmethod
    def read_only(cls, *, network_access: bool = False) -> SandboxPolicy:
        """Everything can be read, nothing written but private scratch space; no network by default."""
        return cls(PolicyType.READ_ONLY, network_access=network_access)

    @classmethod
    def workspace_write(
        cls,
        writable_roots: Iterable[Path] = (),
        *,
        network_access: bool = False,
        exclude_tmpdir_env_var: bool = False,
        exclude_slash_tmp: bool = False,
    ) -> SandboxPolicy:
        """As `read_only`, and the working directory, *writable_roots*, `/tmp` and `$TMPDIR` can be written.

        Raises `PolicyError` for a root that is not an absolute path.
        """
        return cls(
            PolicyType.WORKSPACE_WRITE,
            writable_roots,
            network_access=network_access,
            exclude_tmpdir_env_var=exclude_tmpdir_env_var,
            exclude_slash_tmp=exclude_slash_tmp,
        )

    @classmethod
    def danger_full_access(cls) -> SandboxPolicy:
        """No sandbox at all."""
        return cls(PolicyType.DANGER_FULL_ACCESS, network_access=True)

    @classmethod
    def external_sandbox(cls, network_access: str | Network = Network.RESTRICTED) -> SandboxPolicy:
        """Files are guarded by a sandbox around this process; the network is "restricted" (here) or "enabled"."""
        network = member_of(Network, network_access, "network_access")
        return cls(PolicyType.EXTERNAL_SANDBOX, network_access=network is Network.ENABLED)

    @classmethod
    def from_json(cls, document: str | bytes | dict[str, object]) -> SandboxPolicy:
        """Reads the JSON form, as text or already parsed. Raises `PolicyError` that names every key at fault."""
        from pybwrap.policy.decode import sandbox_policy_from_json

        return sandbox_policy_from_json(document)

    def to_profile(self) -> PermissionProfile:
        """The same policy in its general form."""
        network = Network.ENABLED if self.network_access else Network.RESTRICTED
        if self.type is PolicyType.DANGER_FULL_ACCESS:
            return PermissionProfile(None, Network.ENABLED, enforcement=Enforcement.DISABLED)
        if self.type is PolicyType.EXTERNAL_SANDBOX:
            return PermissionProfile(None, network, enforcement=Enforcement.EXTERNAL)
        entries = [FilesystemEntry(":root", Access.READ)]
        if self.type is PolicyType.WORKSPACE_WRITE:
            entries.append(FilesystemEntry(":workspace_roots", Access.WRITE))
            entries += [FilesystemEntry(root, Access.WRITE) for root in self.writable_roots]
            if not self.exclude_slash_tmp:
                entries.append(FilesystemEntry(":slash_tmp", Access.WRITE, must_exist=False))
            if not self.exclude_tmpdir_env_var:
                entries.append(FilesystemEntry(":tmpdir", Access.WRITE, must_exist=False))
        return PermissionProfile(entries, network)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def _fields(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__slots__}

    def __reduce__(self) -> tuple[object, ...]:
        return _restore_policy, (self._fields(),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SandboxPolicy) and self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash(tuple(self._fields().values()))

    def __repr__(self) -> str:
        arguments = "".join(f", {name}={value!r}" for name, value in self._fields().items() if value and name != "type")
        return f"SandboxPolicy({self.type.value!r}{arguments})"


def _restore_policy(fields: dict[str, Any]) -> SandboxPolicy:
    return SandboxPolicy(**fields)
