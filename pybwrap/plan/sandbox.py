"""The whole plan: which engine, which namespaces, which mounts, which filters, and the command line that says so."""

from __future__ import annotations

import os
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from pybwrap.errors import PolicyError, UnsupportedHostError
from pybwrap.plan.filesystem import FilesystemPlan, plan_filesystem
from pybwrap.plan.landlock import LandlockRuleset, legacy_ruleset, second_layer
from pybwrap.plan.operation import Operation, OperationKind
from pybwrap.plan.paths import resolve
from pybwrap.plan.seccomp import SeccompMode
from pybwrap.policy.profile import Access, Enforcement, Network, PermissionProfile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pybwrap.plan.filesystem import PrivateLayer

__all__ = ["Engine", "NetworkMode", "SandboxPlan", "plan_landlock", "plan_sandbox"]

BUBBLEWRAP_ARGUMENT_LIMIT = 9000
"""MAX_ARGS in bubblewrap.c; more is refused there, so it is refused here with a better reason."""


class Engine(Enum):
    """What builds the sandbox."""

    BUBBLEWRAP = "bubblewrap"
    STAGE = "stage"
    """No namespaces: the last stage alone, in a process on the host."""


class NetworkMode(Enum):
    """What the command can reach."""

    FULL = "full"
    ISOLATED = "isolated"
    PROXY_ONLY = "proxy-only"


class SandboxPlan(NamedTuple):
    """Everything that is decided before a process is started."""

    engine: Engine
    operations: tuple[Operation, ...]
    filesystem: FilesystemPlan | None
    network: NetworkMode
    seccomp: SeccompMode | None
    landlock: LandlockRuleset | None
    fresh_proc: bool = False
    allow_nested_sandboxes: bool = False

    @property
    def is_restricted(self) -> bool:
        """Whether anything at all is enforced."""
        return self.engine is Engine.BUBBLEWRAP or self.seccomp is not None or self.landlock is not None

    @property
    def pinned_symlinks(self) -> tuple[str, ...]:
        """The symlinks that the launch binds on themselves."""
        return tuple(op.destination for op in self.operations if op.kind is OperationKind.PIN_SYMLINK)

    def without_fresh_proc(self) -> SandboxPlan:
        """The same plan for a machine that refuses a fresh /proc."""
        return self._replace(fresh_proc=False)

    def bubblewrap_options(self, cwd: str) -> list[str]:
        """Bubblewrap's options for this plan; the command starts in *cwd*."""
        options = ["--new-session", "--die-with-parent"]
        sealing_root: list[str] = []
        for operation in self.operations:
            if operation.kind is OperationKind.REMOUNT_READ_ONLY and operation.destination == "/":
                sealing_root = operation.arguments()
            elif operation.kind is not OperationKind.PIN_SYMLINK:
                options += operation.arguments()
        # Always a user namespace: root in a container often lacks CAP_SYS_ADMIN, and as root it bounds what is held.
        options += ["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
        if self.network is not NetworkMode.FULL:
            options.append("--unshare-net")
        if self.fresh_proc:
            options += ["--proc", "/proc"]
        options += sealing_root  # only now: /proc needs a mount point in it
        options += ["--cap-drop", "ALL", "--chdir", cwd]
        return options

    def check_argument_count(self) -> None:
        """Raises `PolicyError` when bubblewrap would not take that many arguments."""
        count = len(self.command_line(("command",), "/"))
        if count > BUBBLEWRAP_ARGUMENT_LIMIT:
            raise PolicyError(
                f"the policy needs {count} arguments of bubblewrap, which takes {BUBBLEWRAP_ARGUMENT_LIMIT}; "
                "grant a directory above the paths instead of each"
            )

    def command_line(self, command: Sequence[str], cwd: str) -> list[str]:
        """The plan and *command* as one bubblewrap command line."""
        return ["bwrap", *self.bubblewrap_options(cwd), "--argv0", command[0], "--", *command]


def plan_sandbox(
    profile: PermissionProfile,
    *,
    policy_cwd: str,
    environment: Mapping[str, str],
    landlock_abi: int = 0,
    proxy_only: bool = False,
    fresh_proc: bool = True,
    allow_nested_sandboxes: bool = False,
    hidden_paths: tuple[str, ...] = (),
    private_layer: PrivateLayer | None = None,
) -> SandboxPlan:
    """Decides how *profile* is enforced, resolved against the directory *policy_cwd* and *environment*'s TMPDIR.

    *landlock_abi* is the kernel's (0: none). *proxy_only* overrides a profile that grants the network. *fresh_proc*
    asks for a /proc of the sandbox's own. The last three are explained at `plan_filesystem`.

    Raises `PolicyError`.
    """
    network = _network_mode(profile, proxy_only=proxy_only)
    filesystem = None
    if profile.filesystem is not None:
        filesystem = plan_filesystem(
            profile,
            _directory(policy_cwd),
            environment,
            hidden_paths=hidden_paths,
            private_layer=private_layer,
        )
    elif private_layer is not None:
        raise PolicyError(
            "files and collect need a policy with filesystem rules: without them nothing can be kept apart"
        )
    if filesystem is None and network is NetworkMode.FULL:
        return SandboxPlan(Engine.STAGE, (), None, network, None, None)

    operations = (
        (Operation(OperationKind.DEVICE_BIND, "/", "the policy leaves the filesystem as it is", "/"),)
        if filesystem is None
        else filesystem.operations
    )
    landlock = None
    if filesystem is not None:
        landlock = second_layer(
            landlock_abi, _with_types(filesystem.writable_paths), allow_nested_sandboxes=allow_nested_sandboxes
        )
    plan = SandboxPlan(
        Engine.BUBBLEWRAP,
        operations,
        filesystem,
        network,
        _seccomp_mode(network),
        landlock,
        fresh_proc=fresh_proc,
        allow_nested_sandboxes=allow_nested_sandboxes,
    )
    plan.check_argument_count()
    return plan


def plan_landlock(
    profile: PermissionProfile,
    *,
    policy_cwd: str,
    environment: Mapping[str, str],
    landlock_abi: int,
    proxy_only: bool = False,
) -> SandboxPlan:
    """The legacy pipeline: Landlock and seccomp in one process, without namespaces.

    Raises `PolicyError` for what it cannot enforce (restricted reads, denied paths), `UnsupportedHostError` when the
    kernel has no Landlock.
    """
    network = _network_mode(profile, proxy_only=proxy_only)
    if profile.filesystem is None:
        seccomp = None if network is NetworkMode.FULL else _seccomp_mode(network)
        return SandboxPlan(Engine.STAGE, (), None, network, seccomp, None)
    # Protected names are read-only paths below writable ones, which Landlock cannot express: known, and documented.
    unprotected = PermissionProfile(profile.filesystem, profile.network, protected_names=())
    filesystem = plan_filesystem(unprotected, _directory(policy_cwd), environment)
    root = filesystem.access_at("/")
    if root is None or any(rule.access is Access.DENY for rule in filesystem.rules):
        raise PolicyError("the legacy Landlock pipeline cannot restrict what is read; leave out --use-legacy-landlock")
    for rule in filesystem.rules:
        around = filesystem.access_at(os.path.dirname(rule.path)) if rule.path != "/" else None
        if rule.access is Access.READ and around is not None and around.access is Access.WRITE:
            raise PolicyError(
                f"the legacy Landlock pipeline cannot keep {rule.path!r} read-only below a writable path "
                f"({rule.reason}); leave out --use-legacy-landlock"
            )
    if landlock_abi == 0:
        raise UnsupportedHostError("this kernel has no Landlock (it needs Linux 5.13 with landlock in its lsm= list)")
    ruleset = legacy_ruleset(landlock_abi, _with_types(filesystem.writable_paths))
    return SandboxPlan(Engine.STAGE, (), filesystem, network, _seccomp_mode(network), ruleset)


def _network_mode(profile: PermissionProfile, *, proxy_only: bool) -> NetworkMode:
    if proxy_only:
        return NetworkMode.PROXY_ONLY
    if profile.enforcement is Enforcement.DISABLED:
        return NetworkMode.FULL
    return NetworkMode.FULL if profile.network is Network.ENABLED else NetworkMode.ISOLATED


def _seccomp_mode(network: NetworkMode) -> SeccompMode:
    return {
        NetworkMode.FULL: SeccompMode.VSOCK_ONLY,
        NetworkMode.ISOLATED: SeccompMode.RESTRICTED,
        NetworkMode.PROXY_ONLY: SeccompMode.PROXY_ONLY,
    }[network]


def _with_types(paths: tuple[str, ...]) -> tuple[tuple[str, bool], ...]:
    return tuple((path, os.path.isdir(path)) for path in paths)


def _directory(path: str) -> str:
    """The canonical form of a directory that the policy is resolved against."""
    if "\0" in path:
        raise PolicyError(f"working directory {path!r}: contains a NUL byte")
    resolved = resolve(path if path.startswith("/") else os.path.join(os.getcwd(), path))
    if resolved.missing is not None:
        raise PolicyError(f"working directory {path!r} does not exist")
    if not os.path.isdir(resolved.real):
        raise PolicyError(f"working directory {path!r} is not a directory")
    return resolved.real
