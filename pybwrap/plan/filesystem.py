"""From the entries of a profile to the mounts of a sandbox.

The view is made parents first, so that what is more specific lies on top of what is less. Three laws hold for
every profile: a deny or read-only rule below a writable path wins; the order of the entries does not matter;
nothing outside the writable rules can be written.
"""

from __future__ import annotations

import os
from stat import S_ISDIR, S_ISREG, S_IWGRP, S_IWOTH, S_IWUSR
from typing import TYPE_CHECKING, NamedTuple

from pybwrap.errors import PolicyError
from pybwrap.plan.operation import Operation, OperationKind
from pybwrap.plan.paths import ResolvedPath, ancestors, components, is_below, resolve
from pybwrap.plan.placeholder import TARGET, Placeholder
from pybwrap.policy.profile import Access

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pybwrap.policy.profile import FilesystemEntry, PermissionProfile

__all__ = ["FilesystemPlan", "PrivateLayer", "Rule", "plan_filesystem"]

MINIMAL_PATHS = (
    "/bin",
    "/sbin",
    "/usr",
    "/etc",
    "/lib",
    "/lib64",
    "/nix/store",
    "/run/current-system/sw",
)
"""What `:minimal` grants: enough for a dynamically linked program to start."""

GITDIR_FILE_LIMIT = 64 * 1024
"""How much of a `.git` file is read, in bytes; git writes one line."""

LONGEST_NAME, LONGEST_PATH = 255, 4095
"""Of a file and of a path, in bytes: NAME_MAX, and PATH_MAX without its NUL (limits.h)."""

IMPLIED_LOCATIONS = (":slash_tmp", ":tmpdir")
"""Nobody named these directories; where one is not there, there is nothing to open."""

_STRENGTH = {Access.READ: 0, Access.WRITE: 1, Access.DENY: 2}


class Rule(NamedTuple):
    """An access at a canonical path, and the words of the policy that it comes from."""

    path: str
    access: Access
    reason: str


class PrivateLayer(NamedTuple):
    """What takes the writes to the working directory, so that they do not reach the host's.

    *upper* and *work* are the two directories that an overlay needs of one filesystem, *empty* one that stands in for
    a working directory that the policy does not let the command see. *files* are the paths in *upper*, relative to it,
    that the command is to find.
    """

    upper: str
    work: str
    empty: str
    files: tuple[str, ...]


class FilesystemPlan(NamedTuple):
    """The mounts in order, what must stand on the host while they do, and the rules they enforce."""

    operations: tuple[Operation, ...]
    placeholders: tuple[Placeholder, ...]
    rules: tuple[Rule, ...]
    """Sorted by path depth; the longest match decides, and what nothing matches is denied."""

    def access_at(self, path: str) -> Rule | None:
        """The rule that decides about a canonical path, or None where nothing matches."""
        return _Rules(self.rules).deciding(path)

    @property
    def writable_paths(self) -> tuple[str, ...]:
        """The paths that the rules open for writing."""
        return tuple(rule.path for rule in self.rules if rule.access is Access.WRITE)


class _Rules:
    """Rules by path. At one path the strongest stands, whatever came first."""

    def __init__(self, rules: tuple[Rule, ...] = ()) -> None:
        self.by_path: dict[str, Rule] = {rule.path: rule for rule in rules}

    def add(self, rule: Rule) -> None:
        standing = self.by_path.get(rule.path)
        if standing is None or _STRENGTH[rule.access] > _STRENGTH[standing.access]:
            self.by_path[rule.path] = rule

    def deciding(self, path: str) -> Rule | None:
        for candidate in (path, *ancestors(path)):
            if candidate in self.by_path:
                return self.by_path[candidate]
            if candidate == "/dev":
                break  # the sandbox's own: a rule about the host's root says nothing about it
        return None

    def around(self, path: str) -> Rule | None:
        """The rule that would decide about *path* if it had none of its own."""
        return self.deciding(os.path.dirname(path)) if path != "/" else None

    def is_writable(self, path: str) -> bool:
        rule = self.deciding(path)
        return rule is not None and rule.access is Access.WRITE

    def is_visible(self, path: str) -> bool:
        rule = self.deciding(path)
        return rule is not None and rule.access is not Access.DENY

    def in_order(self) -> list[Rule]:
        return sorted(self.by_path.values(), key=lambda rule: (components(rule.path), rule.path))


def _read_regular_file(path: str) -> bytes:
    """The beginning of a file; nothing where something else stands, or nothing can be read."""
    try:
        # Opened without blocking: it may be a pipe.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, GITDIR_FILE_LIMIT) if S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)


def _can_be_written_without_capabilities(directory: str) -> bool:
    """Whether the command, which has no capability, may make something in *directory*."""
    if os.geteuid() != 0:
        return os.access(directory, os.W_OK)
    found = os.stat(directory)
    if found.st_uid == 0:
        is_permitted = found.st_mode & S_IWUSR
    elif found.st_gid in {os.getegid(), *os.getgroups()}:
        is_permitted = found.st_mode & S_IWGRP
    else:
        is_permitted = found.st_mode & S_IWOTH
    return bool(is_permitted) and os.access(directory, os.W_OK)


def plan_filesystem(
    profile: PermissionProfile,
    cwd: str,
    environment: Mapping[str, str],
    *,
    hidden_paths: tuple[str, ...] = (),
    private_layer: PrivateLayer | None = None,
) -> FilesystemPlan:
    """Decides the mounts for *profile*, resolved against *cwd* (a canonical directory) and `$TMPDIR`.

    *hidden_paths* are this package's own directories on the host, denied where the policy would expose them;
    *private_layer* is laid over *cwd*, whatever the policy opens there for writing.

    Raises `PolicyError` for what cannot be enforced as written.
    """
    planner = _Planner(profile, cwd, environment, private_layer)
    planner.read_entries()
    planner.open_private_directory()
    planner.protect_metadata()
    for path in hidden_paths:
        resolved = resolve(path)
        if planner.rules.is_visible(resolved.real):
            planner.add_rule(Rule(resolved.real, Access.DENY, "what this package keeps for other sandboxes"), resolved)
    return planner.plan()


class _Planner:
    def __init__(
        self,
        profile: PermissionProfile,
        cwd: str,
        environment: Mapping[str, str],
        private_layer: PrivateLayer | None,
    ) -> None:
        self.profile = profile
        self.cwd = cwd
        self.environment = environment
        self.private_layer = private_layer
        self.lower = cwd  # what lies under the private layer
        self.rules = _Rules()
        self.guarded_links: dict[str, str] = {}  # symlinks that lead to what is not writable, and the reason
        self.granted_links: dict[str, str] = {}  # symlinks that lead to what is granted, and the reason
        self.missing: dict[str, str] = {}  # by rule path: the first component that does not exist
        self.operations: list[Operation] = []
        self.placeholders: dict[str, Placeholder] = {}

    # --- What the policy says ---------------------------------------------------------------------------------

    def read_entries(self) -> None:
        for entry in self.profile.filesystem or ():
            for path, reason in self.locate(entry):
                self.read_path(path, entry, reason)

    def locate(self, entry: FilesystemEntry) -> list[tuple[str, str]]:
        """The paths that an entry names, each with the words for its reason."""
        word = {Access.READ: "readable", Access.WRITE: "writable", Access.DENY: "denied"}[entry.access]
        if entry.special is None:
            return [(entry.location, f"{word} path {entry.location}")]
        if entry.special == ":root":
            return [("/", f"{word} :root")]
        if entry.special == ":minimal":
            return [(path, f"{word} :minimal") for path in MINIMAL_PATHS if os.path.lexists(path)]
        if entry.special == ":workspace_roots":
            return [(f"{self.cwd}/{entry.subpath}", f"{word} {entry.location}")]
        if entry.special == ":slash_tmp":
            return [("/tmp", f"{word} :slash_tmp")]  # noqa: S108 - the policy names it
        directory = self.environment.get("TMPDIR", "")
        return [(directory, f"{word} :tmpdir")] if directory.startswith("/") else []

    def read_path(self, path: str, entry: FilesystemEntry, reason: str) -> None:
        is_implied = entry.access is Access.WRITE and entry.special in IMPLIED_LOCATIONS
        try:
            resolved = resolve(path)
        except PolicyError:
            if is_implied:
                return  # not usable outside either
            raise
        self.refuse_kernel_filesystems(path, resolved.real, entry.access)
        if entry.access is Access.WRITE:
            if resolved.missing is not None and entry.must_exist and not is_implied:
                raise PolicyError(f"writable root {path!r} does not exist; create it, or leave it out of the policy")
            if resolved.missing is not None or (is_implied and not os.path.isdir(resolved.real)):
                return
        self.add_rule(Rule(resolved.real, entry.access, reason), resolved)

    def refuse_kernel_filesystems(self, path: str, real: str, access: Access) -> None:
        if real == "/proc" or is_below(real, "/proc"):
            raise PolicyError(f"path {path!r}: /proc belongs to the sandbox and cannot be granted or denied")
        if real == "/dev" and access is not Access.READ:
            raise PolicyError(f"path {path!r}: the sandbox has a private /dev; name the path below it that is meant")

    def add_rule(self, rule: Rule, resolved: ResolvedPath) -> None:
        """Takes a rule in, and what stands on the way to its path."""
        self.rules.add(rule)
        if resolved.missing is not None:
            self.missing[rule.path] = resolved.missing
        for link in resolved.links:
            if rule.access is not Access.WRITE:
                self.guarded_links.setdefault(link, rule.reason)
            if rule.access is not Access.DENY:
                self.granted_links.setdefault(link, rule.reason)

    # --- The private working directory ------------------------------------------------------------------------

    def is_private(self, path: str) -> bool:
        """Whether what is written to *path* goes to the private layer."""
        return self.private_layer is not None and is_below(path, self.cwd)

    def open_private_directory(self) -> None:
        """Makes the working directory writable, for the private layer will take the writes."""
        if self.private_layer is None:
            return
        if self.cwd in {"/", "/dev", "/proc"} or is_below(self.cwd, "/proc"):
            raise PolicyError(f"files and collect need a working directory of their own, which {self.cwd} cannot be")
        if not self.rules.is_visible(self.cwd):
            rule = self.rules.deciding(self.cwd)
            if rule is not None and rule.path != "/":
                raise PolicyError(f"files and collect need the working directory {self.cwd!r}: {rule.reason}")
            self.lower = self.private_layer.empty
        self.rules.add(Rule(self.cwd, Access.WRITE, "private working directory"))

    def place_private_layer(self) -> None:
        layer = self.private_layer
        assert layer is not None  # noqa: S101 - who calls this has looked
        reason = "private working directory: writes do not reach the host"
        self.operations.append(
            Operation(OperationKind.OVERLAY, self.cwd, reason, self.lower, layers=(layer.upper, layer.work))
        )

    def refuse_covered_files(self) -> None:
        """Raises `PolicyError` for a file that the command could not see, because something is mounted there."""
        for name in self.private_layer.files if self.private_layer is not None else ():
            path = f"{self.cwd}/{name}"
            for operation in self.operations:
                mount = operation.destination
                if self.is_private(mount) and (path == mount or is_below(path, mount) or is_below(mount, path)):
                    raise PolicyError(f"file {name!r} would be covered by {mount!r}: {operation.reason}")

    # --- What every writable root keeps to itself -------------------------------------------------------------

    def protect_metadata(self) -> None:
        """Adds read-only rules for the protected names at the top of each writable directory.

        An explicit rule at the same path stands instead: who names `.git` as writable means it.
        """
        roots = [rule for rule in self.rules.in_order() if rule.access is Access.WRITE and os.path.isdir(rule.path)]
        explicit = frozenset(self.rules.by_path)
        for root in roots:
            for name in self.profile.protected_names:
                path = root.path.rstrip("/") + "/" + name
                reason = f"protected name {name} of {root.reason}"
                if root.path == self.cwd != self.lower:
                    # Whatever the host has there, the command does not see it.
                    if path not in explicit:
                        self.add_rule(Rule(path, Access.READ, reason), ResolvedPath(path, path, ()))
                    continue
                resolved = resolve(path)
                if path not in explicit and resolved.real not in explicit:
                    self.protect(Rule(resolved.real, Access.READ, reason), resolved)
                if name == ".git":
                    self.protect_git_directory(root, path, reason, explicit)

    def protect_git_directory(self, root: Rule, git_file: str, reason: str, explicit: frozenset[str]) -> None:
        """A worktree's or submodule's `.git` is a file that points to the directory that git really uses.

        A worktree's points on to the one that holds the configuration and the hooks (gitrepository-layout(5)).
        """
        content = _read_regular_file(git_file)
        if not content.startswith(b"gitdir:"):
            return
        directory = self.follow_pointer(root.path, content.removeprefix(b"gitdir:"))
        for resolved in (directory, directory and self.common_directory(directory.real)):
            if resolved is not None and resolved.real not in explicit:
                self.protect(Rule(resolved.real, Access.READ, f"git directory of {reason}"), resolved)

    def common_directory(self, git_directory: str) -> ResolvedPath | None:
        return self.follow_pointer(git_directory, _read_regular_file(f"{git_directory}/commondir"))

    def follow_pointer(self, directory: str, content: bytes) -> ResolvedPath | None:
        """Where a path in a file of git's leads, relative to *directory*; None where it can lead nowhere."""
        pointer = content.strip(b" \r\n")
        if not pointer or b"\0" in pointer:
            return None
        target = os.path.join(os.fsencode(directory), pointer)
        if len(target) > LONGEST_PATH or any(len(part) > LONGEST_NAME for part in target.split(b"/")):
            return None  # nothing can have this name, neither for git nor for the command
        return resolve(os.fsdecode(target))

    def protect(self, rule: Rule, resolved: ResolvedPath) -> None:
        """Takes a protection in: it makes what is writable read-only, and what is denied must not become readable."""
        if self.rules.is_writable(rule.path):
            self.add_rule(rule, resolved)
        for link in resolved.links:
            self.guarded_links.setdefault(link, rule.reason)

    # --- The mounts -------------------------------------------------------------------------------------------

    def plan(self) -> FilesystemPlan:
        self.place_base()
        seals = self.place_rules(self.held_directories())
        self.remake_symlinks()
        # Covers are sealed last: until then, mount points for what is reopened below them can be made in them.
        self.operations += seals
        self.pin_symlinks()
        self.refuse_covered_files()
        return FilesystemPlan(tuple(self.operations), tuple(self.placeholders.values()), tuple(self.rules.in_order()))

    def place_base(self) -> None:
        root = self.rules.by_path.get("/")
        if root is None or root.access is Access.DENY:
            self.add(OperationKind.TMPFS, "/", "nothing is readable unless a rule says so")
        elif root.access is Access.READ:
            self.add(OperationKind.READ_ONLY_BIND, "/", root.reason, "/")
        else:
            self.add(OperationKind.BIND, "/", root.reason, "/")
        self.add(OperationKind.DEVICES, "/dev", "a private /dev with the standard nodes")

    def add(self, kind: OperationKind, destination: str, reason: str, source: str | None = None) -> None:
        self.operations.append(Operation(kind, destination, reason, source))

    def inherited(self, path: str) -> Access:
        """What would hold at *path* if it had no rule of its own."""
        around = self.rules.around(path)
        return Access.DENY if around is None else around.access

    def held_directories(self) -> dict[str, str]:
        """The writable directories that must not be renamed, each with the reason.

        Who can rename a directory above a protected path can put another in its place, which no rule covers. A
        mount point cannot be renamed, so each of these is bound on itself.
        """
        guarded = {
            rule.path: rule.reason
            for rule in self.rules.in_order()
            if rule.access is not Access.WRITE and self.inherited(rule.path) is Access.WRITE
        }
        guarded |= {link: reason for link, reason in self.guarded_links.items() if self.is_replaceable(link)}
        held: dict[str, str] = {}
        for path, reason in guarded.items():
            # An overlay does not rename what has a lower layer (EXDEV), and what it holds is no rule's business.
            if self.is_private(path):
                continue
            for directory in ancestors(path)[:-1]:
                standing = self.rules.by_path.get(directory)
                if standing is not None and standing.access is not self.inherited(directory):
                    break  # a mount point already, and what is above it is not writable
                # A file counts: where one stands for a directory, the path below it can come into being.
                if resolve(directory).missing is None:
                    held.setdefault(directory, reason)
        return held

    def place_rules(self, held: dict[str, str]) -> list[Operation]:
        """Adds the mounts, parents first, and returns those that must come after all others."""
        seals: list[Operation] = []
        for path in sorted({*self.rules.by_path, *held} - {"/", "/dev"}, key=lambda path: (components(path), path)):
            rule = self.rules.by_path.get(path)
            if self.private_layer is not None and path == self.cwd:
                self.place_private_layer()
            elif rule is not None and (rule.access is not self.inherited(path) or is_below(path, "/dev")):
                seals += self.place_rule(rule)
            elif path in held:
                self.add(OperationKind.BIND, path, f"cannot be renamed, above: {held[path]}", path)
        root = self.rules.by_path.get("/")
        if root is None or root.access is Access.DENY:
            seals.append(
                Operation(OperationKind.REMOUNT_READ_ONLY, "/", "writes outside the rules fail, they do not vanish")
            )
        return seals

    def place_rule(self, rule: Rule) -> list[Operation]:
        """Adds the mount of a rule that changes something, and returns what seals it."""
        if rule.path in self.missing:
            if self.inherited(rule.path) is Access.WRITE:
                self.cover_missing(self.missing[rule.path], rule)
            return []
        if rule.access is Access.WRITE:
            if self.is_private(rule.path):
                raise PolicyError(
                    f"cannot keep writes to {rule.path!r} private ({rule.reason}): the policy closes a directory "
                    "between it and the working directory"
                )
            # A device opens only on a mount without nodev.
            kind = OperationKind.DEVICE_BIND if is_below(rule.path, "/dev") else OperationKind.BIND
            self.add(kind, rule.path, rule.reason, rule.path)
            return []
        if rule.access is Access.READ:
            self.add(OperationKind.READ_ONLY_BIND, rule.path, rule.reason, rule.path)
            return []
        if not S_ISDIR(os.lstat(rule.path).st_mode):
            # A device node that the mount's nodev flag makes useless: opening it is EACCES.
            self.add(OperationKind.READ_ONLY_BIND, rule.path, rule.reason, "/dev/null")
            return []
        is_reopened = any(is_below(path, rule.path) for path in self.rules.by_path)
        permissions = 0o111 if is_reopened else 0o000
        self.operations.append(Operation(OperationKind.TMPFS, rule.path, rule.reason, permissions=permissions))
        return [Operation(OperationKind.REMOUNT_READ_ONLY, rule.path, rule.reason)]

    def cover_missing(self, missing: str, rule: Rule) -> None:
        """Covers the first missing component of a path that must not come into being."""
        if self.is_private(missing):
            self.cover_privately(missing, f"missing, and must stay so: {rule.reason}")
            return
        directory = os.path.dirname(missing)
        if missing in self.placeholders or not os.path.isdir(directory):
            return  # a file where a directory should be is held in its place
        if not _can_be_written_without_capabilities(directory):
            # Who cannot write here could not make it inside either; but an owner could make the directory writable.
            is_owner = os.stat(directory).st_uid == os.geteuid()
            if is_owner and not os.statvfs(directory).f_flag & os.ST_RDONLY:
                raise PolicyError(
                    f"cannot keep {missing!r} from being made ({rule.reason}): its directory is yours but not "
                    f"writable; chmod u+w {directory!r}"
                )
            return
        is_symlink = os.path.basename(missing) == ".git"
        self.placeholders[missing] = Placeholder(missing, is_symlink)
        reason = f"missing, and must stay so: {rule.reason}"
        if is_symlink:
            self.add(OperationKind.PIN_SYMLINK, missing, reason)
        else:
            self.add(OperationKind.READ_ONLY_BIND, missing, reason, missing)

    def cover_privately(self, missing: str, reason: str) -> None:
        """Makes a placeholder in the private layer, where nobody but the command will meet it."""
        if any(operation.destination == missing for operation in self.operations):
            return
        if os.path.basename(missing) == ".git":
            self.add(OperationKind.SYMLINK, missing, reason, TARGET)
            self.add(OperationKind.PIN_SYMLINK, missing, reason)
        else:
            self.add(OperationKind.TMPFS, missing, reason)
            self.add(OperationKind.REMOUNT_READ_ONLY, missing, reason)

    def remake_symlinks(self) -> None:
        """Makes the symlinks through which granted paths were named, where the view does not show the host's."""
        for link, reason in sorted(self.granted_links.items()):
            around = self.rules.deciding(link)
            is_emptied = self.is_private(link) and self.lower != self.cwd
            if around is None or around.access is Access.DENY or is_emptied:
                self.add(OperationKind.SYMLINK, link, f"leads to: {reason}", os.readlink(link))

    def is_replaceable(self, link: str) -> bool:
        return self.rules.is_writable(os.path.dirname(link)) and self.rules.is_writable(link)

    def pin_symlinks(self) -> None:
        """Holds in place every symlink that leads to a protected path and could be replaced inside."""
        for link, reason in sorted(self.guarded_links.items()):
            if self.is_replaceable(link):
                self.add(OperationKind.PIN_SYMLINK, link, f"cannot be replaced, leads to: {reason}")
