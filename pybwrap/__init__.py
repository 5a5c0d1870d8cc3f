"""Run commands in a bubblewrap sandbox that this package brings along.

>>> import pybwrap
>>> pybwrap.run(["mkdir", "/usr/new"], policy=pybwrap.SandboxPolicy.read_only(), stderr=pybwrap.DEVNULL).returncode
1
"""

from __future__ import annotations

from pybwrap.errors import PolicyError, PybwrapError, RemoteError, SetupError, UnsupportedHostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pybwrap.launch.callable import call
    from pybwrap.launch.limits import Limits
    from pybwrap.launch.popen import (
        DEVNULL,
        PIPE,
        STDOUT,
        CalledProcessError,
        Popen,
        TimeoutExpired,
        check_output,
        run,
    )
    from pybwrap.launch.result import CompletedProcess, Enforced, Outcome, Usage
    from pybwrap.policy import PermissionProfile, SandboxPolicy

__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "CalledProcessError",
    "CompletedProcess",
    "Enforced",
    "Limits",
    "Outcome",
    "PermissionProfile",
    "PolicyError",
    "Popen",
    "PybwrapError",
    "RemoteError",
    "SandboxPolicy",
    "SetupError",
    "TimeoutExpired",
    "UnsupportedHostError",
    "Usage",
    "__version__",
    "call",
    "check_output",
    "run",
]

__version__ = "0.1.0"

_WHERE = {
    **dict.fromkeys(("PermissionProfile", "SandboxPolicy"), "pybwrap.policy"),
    **dict.fromkeys(("CompletedProcess", "Enforced", "Outcome", "Usage"), "pybwrap.launch.result"),
    **dict.fromkeys(
        ("DEVNULL", "PIPE", "STDOUT", "CalledProcessError", "Popen", "TimeoutExpired", "check_output", "run"),
        "pybwrap.launch.popen",
    ),
    "Limits": "pybwrap.launch.limits",
    "call": "pybwrap.launch.callable",
}


def __getattr__(name: str) -> object:
    """Imports what is asked for when it is asked for: importing this package costs next to nothing."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)
