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
    OVERLAY = "--overlay"
    TMPFS = "--tmpfs"
    REMOUNT_READ_ONLY = "--remount-ro"
    DEVICES = "--dev"
    PROC = "--proc"
    SYMLINK = "--symlink"
    PIN_SYMLINK = "pin-symlink"
    """Not an option of bubblewrap: the launch binds the symlink on itself, so that it cannot be replaced."""


class Operation(NamedTuple):
    """One step. *source* is what is bound, a symlink's target, or the lower directory of an overlay.

    *permissions* are the mode bits of a tmpfs, *layers* the upper and the work directory of an overlay.
    """

    kind: OperationKind
    destination: str
    reason: str
    source: str | None = None
    permissions: int | None = None
    layers: tuple[str, str] | None = None

    def arguments(self) -> list[str]:
        """The words of bubblewrap's command line for this step."""
        if self.layers is not None:
            return ["--overlay-src", self.source or "", self.kind.value, *self.layers, self.destination]
        words = [] if self.permissions is None else ["--perms", f"{self.permissions:o}"]
        words.append(self.kind.value)
        if self.source is not None:
            words.append(self.source)
        words.append(self.destination)
        return words
