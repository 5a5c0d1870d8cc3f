"""Where launches keep what must not outlive them: a directory per user that no sandbox can reach.

Every entry is held by a flock(2) while somebody needs it; who finds one that is not removes it with what it stands for.
"""

from __future__ import annotations

import errno
import os
from functools import cache
from stat import S_ISDIR

from pybwrap.errors import SetupError

__all__ = ["directory", "entries", "is_private", "make"]


def directory() -> str:
    """The registry of this user. On /dev/shm, which sandboxes have a private one of; /tmp is often theirs to write."""
    parent = "/dev/shm" if os.path.isdir("/dev/shm") else "/tmp"  # noqa: S108 - made and checked by make
    return f"{parent}/pybwrap-{_outer_uid(os.geteuid())}"


@cache
def _outer_uid(uid: int) -> int:
    """A user as the surrounding user namespace knows it: root in one of its own must not meet the machine's root."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        for line in file:
            inner, outer, count = map(int, line.split())
            if inner <= uid < inner + count:
                return outer + uid - inner
    return uid


def is_private(path: str) -> bool:
    """Whether *path* is a directory that nobody but this user can change."""
    found = os.lstat(path)
    return S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def make() -> str:
    """Makes the registry if it is not there; returns its path. Raises `SetupError` for one that others could change."""
    path = directory()
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise SetupError("placeholders", error.errno or 0, f"cannot make {path}") from None
    if not is_private(path):
        remedy = "it must be a directory of this user's with mode 0700: remove it, or ask whose it is to"
        raise SetupError("placeholders", errno.EPERM, f"{path} can be changed by others", remedy)
    return path


def entries() -> list[str]:
    """The paths of what is in the registry; nothing where it is not this user's alone, or not there."""
    path = directory()
    try:
        return [f"{path}/{name}" for name in os.listdir(path)] if is_private(path) else []
    except OSError:
        return []
