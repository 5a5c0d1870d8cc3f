"""A private layer over the working directory: files that only the command sees, and what it leaves there.

The layer is the upper directory of an overlay (Documentation/filesystems/overlayfs.rst), in a scratch directory of
the registry that no sandbox can reach. The owner holds an exclusive flock(2) on the scratch directory; when the owner
was killed, the next run finds it unlocked and removes it.
"""

from __future__ import annotations

import errno
import fcntl
import fnmatch
import os
import re
import tempfile
import weakref
from stat import S_ISDIR, S_ISREG
from typing import TYPE_CHECKING, NamedTuple

from pybwrap.errors import SetupError
from pybwrap.launch import registry
from pybwrap.plan.filesystem import PrivateLayer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    Path = str | os.PathLike[str]

__all__ = ["COLLECT_LIMIT", "Collected", "WorkspaceOverlay", "check_files", "reclaim"]

COLLECT_LIMIT = 64 * 1024 * 1024
"""How much is collected unless more is asked for: the sizes of names and contents together, in bytes."""

_PREFIX = "overlay-"
_PROGRAM_STARTS = (b"#!", b"\x7fELF")
_MAXIMUM_DEPTH = 100
"""How deep directories are searched: each level takes a descriptor, and a command can nest them without end."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Collected(NamedTuple):
    """What was found, by path. *is_complete* is False when there was more than the limit, or what cannot be read."""

    files: dict[str, bytes]
    is_complete: bool = True


def check_files(files: Mapping[Path, bytes]) -> dict[str, bytes]:
    """*files* by plain paths. Raises `ValueError` for a path that is not one below a directory, or lies in another.

    Raises `TypeError` for contents that are not bytes.
    """
    checked: dict[str, bytes] = {}
    for given, content in files.items():
        path = os.fspath(given)
        if not _is_plain(path) or "\0" in path:
            raise ValueError(f"files: expected a relative path without '.' and '..', got {path!r}")
        if not isinstance(content, (bytes, bytearray, memoryview)):
            raise TypeError(f"files: expected bytes for {path!r}, got {type(content).__name__}")
        checked[path] = bytes(content)
    for path in checked:
        parent = os.path.dirname(path)
        while parent:
            if parent in checked:
                raise ValueError(f"files: {parent!r} cannot be a file and contain {path!r}")
            parent = os.path.dirname(parent)
    return checked


def _is_plain(path: str) -> bool:
    return not {"", ".", ".."}.intersection(path.split("/"))


class WorkspaceOverlay:
    """One launch's layer: made with *files* in it, read at the end, removed whatever happens.

    *files* are executable when they start as programs do (`#!`, ELF). *patterns* say what `collect` takes:
    paths relative to *directory* as `pathlib.PurePath.full_match` has them (`*` stays in one directory and matches
    dot files too, `**` any number of directories). *limit* is in bytes, see `COLLECT_LIMIT`.

    Raises `ValueError` and `TypeError` for what `check_files` and patterns refuse, `SetupError` when the scratch
    directory cannot be made.
    """

    def __init__(self, directory: str, files: Mapping[Path, bytes], patterns: Iterable[str], limit: int | None) -> None:
        if isinstance(patterns, (str, bytes)):
            raise TypeError("collect: expected several patterns, got one; write [pattern]")
        if limit is None:
            limit = COLLECT_LIMIT
        if limit < 0:
            raise ValueError(f"collect_limit: must not be negative, got {limit!r}")
        self._files = check_files(files)
        self._patterns = [_pattern(pattern) for pattern in patterns]
        self._limit = limit
        scratch, lock = _make_scratch()
        # Also when nobody waits for the command, and when this process ends.
        self._finalizer = weakref.finalize(self, _discard, scratch, lock, os.getpid())
        self.layer: PrivateLayer = PrivateLayer(
            f"{scratch}/upper", f"{scratch}/work", f"{scratch}/empty", tuple(self._files)
        )
        try:
            self._fill(directory)
        except OSError as error:
            self.remove()
            raise SetupError("files", error.errno or 0, f"cannot write to {scratch}") from None
        except BaseException:
            self.remove()
            raise

    def _fill(self, directory: str) -> None:
        layer = self.layer
        for path in (layer.upper, layer.work, layer.empty):
            os.mkdir(path, 0o700)
        # The mode of the upper directory is what the command sees as its working directory's.
        os.chmod(layer.upper, (os.stat(directory).st_mode & 0o777) | 0o700)
        for name, content in self._files.items():
            path = f"{layer.upper}/{name}"
            os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
            with open(path, "xb") as file:
                file.write(content)
                os.fchmod(file.fileno(), 0o755 if content.startswith(_PROGRAM_STARTS) else 0o644)

    def collect(self) -> Collected:
        """The matching regular files that the command made or changed; for when the sandbox has ended.

        What `files` put there counts with other contents only. Symlinks are not followed; pipes, sockets and devices
        are left out. It stops at the first file over the limit, and does not look into directories more than 100
        deep: the result is not complete then.
        """
        collected: dict[str, bytes] = {}
        if not self._patterns:
            return Collected(collected)
        left = self._limit
        top = os.open(self.layer.upper, _DIRECTORY)
        try:
            for path, fd in _matching_files(top, "", self._patterns, [_after(each, 0) for each in self._patterns]):
                given = self._files.get(path, b"")
                name_size = len(os.fsencode(path))
                content = _read(fd, max(left - name_size, len(given)))
                if content == given and path in self._files:
                    continue
                if content is None or name_size + len(content) > left:
                    return Collected(collected, is_complete=False)
                collected[path] = content
                left -= name_size + len(content)
        except OSError:
            return Collected(collected, is_complete=False)
        finally:
            os.close(top)
        return Collected(collected)

    def explain(self, error: BaseException) -> None:
        """Says what to do about a launch that failed because there cannot be a layer over the directory."""
        if isinstance(error, SetupError) and error.step == "mount" and not error.remedy:
            error.remedy = (
                "files and collect need a working directory that overlayfs (Linux 5.11) can take as a lower layer: not "
                "one in two overlays already, nor /dev/shm"
            )

    def remove(self) -> None:
        """Removes the layer. Does nothing the second time."""
        self._finalizer()


# --- Patterns -----------------------------------------------------------------------------------------------------

_Pattern = tuple[re.Pattern[str] | None, ...]
"""One expression for each component; None is `**`."""


def _pattern(text: str) -> _Pattern:
    if not _is_plain(text):
        raise ValueError(f"collect: expected a relative pattern without '.' and '..', got {text!r}")
    return tuple(None if part == "**" else re.compile(fnmatch.translate(part)) for part in text.split("/"))


def _after(pattern: _Pattern, position: int) -> frozenset[int]:
    """The position, and those behind the `**` that match nothing."""
    reached = {position}
    while position < len(pattern) and pattern[position] is None:
        position += 1
        reached.add(position)
    return frozenset(reached)


def _step(pattern: _Pattern, positions: frozenset[int], name: str) -> frozenset[int]:
    """Where a match can be in *pattern* after one more component: linear, whatever names a command invents."""
    reached: set[int] = set()
    for position in positions:
        if position == len(pattern):
            continue
        part = pattern[position]
        if part is None:
            reached |= _after(pattern, position)
        elif part.match(name):
            reached |= _after(pattern, position + 1)
    return frozenset(reached)


def _is_reached(patterns: list[_Pattern], positions: list[frozenset[int]]) -> bool:
    return any(len(pattern) in reached for pattern, reached in zip(patterns, positions, strict=True))


# --- Reading what untrusted code has left -------------------------------------------------------------------------


def _matching_files(
    directory: int, prefix: str, patterns: list[_Pattern], positions: list[frozenset[int]], depth: int = 0
) -> Iterator[tuple[str, int]]:
    """The paths of the matching regular files below a directory, each with an O_PATH descriptor. Raises `OSError`."""
    if depth > _MAXIMUM_DEPTH:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), prefix)
    for name in sorted(os.listdir(directory)):
        reached = [_step(*pair, name) for pair in zip(patterns, positions, strict=True)]
        if not any(reached):
            continue
        # Held first, then looked at, then read: whoever could still change names, it is this object.
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            mode = os.fstat(fd).st_mode
            if S_ISREG(mode) and _is_reached(patterns, reached):
                yield prefix + name, fd
            elif S_ISDIR(mode):
                inside = _reopen(fd, _DIRECTORY & ~os.O_NOFOLLOW)
                try:
                    yield from _matching_files(inside, f"{prefix}{name}/", patterns, reached, depth + 1)
                finally:
                    os.close(inside)
        finally:
            os.close(fd)


def _reopen(fd: int, flags: int) -> int:
    """Opens what an O_PATH descriptor of ours holds, whatever mode the command has given it. Raises `OSError`."""
    path = f"/proc/self/fd/{fd}"
    try:
        return os.open(path, flags)
    except PermissionError:
        os.chmod(path, 0o700)
        return os.open(path, flags)


def _read(fd: int, limit: int) -> bytes | None:
    """The content of a regular file; None when it is larger than *limit*. Raises `OSError`."""
    with open(_reopen(fd, os.O_RDONLY | os.O_CLOEXEC), "rb", buffering=0) as file:
        return file.readall() if os.fstat(file.fileno()).st_size <= limit else None


# --- The scratch directory ----------------------------------------------------------------------------------------


def _make_scratch() -> tuple[str, int]:
    """A new directory in the registry, and the locked descriptor that says that somebody uses it."""
    parent = registry.make()
    while True:
        try:
            scratch = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
            lock = os.open(scratch, _DIRECTORY)
        except FileNotFoundError:
            continue  # for the reason below
        except OSError as error:
            raise SetupError("files", error.errno or 0, f"cannot make a directory in {parent}") from None
        fcntl.flock(lock, fcntl.LOCK_EX)
        # A run that looks for what others left behind may have found it between these lines.
        if os.path.isdir(scratch):
            return scratch, lock
        os.close(lock)


def reclaim(scratch: str) -> None:
    """Removes a scratch directory whose owner was killed; leaves one that is in use, and what is not one."""
    if not os.path.basename(scratch).startswith(_PREFIX):
        return
    try:
        lock = os.open(scratch, _DIRECTORY)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove_tree(scratch)
    except OSError:
        pass  # in use, or removed by another
    finally:
        os.close(lock)


def _discard(scratch: str, lock: int, owner: int) -> None:
    if os.getpid() != owner:
        return  # a fork that ends: the directory is its parent's
    try:
        _remove_tree(scratch)
    except OSError:
        pass  # something is still writing there, and is being killed: the next run finds it unlocked
    finally:
        os.close(lock)


def _remove_tree(top: str) -> None:
    """Removes a directory and what is in it, however deep and whatever its modes. Raises `OSError`.

    A command may still be running when its owner exits, so that nothing here goes through a name that it could make
    a symlink: directories are moved to *top*, out of its reach, before they are opened.
    """
    above = os.open(top, _DIRECTORY)
    try:
        pending = os.listdir(above)
        while pending:
            directory = os.open(pending[-1], _DIRECTORY, dir_fd=above)
            try:
                moved = _empty(directory, above)
            finally:
                os.close(directory)
            os.rmdir(pending.pop(), dir_fd=above)
            pending += moved
    finally:
        os.close(above)
    os.rmdir(top)


def _empty(directory: int, above: int) -> list[str]:
    """Removes the files in a directory and moves the directories in it to *above*; returns their names there."""
    moved = []
    for name in os.listdir(directory):
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            found = os.fstat(fd)
            if not S_ISDIR(found.st_mode):
                os.unlink(name, dir_fd=directory)
                continue
            # A directory must be writable to get another parent, and readable to be emptied in its turn.
            os.chmod(f"/proc/self/fd/{fd}", 0o700)
            moved.append(f".{found.st_ino}")  # a name that nothing else on this filesystem has
            os.rename(name, moved[-1], src_dir_fd=directory, dst_dir_fd=above)
        finally:
            os.close(fd)
    return moved
