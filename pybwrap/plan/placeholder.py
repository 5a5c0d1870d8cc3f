"""Objects that stand at missing protected paths while sandboxes run, so that these cannot be made inside.

A mount point needs something to be mounted on. What stands there on the host meanwhile must not mislead anybody, and
must be known for what it is by other sandboxes, whenever they look.
"""

from __future__ import annotations

import os
from stat import S_ISDIR, S_ISLNK
from typing import NamedTuple

__all__ = ["DIRECTORY_MODE", "TARGET", "Placeholder", "is_placeholder"]

TARGET = "/dev/null/pybwrap-placeholder"
"""Where a placeholder symlink leads: below something that is not a directory, so that nothing can be made there."""

DIRECTORY_MODE = 0o1755
"""The mode of a placeholder directory. The sticky bit is its mark: no umask takes it away, and it means nothing on a
directory that only its owner can write to (inode(7))."""


class Placeholder(NamedTuple):
    """What is to stand at *path*.

    A symlink to nowhere for `.git`, which neither git nor tools that look for one take for a repository; an empty
    directory for other names, which git does not list as untracked.
    """

    path: str
    is_symlink: bool


def is_placeholder(path: str, found: os.stat_result) -> bool:
    """Whether what lstat(2) has *found* at *path* was put there by a sandbox, and so counts as missing."""
    if not S_ISLNK(found.st_mode) and not (
        S_ISDIR(found.st_mode) and found.st_mode & 0o7022 == DIRECTORY_MODE & 0o7000
    ):
        return False
    try:
        return os.readlink(path) == TARGET if S_ISLNK(found.st_mode) else not os.listdir(path)
    except FileNotFoundError:
        return True  # the last sandbox that needed it has just removed it
    except OSError:
        return False
