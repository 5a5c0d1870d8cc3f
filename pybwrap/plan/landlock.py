"""The Landlock ruleset that says the same as the mounts, as far as Landlock can say it.

Under bubblewrap it is a second layer: a flaw in the one does not open the other. In the legacy pipeline it is the
only one, and then read-only paths below writable ones cannot be expressed (landlock(7): rules only add rights).
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["LandlockRule", "LandlockRuleset", "legacy_ruleset", "second_layer"]

# Rights to files and directories, by the ABI version that brought them (landlock(7)).
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_ABI_1 = (1 << 13) - 1
_REFER = 1 << 13  # ABI 2, Linux 5.19
_TRUNCATE = 1 << 14  # ABI 3, Linux 6.2
_IOCTL_DEV = 1 << 15  # ABI 5, Linux 6.10
_SCOPE_ABSTRACT_UNIX_SOCKET, _SCOPE_SIGNAL = 1 << 0, 1 << 1  # ABI 6, Linux 6.12

_READ = _EXECUTE | _READ_FILE | _READ_DIR
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
"""What a rule on a file may grant; other rights make the kernel refuse it (EINVAL)."""


class LandlockRule(NamedTuple):
    """The rights granted at a path and below it."""

    path: str
    access: int


class LandlockRuleset(NamedTuple):
    """*filesystem* are the rights that need a rule, *scoped* what may not leave the sandbox."""

    abi: int
    filesystem: int
    scoped: int
    rules: tuple[LandlockRule, ...]


def _handled(abi: int) -> int:
    rights = _ABI_1
    for since, right in ((2, _REFER), (3, _TRUNCATE), (5, _IOCTL_DEV)):
        if abi >= since:
            rights |= right
    return rights


def _scopes(abi: int, *, abstract_sockets: bool) -> int:
    if abi < 6:  # noqa: PLR2004 - the ABI version that brought scopes
        return 0
    return _SCOPE_SIGNAL | (_SCOPE_ABSTRACT_UNIX_SOCKET if abstract_sockets else 0)


def legacy_ruleset(abi: int, writable: tuple[tuple[str, bool], ...]) -> LandlockRuleset:
    """`/` readable; *writable* paths (each with whether it is a directory) and `/dev/null` writable."""
    handled = _handled(abi)
    rules = [LandlockRule("/", _READ & handled), LandlockRule("/dev/null", (_READ | _WRITE_FILE) & _ON_FILES & handled)]
    rules += [LandlockRule(path, handled if is_directory else handled & _ON_FILES) for path, is_directory in writable]
    return LandlockRuleset(abi, handled, _scopes(abi, abstract_sockets=True), tuple(rules))


def second_layer(
    abi: int, writable: tuple[tuple[str, bool], ...], *, allow_nested_sandboxes: bool
) -> LandlockRuleset | None:
    """The layer under bubblewrap, or None where the kernel has nothing to offer.

    The sandbox's own `/dev` and `/proc` stay as they are, the kernel guards those. A process under filesystem rules
    cannot mount (landlock(7)), so that nested sandboxes get the scopes only.
    """
    scoped = _scopes(abi, abstract_sockets=True)
    # Before ABI 2 no file can be moved to another directory under any ruleset: that would break builds.
    if allow_nested_sandboxes or abi < 2:  # noqa: PLR2004 - the ABI version that brought REFER
        return LandlockRuleset(abi, 0, scoped, ()) if scoped else None
    handled = _handled(abi)
    rules = [LandlockRule("/", _READ & handled), LandlockRule("/dev", handled), LandlockRule("/proc", handled)]
    rules += [LandlockRule(path, handled if is_directory else handled & _ON_FILES) for path, is_directory in writable]
    return LandlockRuleset(abi, handled, scoped, tuple(rules))
