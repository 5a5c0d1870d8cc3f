"""What can go wrong, as exceptions that say what failed, where, and what to do next."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pybwrap.launch.result import Outcome

__all__ = ["PolicyError", "PybwrapError", "RemoteError", "SetupError", "UnsupportedHostError"]


class PybwrapError(Exception):
    """The base of every error of this package; never raised itself.

    >>> import pybwrap
    >>> try:
    ...     pybwrap.run(["true"], policy=pybwrap.SandboxPolicy.workspace_write(["/missing"]))
    ... except pybwrap.PybwrapError as error:
    ...     print(error)
    writable root '/missing' does not exist; create it, or leave it out of the policy
    """


class PolicyError(PybwrapError, ValueError):
    """Raised when a policy is malformed, or asks for what cannot be enforced. Nothing has been run.

    >>> import pybwrap
    >>> pybwrap.SandboxPolicy.from_json('{"type": "read-only", "network_access": 1}')
    Traceback (most recent call last):
    pybwrap.errors.PolicyError: invalid sandbox policy: at $.network_access: expected true or false, got a number
    """


class UnsupportedHostError(PybwrapError):
    """Raised when this machine lacks what the policy needs: a library, a kernel feature, an architecture.

    >>> import pybwrap
    >>> pybwrap.run(["true"], policy=pybwrap.SandboxPolicy.read_only(network_access=True), require=["netns"])
    Traceback (most recent call last):
    pybwrap.errors.UnsupportedHostError: required but not to be had with this policy on this machine: netns
    """


class SetupError(PybwrapError, OSError):
    """Raised when the sandbox could not be built. The command has not been run.

    *errno* is the kernel's reason (0 when there is none), *step* names the operation that failed, *what* the
    object it failed on, and *remedy* what to do about it.

    >>> import errno, pybwrap
    >>> print(pybwrap.SetupError("mount", errno.ENOMEM, "/srv", "free some memory"))
    cannot set up the sandbox (mount): /srv: Cannot allocate memory; free some memory
    """

    def __init__(self, step: str, errno: int, what: str, remedy: str = "") -> None:
        super().__init__(errno, what)
        self.step = step
        self.what = what
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[SetupError], tuple[str, int, str, str]]:
        return type(self), (self.step, self.errno or 0, self.what, self.remedy)

    def __str__(self) -> str:
        reason = f": {os.strerror(self.errno)}" if self.errno else ""
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"cannot set up the sandbox ({self.step}): {self.what}{reason}{remedy}"


class RemoteError(PybwrapError):
    """Raised when `pybwrap.call` has no result to return and no exception of Python's own to raise.

    *message* says why; *type_name* is the type of the exception that the function has raised, or empty, and
    *traceback* its text. Both come from code that is not trusted. *outcome* is how the interpreter ended when that is
    the reason, or None.

    >>> import json, pybwrap
    >>> try:
    ...     pybwrap.call(json.loads, "{", policy=pybwrap.SandboxPolicy.read_only())
    ... except pybwrap.RemoteError as error:
    ...     print(error.type_name)
    json.decoder.JSONDecodeError
    """

    def __init__(self, message: str, type_name: str = "", traceback: str = "", outcome: Outcome | None = None) -> None:
        super().__init__(message, type_name, traceback, outcome)
        self.message = message
        self.type_name = type_name
        self.traceback = traceback
        self.outcome = outcome

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}" if self.type_name else self.message
