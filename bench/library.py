#!/usr/bin/env python3
"""What the library costs the program that uses it: its size, its threads, its event loop, its start.

    python bench/library.py [--runs N] [--json FILE] [--peers DIR]

The policy and the command are those of bench/launch.py. docs/benchmarks.md says how to read the table.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import mmap
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from harness import Results, Row, Target, measure, print_table, timed, timed_command, write_json
from launch import COMMAND, PYTHON, build_plain, planned, run, worker

import pybwrap
from pybwrap import aio
from pybwrap.launch.seccomp_filter import compile_filter
from pybwrap.policy.profile import DEFAULT_PROTECTED_NAMES

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping

    from harness import Sample, Summary

GIGABYTES = (0, 1, 4)
SAME_AT_ANY_SIZE = 1.05
THREADS = 16
LAUNCHES_PER_THREAD = 4
IN_FLIGHT = 200
IMPORT_MS = 15
MANY = 5
"""Rows that take long are measured in so many times fewer rounds."""

OWN = "pybwrap.run"
FLOOR = "subprocess.run"
FORK = "fork, plain bubblewrap"
OWN_THREADS = f"{THREADS} threads: {OWN}"
SHELL_LOOPS = f"{THREADS} shell loops: plain bubblewrap"
OWN_AT_SIZE = [f"{size} GB: {OWN}" for size in GIGABYTES]


def main() -> int:
    """Measure and print; the exit status is 1 if a row of this project's own could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs",
        type=int,
        default=200,
        metavar="N",
        help="per row; rows that take long make a fifth; default: %(default)s",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample to FILE too")
    parser.add_argument(
        "--peers",
        type=Path,
        default=Path.home() / ".cache" / "pybwrap-peers",
        metavar="DIR",
        help="where pip has put sandlock (venv); default: %(default)s",
    )
    parser.add_argument("--serve", nargs=2, metavar=("GIGABYTES", "BUBBLEWRAP"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(int(options.serve[0]), options.serve[1])
        return 0

    title = (
        f"`{COMMAND}` under workspace-write with an isolated network; load before: {os.getloadavg()[0]:.2f}\n"
        f"many at once: per launch, in rounds of {THREADS * LAUNCHES_PER_THREAD} (threads) or {IN_FLIGHT} (asyncio); "
        f"of these and of fork, {max(1, options.runs // MANY)} rounds"
    )
    with ExitStack() as stack:
        # Not in /tmp, as in launch.py.
        cache = Path.home() / ".cache"
        cache.mkdir(exist_ok=True)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pybwrap-bench-", dir=cache)))
        workspace = scratch / "workspace"
        for name in DEFAULT_PROTECTED_NAMES:
            (workspace / name).mkdir(parents=True)
        os.chdir(workspace)
        plain = Plain.make(build_plain(scratch), scratch, workspace)
        sizes = Sizes(stack, plain, workspace)
        rounds = max(1, options.runs // MANY)
        # Apart: a fork leaves its caller's pages to be faulted in again, and after many launches at once the kernel
        # goes on clearing namespaces away.
        single = measure([*sizes.rows(), *import_rows(workspace)], options.runs)
        forks = measure([*sizes.fork_rows()], rounds)
        many = measure([*thread_rows(stack, plain, workspace, options.peers), *async_rows(stack, plain)], rounds)
    results = joined(single, forks, many)
    print_table(title, results, baseline=OWN_AT_SIZE[0])
    print("\nLaunches per second:")
    for name, found in results.summaries().items():
        if name in many.samples:
            print(f"  {name}: {1000 / found.p50:.0f}")
    if options.json is not None:
        write_json(options.json, title, results)
    return int(any("sandlock" not in name for name in results.missing))


def joined(*parts: Results) -> Results:
    """The rows of all of them, for one table."""
    results = Results([row for part in parts for row in part.rows])
    results.samples = {name: samples for part in parts for name, samples in part.samples.items()}
    results.missing = {name: why for part in parts for name, why in part.missing.items()}
    return results


def isolated() -> pybwrap.SandboxPolicy:
    """The policy of launch.py, which needs no placeholders."""
    return pybwrap.SandboxPolicy.workspace_write(exclude_slash_tmp=True, exclude_tmpdir_env_var=True)


class Plain(NamedTuple):
    """Plain bubblewrap with the mounts, namespaces and seccomp filter of the policy.

    The filter is a file, not a descriptor: those that share one share its offset, and many launches run at once.
    """

    executable: str
    arguments: tuple[str, ...]
    filter: Path

    @classmethod
    def make(cls, executable: Path, scratch: Path, workspace: Path) -> Plain:
        """Its arguments for the policy in *workspace*; the filter is written to *scratch*."""
        plan = planned(isolated(), workspace)
        compiled = scratch / "filter"
        compiled.write_bytes(b"" if plan.seccomp is None else compile_filter(plan.seccomp))
        return cls(str(executable), (*plan.bubblewrap_options(str(workspace)), "--", COMMAND), compiled)

    def command(self, filter_fd: int) -> list[str]:
        """What is executed where the filter is open."""
        return [self.executable, "--seccomp", str(filter_fd), *self.arguments]

    def run(self) -> None:
        """One launch as a Python program makes it."""
        filter_fd = os.open(self.filter, os.O_RDONLY)
        try:
            subprocess.run(self.command(filter_fd), pass_fds=[filter_fd], check=True)
        finally:
            os.close(filter_fd)

    async def run_async(self) -> None:
        """The same in a coroutine."""
        filter_fd = os.open(self.filter, os.O_RDONLY)
        try:
            process = await asyncio.create_subprocess_exec(*self.command(filter_fd), pass_fds=[filter_fd])
        finally:
            os.close(filter_fd)
        if await process.wait() != 0:
            raise RuntimeError(f"{self.executable} exited with status {process.returncode}")

    def fork_and_execute(self) -> None:
        """One launch by fork(2), which copies the page tables of the process that calls it."""
        pid = os.fork()
        if pid == 0:
            try:
                filter_fd = os.open(self.filter, os.O_RDONLY)
                os.set_inheritable(filter_fd, True)  # noqa: FBT003 - its only form
                os.execv(self.executable, self.command(filter_fd))  # noqa: S606 - that is what is measured
            finally:
                os._exit(127)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status != 0:
            raise RuntimeError(f"{self.executable} exited with status {status}")


# --- The size of the process ------------------------------------------------------------------------------------------


class Sizes:
    """Processes of several sizes, each of which makes one launch at a time, in several ways."""

    def __init__(self, stack: ExitStack, plain: Plain, workspace: Path) -> None:
        self.askers = {
            size: asker(stack, [sys.executable, __file__, "--serve", str(size), plain.executable], workspace)
            for size in GIGABYTES
        }

    def rows(self) -> Iterator[Row]:
        """By this library, and the floor."""

        def limit(found: Mapping[str, Summary]) -> float | None:
            at_sizes = [found[name].p50 for name in OWN_AT_SIZE if name in found]
            return SAME_AT_ANY_SIZE * min(at_sizes) if len(at_sizes) == len(OWN_AT_SIZE) else None

        target = Target(f"<= {SAME_AT_ANY_SIZE} x the fastest size", limit)
        yield from self._by(OWN, target)
        yield from self._by(FLOOR)

    def fork_rows(self) -> Iterator[Row]:
        """As a program without any library would do it."""
        yield from self._by(FORK)

    def _by(self, way: str, *targets: Target) -> Iterator[Row]:
        for size, ask in self.askers.items():
            yield Row(f"{size} GB: {way}", ask(way), targets)


def serve(gigabytes: int, bubblewrap: str) -> None:
    """In a process that owns so much memory: do what each line of the input says, and answer with the nanoseconds."""
    scratch = Path(bubblewrap).parent
    plain = Plain.make(Path(bubblewrap), scratch, Path.cwd())
    policy = isolated()
    ways: dict[str, Sample] = {
        OWN: timed(lambda: run(policy)),
        FLOOR: timed(lambda: subprocess.run([COMMAND], check=True)),
        FORK: timed(plain.fork_and_execute),
    }
    memory = []
    for _ in range(gigabytes):
        gigabyte = mmap.mmap(-1, 1 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        gigabyte.madvise(mmap.MADV_NOHUGEPAGE)  # as most of a Python heap is, and the dearest to fork
        for _ in range(1 << 10):
            gigabyte.write(b"\1" * (1 << 20))
        memory.append(gigabyte)
    gc.disable()
    print("ready", flush=True)
    for line in sys.stdin:
        print(ways[line.strip()](), flush=True)


def asker(stack: ExitStack, command: list[str], workspace: Path) -> Callable[[str], Sample]:
    """Starts a process that serves, and returns what makes a sample of a request."""
    process = stack.enter_context(
        subprocess.Popen(command, cwd=workspace, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    )
    if process.stdin is None or process.stdout is None:
        raise AssertionError
    stack.callback(process.stdin.close)
    write, read = process.stdin.write, process.stdout.readline
    if read().strip() != "ready":
        raise RuntimeError(f"{command} has ended")

    def ask(request: str) -> Sample:
        def sample() -> int:
            write(request + "\n")
            answer = read().strip()
            if not answer.isdigit():
                raise RuntimeError("the process has ended")
            return int(answer)

        return sample

    return ask


# --- The start of the program -----------------------------------------------------------------------------------------


def import_rows(workspace: Path) -> Iterator[Row]:
    """The package, which imports what it offers when that is asked for; and what `run` needs."""
    # What is installed has its bytecode beside it.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def python(code: str) -> Sample:
        return timed_command([sys.executable, "-c", code], cwd=workspace, environment=environment)

    target = Target(
        f"<= {PYTHON} + {IMPORT_MS} ms", lambda found: found[PYTHON].p50 + IMPORT_MS if PYTHON in found else None
    )
    yield Row(PYTHON, python("pass"))
    yield Row("import pybwrap", python("import pybwrap"), (target,))
    yield Row("from pybwrap import run, SandboxPolicy", python("from pybwrap import run, SandboxPolicy"), (target,))


# --- Many at once -----------------------------------------------------------------------------------------------------


def each(sample: Sample, launches: int) -> Sample:
    """The time per launch of a sample that makes several."""
    return lambda: sample() // launches


_SHELL_LOOPS = """\
filter=$1 loops=$2 launches=$3
shift 3
pids=
while [ "$loops" -gt 0 ]; do
    {
        while [ "$launches" -gt 0 ]; do
            "$@" 9<"$filter" || exit
            launches=$((launches - 1))
        done
    } &
    pids="$pids $!"
    loops=$((loops - 1))
done
for pid in $pids; do
    wait "$pid" || exit
done
"""

_SANDLOCK_THREADS = """\
import sys, time
from concurrent.futures import ThreadPoolExecutor
from sandlock import Sandbox
workspace, command, threads, launches = *sys.argv[1:3], int(sys.argv[3]), int(sys.argv[4])
def run(_):
    sandbox = Sandbox(fs_readable=["/"], fs_writable=[workspace, "/dev"])
    for _ in range(launches):
        result = sandbox.run([command])
        if not result.success:
            return result
with ThreadPoolExecutor(threads) as pool:
    for line in sys.stdin:
        start = time.perf_counter_ns()
        failed = [result for result in pool.map(run, range(threads)) if result]
        print(failed[0] if failed else time.perf_counter_ns() - start, flush=True)
"""


def thread_rows(stack: ExitStack, plain: Plain, workspace: Path, peers: Path) -> Iterator[Row]:
    """Each of several threads makes one launch after the other; the floor and the peers likewise."""
    policy = isolated()
    launches = THREADS * LAUNCHES_PER_THREAD
    pool = stack.enter_context(ThreadPoolExecutor(THREADS))

    def by_threads(launch: Callable[[], object]) -> Sample:
        def repeat(_: int) -> None:
            for _ in range(LAUNCHES_PER_THREAD):
                launch()

        return each(timed(lambda: list(pool.map(repeat, range(THREADS)))), launches)

    target = Target(f"<= {SHELL_LOOPS}", lambda found: found[SHELL_LOOPS].p50 if SHELL_LOOPS in found else None)
    yield Row(OWN_THREADS, by_threads(lambda: run(policy)), (target,))
    shell = ["/bin/sh", "-c", _SHELL_LOOPS, "sh", str(plain.filter), str(THREADS), str(LAUNCHES_PER_THREAD)]
    yield Row(SHELL_LOOPS, each(timed_command([*shell, *plain.command(9)], cwd=workspace), launches))
    yield Row(f"{THREADS} threads: plain bubblewrap", by_threads(plain.run))
    yield Row(f"{THREADS} threads: subprocess.run", by_threads(lambda: subprocess.run([COMMAND], check=True)))

    name, python = f"{THREADS} threads: sandlock", peers / "venv" / "bin" / "python"
    probe = [str(python), "-c", "import sandlock"]
    if not python.exists() or subprocess.run(probe, check=False, capture_output=True).returncode != 0:
        yield Row(name, missing=f"not in {python.parent.parent}: pip install sandlock")
        return
    arguments = [str(workspace), COMMAND, str(THREADS), str(LAUNCHES_PER_THREAD)]
    sample = worker(stack, [str(python), "-c", _SANDLOCK_THREADS, *arguments], cwd=workspace)
    yield Row(name, each(sample, launches))


def async_rows(stack: ExitStack, plain: Plain) -> Iterator[Row]:
    """As many coroutines at once as IN_FLIGHT, each of which makes one launch; a launch that fails is an error."""
    policy = isolated()
    runner = stack.enter_context(asyncio.Runner())

    def gathered(launch: Callable[[], Coroutine[None, None, object]]) -> Sample:
        async def launch_all() -> None:
            await asyncio.gather(*(launch() for _ in range(IN_FLIGHT)))

        return each(timed(lambda: runner.run(launch_all())), IN_FLIGHT)

    yield Row(
        f"asyncio, {IN_FLIGHT} tasks: aio.run",
        gathered(lambda: aio.run([COMMAND], policy=policy, env=os.environ, check=True)),
    )
    yield Row(f"asyncio, {IN_FLIGHT} tasks: plain bubblewrap", gathered(plain.run_async))
    yield Row(
        f"asyncio, {IN_FLIGHT} alive together: aio",
        each(timed(lambda: runner.run(alive_together(policy))), IN_FLIGHT),
    )


async def alive_together(policy: pybwrap.SandboxPolicy) -> None:
    """Commands that wait for each other: all of them run before the first of them ends."""
    reading, writing = os.pipe()
    try:
        processes = await asyncio.gather(
            *(aio.create_subprocess_exec("cat", stdin=reading, policy=policy, env=os.environ) for _ in range(IN_FLIGHT))
        )
        if any(process.returncode is not None for process in processes):
            raise RuntimeError("a command ended before its input did")
    finally:
        os.close(reading)
        os.close(writing)
    statuses = await asyncio.gather(*(process.wait() for process in processes))
    if any(statuses):
        raise RuntimeError(f"of {IN_FLIGHT} commands, {sum(map(bool, statuses))} failed")


if __name__ == "__main__":
    sys.exit(main())
