"""What a sandboxed command came to, and what was really enforced."""

from __future__ import annotations

import subprocess
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CompletedProcess", "Enforced", "Outcome", "Usage"]

Output = TypeVar("Output")


class Outcome(StrEnum):
    """Why the command ended.

    >>> import pybwrap
    >>> policy = pybwrap.SandboxPolicy.read_only()
    >>> pybwrap.run(["sleep", "60"], policy=policy, limits=pybwrap.Limits(wall_time=0.1)).outcome
    <Outcome.TIMED_OUT: 'timed_out'>
    >>> pybwrap.run(["false"], policy=policy).outcome == "exited"
    True
    """

    EXITED = "exited"
    SIGNALED = "signaled"
    TIMED_OUT = "timed_out"
    CPU_LIMIT = "cpu_limit"
    MEMORY_LIMIT = "memory_limit"
    OUTPUT_LIMIT = "output_limit"
    PROCESS_LIMIT = "process_limit"
    KILLED = "killed"
    """The whole sandbox was ended, by its owner or from outside."""


class Usage(NamedTuple):
    """What everything that ran inside has used together (getrusage(2)). Times are in seconds, sizes in bytes.

    >>> import pybwrap
    >>> used = pybwrap.run(["sleep", "0.1"], policy=pybwrap.SandboxPolicy.read_only()).usage
    >>> used.wall_time > 0.1 > used.user_time, used.max_rss > 0
    (True, True)
    """

    user_time: float = 0.0
    system_time: float = 0.0
    wall_time: float = 0.0
    max_rss: int = 0
    """The largest of any single process, or with a cgroup of all together."""
    voluntary_context_switches: int = 0
    involuntary_context_switches: int = 0


class Enforced(NamedTuple):
    """What stood between the command and the machine.

    >>> import pybwrap
    >>> enforced = pybwrap.run(["true"], policy=pybwrap.SandboxPolicy.read_only()).enforced
    >>> enforced.engine, enforced.network, enforced.seccomp, "pid" in enforced.namespaces
    ('bubblewrap', 'isolated', 'restricted', True)
    """

    engine: str
    """"bubblewrap", or "stage" without namespaces."""
    namespaces: tuple[str, ...]
    network: str
    """"full", "isolated" or "proxy-only"."""
    seccomp: str | None
    """The mode of the filter, or None without one."""
    landlock_abi: int
    """The ABI version of the ruleset; 0 without one."""
    proc: str
    """"fresh", or "host" where the machine's own /proc is seen."""
    cgroup: str | None
    """The cgroup v2 that held the sandbox, or None."""
    degradations: tuple[str, ...]
    """What was asked for and could not be had in full, each with its reason."""


class CompletedProcess(subprocess.CompletedProcess[Output], Generic[Output]):
    """`subprocess.CompletedProcess`, and how the command ended, what it used, what was enforced and what it left.

    *files* is what was collected, by path relative to the working directory.

    >>> import pybwrap
    >>> policy = pybwrap.SandboxPolicy.read_only()
    >>> done = pybwrap.run(["cp", "a", "b"], policy=policy, files={"a": b"hello"}, collect=["b"])
    >>> done
    CompletedProcess(args=['cp', 'a', 'b'], returncode=0, outcome='exited')
    >>> done.files
    {'b': b'hello'}
    """

    def __init__(
        self,
        args: Any,  # noqa: ANN401 - as subprocess has it
        returncode: int,
        stdout: Output | None = None,
        stderr: Output | None = None,
        *,
        outcome: Outcome = Outcome.EXITED,
        usage: Usage | None = None,
        enforced: Enforced | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        super().__init__(args, returncode, stdout, stderr)
        self.outcome = outcome
        self.usage: Usage = Usage() if usage is None else usage
        self.enforced = enforced
        self.files: dict[str, bytes] = {} if files is None else dict(files)

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, outcome={self.outcome.value!r})"
