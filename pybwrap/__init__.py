"""Run commands in a bubblewrap sandbox that this package brings along."""

from __future__ import annotations

from pybwrap.errors import PolicyError, PybwrapError, SetupError, UnsupportedHostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pybwrap.policy import PermissionProfile, SandboxPolicy

__all__ = [
    "PermissionProfile",
    "PolicyError",
    "PybwrapError",
    "SandboxPolicy",
    "SetupError",
    "UnsupportedHostError",
    "__version__",
]

__version__ = "0.1.0"

_WHERE = {"PermissionProfile": "pybwrap.policy", "SandboxPolicy": "pybwrap.policy"}


def __getattr__(name: str) -> object:
    """Imports what is asked for when it is asked for: importing this package costs next to nothing."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)
