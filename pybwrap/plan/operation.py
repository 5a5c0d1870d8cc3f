"""The steps that make the filesystem view, in bubblewrap's terms."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

__all__ = ["Operation", "OperationKind"]


class OperationKind(Enum):
    """What is done; the value is bubblewrap's option for it."""

    READ_ONLY_BIND = "--ro-bind"
    BIND = "--bind"
    DEVICE_BIND = "--dev-bind"
    TMPFS = "--tmpfs"
    REMOUNT_READ_ONLY = "--remount-ro"
    DEVICES = "--dev"
    PROC = "--proc"
    SYMLINK = "--symlink"
    PIN_SYMLINK = "pin-symlink"
    """Not an option of bubblewrap: the launch binds the symlink on itself, so that it cannot be replaced."""


class Operation(NamedTuple):
    """One step. *source* is what is bound, or a symlink's target; *permissions* are the mode bits of a tmpfs."""

    kind: OperationKind
    destination: str
    reason: str
    source: str | None = None
    permissions: int | None = None

    def arguments(self) -> list[str]:
        """The words of bubblewrap's command line for this step."""
        words = [] if self.permissions is None else ["--perms", f"{self.permissions:o}"]
        words.append(self.kind.value)
        if self.source is not None:
            words.append(self.source)
        words.append(self.destination)
        return words
