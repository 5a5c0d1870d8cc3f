"""Whether this machine refuses a fresh /proc, learnt from a launch that failed at just that mount.

Containers often allow PID namespaces but cover parts of their own /proc, and the kernel refuses a fresh one to whom
it would show more than the old one does (mount_too_revealing() in fs/namespace.c). The failed launch has executed
nothing, so it is the preflight: nobody else pays for one. The answer holds for this boot, user and these namespaces.
"""

from __future__ import annotations

import os

__all__ = ["is_refused", "reason", "remember_refusal"]

_refusals: dict[tuple[object, ...], Exception] = {}


def _surroundings() -> tuple[object, ...]:
    """What the answer depends on. A process can move to other namespaces or users, and be forked there."""
    namespaces = []
    for name in ("user", "mnt", "pid"):
        found = os.stat(f"/proc/self/ns/{name}")
        namespaces.append((found.st_dev, found.st_ino))
    return (os.geteuid(), *namespaces)


def is_refused() -> bool:
    """Whether a launch has found out that no fresh /proc can be had here."""
    return bool(_refusals) and _surroundings() in _refusals


def remember_refusal(error: Exception) -> None:
    """Keeps the answer for the rest of this process's life."""
    _refusals[_surroundings()] = error


def reason() -> str:
    """Why it was refused, for people; empty when it was not."""
    error = _refusals.get(_surroundings()) if _refusals else None
    return str(error) if error is not None else ""
