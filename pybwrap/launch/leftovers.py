"""What killed launches have left behind is removed by the next one, whatever its policy."""

from __future__ import annotations

import os

from pybwrap.launch import placeholders, registry

__all__ = ["reclaim"]


def reclaim() -> None:
    """Removes every entry of the registry that nobody holds, and what it stands for."""
    for entry in registry.entries():
        if os.path.isdir(entry):
            from pybwrap.launch import workspace_overlay

            workspace_overlay.reclaim(entry)
        else:
            placeholders.reclaim(entry)
