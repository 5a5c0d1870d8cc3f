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
from stat import S_ISDIR, S_ISLNK
from typing import TYPE_CHECKING

from pybwrap.errors import SetupError
from pybwrap.plan.filesystem import PLACEHOLDER_TARGET
from pybwrap.plan.spec import Claim

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pybwrap.plan.filesystem import Placeholder

__all__ = ["PLACEHOLDER_TARGET", "claim", "reclaim", "registry_directory", "release"]

_RETRIES = 100


def registry_directory() -> str:
    """The registry of this user. On /dev/shm, which sandboxes have a private one of; /tmp is often theirs to write."""
    parent = "/dev/shm" if os.path.isdir("/dev/shm") else "/tmp"  # noqa: S108 - made and checked by _open_registry
    return f"{parent}/pybwrap-{os.geteuid()}"


def _open_registry() -> str:
    """Makes the registry, and refuses one that somebody else could change."""
    path = registry_directory()
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise SetupError("placeholders", error.errno or 0, f"cannot make {path}") from None
    found = os.lstat(path)
    if not S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        remedy = f"remove it, or make it a directory of yours with mode 0700: rm -rf {path}"
        raise SetupError("placeholders", errno.EPERM, f"{path} is not a private directory of this user", remedy)
    return path


def _registry_name(path: str) -> str:
    """A name that two spellings of one path share: the identity of the directory, and the name in it."""
    parent = os.stat(os.path.dirname(path))
    return f"{parent.st_dev:x}-{parent.st_ino:x}-{os.path.basename(path)}"


def _stands(path: str) -> os.stat_result | None:
    """The placeholder at *path*, if what is there can be one."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    if S_ISLNK(found.st_mode):
        return found if os.readlink(path) == PLACEHOLDER_TARGET else None
    return found if S_ISDIR(found.st_mode) else None


def _remove(path: str, device: int, inode: int) -> None:
    """Removes a placeholder; what has been replaced or filled meanwhile is somebody's, and stays."""
    found = _stands(path)
    if found is None or (found.st_dev, found.st_ino) != (device, inode):
        return
    try:
        if S_ISLNK(found.st_mode):
            os.unlink(path)
        else:
            os.rmdir(path)
    except OSError:
        pass


def reclaim() -> frozenset[str]:
    """Removes what killed launches left behind; returns the placeholders that others still need.

    Raises `SetupError` when the registry is not this user's alone.
    """
    registry = registry_directory()
    try:
        names = os.listdir(registry)
    except FileNotFoundError:
        return frozenset()
    except OSError as error:
        raise SetupError("placeholders", error.errno or 0, f"cannot read {registry}") from None
    if not names:
        return frozenset()
    _open_registry()
    standing = []
    for name in names:
        try:
            fd = os.open(f"{registry}/{name}", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue  # its last user has just removed it
        try:
            path, device, inode = _read_record(fd)
            if not _is_last(fd):
                standing.append(path)
            else:
                _remove(path, device, inode)
                os.unlink(f"{registry}/{name}")
        finally:
            os.close(fd)
    return frozenset(standing) - {""}


def _read_record(fd: int) -> tuple[str, int, int]:
    """The path of a placeholder, and the device and inode of the object; zeros while that is not made."""
    path, _, identity = os.pread(fd, 8192, 0).partition(b"\0")
    device, _, inode = identity.partition(b" ")
    return os.fsdecode(path), int(device or 0), int(inode or 0)


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
    try:
        for placeholder in placeholders:
            taken = _claim_one(placeholder)
            if taken is not None:
                claims.append(taken)
    except OSError as error:
        release(claims)
        if isinstance(error, SetupError):
            raise
        raise SetupError("placeholders", error.errno or 0, f"cannot make {placeholder.path}") from None
    return claims


def _claim_one(placeholder: Placeholder) -> Claim | None:
    path = placeholder.path
    registry_path = f"{_open_registry()}/{_registry_name(path)}"
    for _ in range(_RETRIES):
        fd = os.open(registry_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(fd, fcntl.LOCK_SH)
        # The last one may have removed the file between the two lines above.
        if os.fstat(fd).st_nlink > 0:
            break
        os.close(fd)
    else:
        raise SetupError("placeholders", errno.EAGAIN, f"cannot register {path}")

    # Whatever kills us from here on: the record is there before the object, and the next run finds both.
    recorded, device, inode = _read_record(fd)
    if not recorded:
        os.pwrite(fd, os.fsencode(path) + b"\0", 0)
    try:
        try:
            if placeholder.is_symlink:
                os.symlink(PLACEHOLDER_TARGET, path)
            else:
                os.mkdir(path, 0o755)
        except FileExistsError:
            pass
        found = _stands(path)
        if found is None or S_ISLNK(found.st_mode) != placeholder.is_symlink:
            raise SetupError("placeholders", errno.EBUSY, f"{path} appeared while the sandbox was planned", "try again")
    except OSError:
        _give_back(fd, registry_path, path, device, inode)
        raise
    if (device, inode) != (found.st_dev, found.st_ino):
        os.pwrite(fd, os.fsencode(path) + f"\0{found.st_dev} {found.st_ino}".encode(), 0)
    return Claim(path, placeholder.is_symlink, found.st_dev, found.st_ino, fd, registry_path)


def _give_back(fd: int, registry_path: str, path: str, device: int, inode: int) -> None:
    # Without a name left, the monitor that shares this lock has removed everything already.
    if os.fstat(fd).st_nlink > 0 and _is_last(fd):
        _remove(path, device, inode)
        os.unlink(registry_path)
    os.close(fd)


def release(claims: Iterable[Claim]) -> None:
    """Gives up shares that no monitor has taken over; the last one removes the placeholder."""
    for taken in claims:
        _give_back(taken.lock_fd, taken.registry_path, taken.path, taken.device, taken.inode)
