"""How much a sandboxed command may use."""

from __future__ import annotations

import math
import resource
from typing import NamedTuple

__all__ = ["Limits"]


class Limits(NamedTuple):
    """Upper bounds; None is no limit. Times are in seconds, sizes in bytes, the others are counts.

    *cpu_time* and *memory* (address space) bound each process, *processes* what the user runs inside (not for root,
    whom RLIMIT_NPROC exempts), *open_files* and *file_size* each process (setrlimit(2)). *wall_time* ends the whole
    sandbox, also while its owner is busy. *output* bounds what is captured of stdout and stderr together.

    >>> import pybwrap
    >>> limits = pybwrap.Limits(wall_time=10, output=1000)
    >>> done = pybwrap.run(["yes"], policy=pybwrap.SandboxPolicy.read_only(), capture_output=True, limits=limits)
    >>> len(done.stdout), done.outcome.value
    (1000, 'output_limit')
    """

    cpu_time: float | None = None
    wall_time: float | None = None
    memory: int | None = None
    processes: int | None = None
    open_files: int | None = None
    file_size: int | None = None
    output: int | None = None

    def resource_limits(self) -> tuple[tuple[int, int, int], ...]:
        """The (RLIMIT number, soft, hard) triples. Raises `ValueError` for a negative limit."""
        for name, value in zip(self._fields, self, strict=True):
            if value is not None and value < 0:
                raise ValueError(f"limit {name}: must not be negative, got {value!r}")
        limits = []
        if self.cpu_time is not None:
            # The soft limit sends SIGXCPU, which tells this limit from other ends; a second later SIGKILL follows.
            seconds = max(1, math.ceil(self.cpu_time))
            limits.append((resource.RLIMIT_CPU, seconds, seconds + 1))
        for number, value in (
            (resource.RLIMIT_AS, self.memory),
            (resource.RLIMIT_NPROC, self.processes),
            (resource.RLIMIT_NOFILE, self.open_files),
            (resource.RLIMIT_FSIZE, self.file_size),
        ):
            if value is not None:
                limits.append((number, value, value))
        return tuple(limits)
