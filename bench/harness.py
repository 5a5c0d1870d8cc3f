"""What every benchmark here shares: rows that are measured in turn, and one table of what came out.

A row is something that can be done once and timed. All rows are measured round robin, in another order each round, so
that whatever else the machine does, and whatever one row leaves behind in its caches, hits all of them alike.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import random
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    Sample = Callable[[], int]

__all__ = ["Results", "Row", "Summary", "Target", "measure", "print_table", "timed", "timed_command", "write_json"]

WARM_UP_ROUNDS = 5
_ORDER_SEED = 0  # the same orders in every run, so that two runs can be compared


class Summary(NamedTuple):
    """What is said about one row, in milliseconds."""

    p50: float
    p95: float

    @classmethod
    def of(cls, samples: Sequence[int]) -> Summary:
        """The median and the 95th percentile (nearest rank) of *samples*, which are nanoseconds."""
        ordered = sorted(samples)
        return cls(*(ordered[max(0, -(-len(ordered) * share // 100) - 1)] / 1e6 for share in (50, 95)))


class Target(NamedTuple):
    """A bound on a row's p50: *limit* gives it in milliseconds from the other rows, None where those are missing."""

    text: str
    limit: Callable[[Mapping[str, Summary]], float | None]


@dataclass(frozen=True)
class Row:
    """One line of the table. *sample* does the thing once and returns how long it took, in nanoseconds.

    A row without a sample is one that cannot be measured here; *missing* says why.
    """

    name: str
    sample: Sample | None = None
    targets: tuple[Target, ...] = ()
    missing: str = ""


@dataclass
class Results:
    """The samples of each row that could be measured, and why the others could not."""

    rows: Sequence[Row]
    samples: dict[str, list[int]] = field(init=False)
    missing: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.samples = {row.name: [] for row in self.rows if row.sample is not None}
        self.missing = {row.name: row.missing for row in self.rows if row.sample is None}

    def take(self, row: Row, *, keep: bool) -> None:
        """Take one sample of *row*; whatever goes wrong with it, the other rows are still measured."""
        if row.sample is None:
            return
        try:
            nanoseconds = row.sample()
        except Exception as error:  # noqa: BLE001 - see above
            self.missing[row.name] = f"failed: {error}"
            del self.samples[row.name]
        else:
            if keep:
                self.samples[row.name].append(nanoseconds)

    def summaries(self) -> dict[str, Summary]:
        """Row name -> its summary."""
        return {name: Summary.of(samples) for name, samples in self.samples.items()}


def timed(action: Callable[[], object]) -> Sample:
    """The sample that times one call of *action*."""

    def sample() -> int:
        start = time.perf_counter_ns()
        action()
        return time.perf_counter_ns() - start

    return sample


def timed_command(
    command: Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    before: Callable[[], object] = int,
) -> Sample:
    """The sample that runs *command* with `subprocess.run` and fails unless it succeeds; *before* is not timed."""

    def sample() -> int:
        before()
        start = time.perf_counter_ns()
        done = subprocess.run(command, cwd=cwd, env=environment, pass_fds=pass_fds, check=False)
        elapsed = time.perf_counter_ns() - start
        if done.returncode != 0:
            raise RuntimeError(f"{command[0]} exited with status {done.returncode}")
        return elapsed

    return sample


def measure(rows: Sequence[Row], runs: int) -> Results:
    """Measures each row *runs* times. A row that fails is reported as missing, with what it said."""
    results = Results(rows)
    shuffle = random.Random(_ORDER_SEED).shuffle  # noqa: S311 - an order, not a secret
    gc.collect()
    gc.disable()
    try:
        for done in range(-WARM_UP_ROUNDS, runs):
            order = [row for row in rows if row.name not in results.missing]
            shuffle(order)
            for row in order:
                results.take(row, keep=done >= 0)
            if sys.stderr.isatty():
                sys.stderr.write(f"\r{done + 1}/{runs} ")
    finally:
        gc.enable()
        if sys.stderr.isatty():
            sys.stderr.write("\r\033[K")
    return results


def _machine() -> dict[str, object]:
    return {
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "uid": os.getuid(),
        "load": os.getloadavg()[0],
    }


def print_table(title: str, results: Results, *, baseline: str) -> None:
    """Prints one line per row, in Markdown; *baseline* is the row that ratios are relative to."""
    summaries = results.summaries()
    machine = ", ".join(f"{name} {value}" for name, value in _machine().items())
    runs = max(map(len, results.samples.values()), default=0)
    print(f"{title}\n{runs} runs per row; {machine}\n")
    lines: list[tuple[str, ...]] = [("", "p50 ms", "p95 ms", f"p50 / {baseline}", "target for p50", "reached")]
    for row in results.rows:
        if row.name in results.missing:
            lines.append((row.name, "-", "-", "-", results.missing[row.name], "-"))
            continue
        found = summaries[row.name]
        ratio = f"{found.p50 / summaries[baseline].p50:.2f}" if baseline in summaries else "-"
        verdicts = [_verdict(target, found, summaries) for target in row.targets] or [("", "")]
        for index, (text, reached) in enumerate(verdicts):
            numbers = (row.name, f"{found.p50:.2f}", f"{found.p95:.2f}", ratio)
            lines.append((*(numbers if index == 0 else ("",) * len(numbers)), text, reached))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for index, line in enumerate(lines):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")
        if index == 0:
            print("|-" + "-|-".join("-" * width for width in widths) + "-|")


def _verdict(target: Target, found: Summary, summaries: Mapping[str, Summary]) -> tuple[str, str]:
    limit = target.limit(summaries)
    if limit is None:
        return target.text, "unknown"
    return f"{target.text} = {limit:.2f}", "yes" if found.p50 <= limit else "NO"


def write_json(path: Path, title: str, results: Results) -> None:
    """Writes everything that was measured, every single sample included."""
    rows = [
        {
            "name": row.name,
            **(
                {"missing": results.missing[row.name]}
                if row.name in results.missing
                else {**summaries._asdict(), "nanoseconds": results.samples[row.name]}
            ),
        }
        for row in results.rows
        for summaries in [results.summaries().get(row.name, Summary(0, 0))]
    ]
    path.write_text(json.dumps({"title": title, "machine": _machine(), "rows": rows}, indent=1) + "\n")
