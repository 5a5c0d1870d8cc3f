"""Objects that stand at missing protected paths while sandboxes run, and that never outlive them.

Each has a file in a registry that no sandbox can reach, and every launch that needs it holds a shared flock(2) on
that file. Who gets the exclusive lock is the last: it removes the object and the file. The monitor of the sandbox
does so when the sandbox has ended; if the monitor was killed, the owner does, and if that was killed too, the next
run of anybody with the same registry.
"""

from __future__ import annotations

import errno
import fcntl
import os
from stat import S_ISLNK
from typing import TYPE_CHECKING

from pybwrap.errors import SetupError
from pybwrap.launch import registry
from pybwrap.plan.placeholder import DIRECTORY_MODE, TARGET, is_placeholder
from pybwrap.plan.spec import Claim

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pybwrap.plan.placeholder import Placeholder

__all__ = ["claim", "reclaim", "release"]

_RETRIES = 100

LONGEST_PATH = 4096
"""PATH_MAX of linux/limits.h, in bytes."""


def _registry_name(path: str) -> str:
    """A name that two spellings of one path share: the identity of the directory, and the name in it."""
    parent = os.stat(os.path.dirname(path))
    return f"{parent.st_dev:x}-{parent.st_ino:x}-{os.path.basename(path)}"


def _stands(path: str) -> os.stat_result | None:
    """The placeholder at *path*, if there is one."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found if is_placeholder(path, found) else None


def _remove(path: str) -> None:
    """Removes a placeholder; what has been replaced or filled meanwhile is somebody's, and stays."""
    found = _stands(path)
    if found is None:
        return
    try:
        if S_ISLNK(found.st_mode):
            os.unlink(path)
        else:
            os.rmdir(path)
    except OSError:
        pass


def reclaim(record: str) -> None:
    """Removes a placeholder of killed launches, given its record; leaves one that somebody needs."""
    try:
        fd = os.open(record, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return  # its last user has just removed it
    _give_back(fd, record)


def _give_back(fd: int, registry_path: str) -> None:
    """Closes a share in a placeholder; the last one removes the object and the record.

    Nothing is removed by a share whose record has no name any more: somebody else was the last, and what is at these
    paths now is new.
    """
    try:
        if _is_last(fd) and os.fstat(fd).st_nlink > 0:
            path = os.fsdecode(os.pread(fd, LONGEST_PATH, 0))
            if path:
                _remove(path)
            os.unlink(registry_path)
    finally:
        os.close(fd)


def _is_last(fd: int) -> bool:
    """Whether nobody else holds a share; this one is then exclusive. Otherwise this one is lost (flock(2))."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def claim(placeholders: Iterable[Placeholder]) -> list[Claim]:
    """Puts *placeholders* in place, or shares those that stand already. The locks are inherited by the monitor.

    Raises `SetupError`; nothing is left behind then.
    """
    claims: list[Claim] = []
    path = ""
    try:
        for placeholder in placeholders:
            path = placeholder.path
            claims.append(_claim_one(placeholder))
    except OSError as error:
        release(claims)
        if isinstance(error, SetupError):
            raise
        raise SetupError("placeholders", error.errno or 0, f"cannot make {path}") from None
    return claims


def _claim_one(placeholder: Placeholder) -> Claim:
    path = placeholder.path
    registry_path = f"{registry.make()}/{_registry_name(path)}"
    for _ in range(_RETRIES):
        fd = os.open(registry_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(fd, fcntl.LOCK_SH)
        # The last one may have removed the file between the two lines above.
        if os.fstat(fd).st_nlink > 0:
            break
        os.close(fd)
    else:
        raise SetupError("placeholders", errno.EAGAIN, f"cannot register {path}")

    try:
        # Whatever kills us from here on: the record is there before the object, and the next run finds both.
        os.pwrite(fd, os.fsencode(path), 0)
        _put(placeholder)
    except BaseException:
        _give_back(fd, registry_path)
        raise
    return Claim(path, placeholder.is_symlink, fd, registry_path)


def _put(placeholder: Placeholder) -> None:
    """Makes the object unless it stands. Raises `OSError`, `SetupError`."""
    path = placeholder.path
    try:
        if placeholder.is_symlink:
            os.symlink(TARGET, path)
        else:
            os.mkdir(path, DIRECTORY_MODE)
    except FileExistsError:
        pass
    found = _stands(path)
    if found is None or S_ISLNK(found.st_mode) != placeholder.is_symlink:
        raise SetupError("placeholders", errno.EBUSY, f"{path} appeared while the sandbox was planned", "try again")


def release(claims: Iterable[Claim]) -> None:
    """Gives up shares that no monitor has taken over; the last one removes the placeholder."""
    for taken in claims:
        _give_back(taken.lock_fd, taken.registry_path)
