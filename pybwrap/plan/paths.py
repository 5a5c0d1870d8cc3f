"""Reading the host's filesystem the way the plan needs it: every symlink on the way is known."""

from __future__ import annotations

import os
from stat import S_ISLNK
from typing import NamedTuple

from pybwrap.errors import PolicyError
from pybwrap.plan.placeholder import is_placeholder

__all__ = ["ResolvedPath", "ancestors", "components", "is_below", "resolve"]

MAXIMUM_SYMLINKS = 40
"""As many as the kernel follows in one path (path_resolution(7))."""


class ResolvedPath(NamedTuple):
    """Where a path leads.

    *real* is canonical up to what exists; *missing* is the first component that does not exist, or None; *links*
    are the symlinks that were followed, each by the canonical path of the link itself.
    """

    real: str
    missing: str | None
    links: tuple[str, ...]


def resolve(path: str) -> ResolvedPath:
    """Follows *path*, which must be absolute. A placeholder counts as missing, as it would be without sandboxes.

    Raises `PolicyError` for a loop of symlinks, or a directory that may not be looked into.
    """
    pending = [part for part in reversed(path.split("/")) if part and part != "."]
    current = "/"
    links: list[str] = []
    missing: str | None = None
    while pending:
        part = pending.pop()
        if part == "..":
            # Out again of what does not exist, the path leads where its words say.
            missing = None if current == missing else missing
            current = os.path.dirname(current)
            continue
        here = current.rstrip("/") + "/" + part
        if missing is not None:
            current = here
            continue
        try:
            found = os.lstat(here)
            stands = not is_placeholder(here, found)
        except (FileNotFoundError, NotADirectoryError):
            missing = current = here
            continue
        except OSError as error:
            raise PolicyError(f"path {path!r}: cannot look at {here!r}: {error.strerror}") from None
        if not stands:
            missing = current = here
            continue
        if not S_ISLNK(found.st_mode):
            current = here
            continue
        links.append(here)
        if len(links) > MAXIMUM_SYMLINKS:
            raise PolicyError(f"path {path!r}: too many symlinks, or a loop of them, at {here!r}")
        target = os.readlink(here)
        if target.startswith("/"):
            current = "/"
        pending += [part for part in reversed(target.split("/")) if part and part != "."]
    return ResolvedPath(current, missing, tuple(links))


def components(path: str) -> int:
    """How many names *path* has: 0 for the root directory."""
    return len([part for part in path.split("/") if part])


def is_below(path: str, directory: str) -> bool:
    """Whether *path* lies in *directory*, at any depth; a path is not below itself."""
    return path != directory and path.startswith(directory.rstrip("/") + "/")


def ancestors(path: str) -> list[str]:
    """The directories that contain *path*, nearest first, the root directory last."""
    found = []
    while path != "/":
        path = os.path.dirname(path)
        found.append(path)
    return found
