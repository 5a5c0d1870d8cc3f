"""Bubblewrap's own test suite, taken from the pinned tarball, and what it can be run against."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from obtain import PIN, SourceError, tarball
from pybwrap.launch.process import HELPER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CSRC = Path(__file__).resolve().parents[2] / "csrc"

PLAIN, COMMAND, EXECUTABLE = "plain bubblewrap", "pybwrap bwrap", "_helper called bwrap"

# The suite runs `python3` and more inside sandboxes that hide /tmp, so the machine's own tools are what it gets.
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
NEEDED_TOOLS = {
    "bash": "bash",
    "capsh": "libcap2-bin",
    "findmnt": "util-linux",
    "getpcaps": "libcap2-bin",
    "python3": "python3",
    "unshare": "util-linux",
}
"""Without one of them the suite ends halfway; tool -> Debian package."""

TIMEOUT = 240
"""Seconds for one script; the longest takes five, or twenty when the machine is busy."""

SELF_EXE = "/proc/self/exe"

_RESULT = re.compile(r"(?P<failed>not )?ok\b(?: \d+)?(?: -(?= ))? ?(?P<name>.*?) ?(?:# (?P<skip>SKIP)\b.*)?")
_PLAN_OF_NONE = re.compile(r"1\.\.0 # SKIP (?P<reason>.*)")


@dataclass(frozen=True)
class Outcome:
    """What a script said, in the Test Anything Protocol."""

    status: int | None  # None: it did not end in time
    stdout: str
    stderr: str
    passed: tuple[str, ...] = field(init=False)
    skipped: str = field(init=False)
    """Why the script as a whole was skipped, by its own account; empty when it was not."""

    def __post_init__(self) -> None:
        lines = self.stdout.splitlines()
        results = [result for result in map(_RESULT.fullmatch, lines) if result]
        passed = tuple(result["name"] for result in results if not result["failed"] and not result["skip"])
        plans = [plan["reason"] for plan in map(_PLAN_OF_NONE.fullmatch, lines) if plan]
        object.__setattr__(self, "passed", passed)
        object.__setattr__(self, "skipped", "; ".join(plans))

    def describe(self) -> str:
        """The end of everything that was written."""
        status = "killed: not done in time" if self.status is None else f"exit status {self.status}"
        return f"{status}\n--- stdout\n{_end_of(self.stdout)}\n--- stderr\n{_end_of(self.stderr)}"


def _end_of(text: str, count: int = 60) -> str:
    return "\n".join(text.splitlines()[-count:])


class Suite:
    """The suite, unpacked and built in *directory*, which it is called in by any user."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.source = directory / "source"
        self.built = directory / "built"
        self.outcomes: dict[tuple[str, str], Outcome] = {}

    def prepare(self) -> None:
        """Unpack, compile, and put one `bwrap` in a folder of its own for each target. Raises `SourceError`."""
        self.unpack()
        (self.built / "tests").mkdir(parents=True)
        for name in (PLAIN, COMMAND, EXECUTABLE):
            self.executable(name).parent.mkdir()
        upstream = self.upstream_files()
        compile_c([*upstream, CSRC / "capability_names.c"], self.executable(PLAIN), self.source)
        compile_c([self.source / "tests" / "try-syscall.c"], self.built / "tests" / "try-syscall", self.source)
        self.executable(EXECUTABLE).symlink_to(HELPER)
        self.executable(COMMAND).write_text(
            f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -m pybwrap bwrap "$@"\n'  # -P: not from the cwd
        )
        self.executable(COMMAND).chmod(0o755)

    def unpack(self) -> None:
        prefix = f"bubblewrap-{PIN.version}/"
        with tarfile.open(tarball()) as archive:
            for member in archive:
                name = member.name.removeprefix(prefix)
                content = archive.extractfile(member) if re.fullmatch(r"[\w.-]+\.[ch]|tests/[\w.-]+", name) else None
                if content is not None:
                    target = self.source / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(content.read())
                    target.chmod(0o755)

    def upstream_files(self) -> list[Path]:
        return sorted(self.source.glob("*.c"))

    def executable(self, target: str) -> Path:
        return self.directory / target.replace(" ", "-") / "bwrap"

    def run(self, script: str, target: str) -> Outcome:
        """The outcome of *script* with *target* as the `bwrap` on PATH; it is run once."""
        if (script, target) not in self.outcomes:
            self.outcomes[script, target] = self._run(self.prepared_script(script, target), target)
        return self.outcomes[script, target]

    def prepared_script(self, script: str, target: str) -> Path:
        """The script, with its only assumption that cannot hold for *target* taken out.

        It re-enters bubblewrap through /proc/self/exe. A command that is not an executable of its own has another
        program there, Python's; by its name it can be found just as well.
        """
        path = self.source / "tests" / script
        content = path.read_text()
        if target != COMMAND or SELF_EXE not in content:
            return path
        adapted = path.with_name(f"by-name-{script}")  # beside the original: it looks there for its library
        adapted.write_text(content.replace(SELF_EXE, "bwrap"))
        return adapted

    def _run(self, path: Path, target: str) -> Outcome:
        interpreter = "bash" if path.suffix == ".sh" else "python3"
        environment = {
            name: value for name, value in os.environ.items() if name in {"HOME", "PYTHONPATH", "USER", "LOGNAME"}
        }
        environment |= {
            "PATH": f"{self.executable(target).parent}:{SYSTEM_PATH}",
            "BWRAP": "bwrap",
            "G_TEST_SRCDIR": str(self.source),
            "G_TEST_BUILDDIR": str(self.built),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        # Files and not pipes: what a script leaves running when it gives up would keep a pipe open.
        with (
            tempfile.TemporaryFile("w+", errors="replace") as out,
            tempfile.TemporaryFile("w+", errors="replace") as err,
        ):
            process = subprocess.Popen(
                [interpreter, path],
                cwd=self.directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
            status: int | None = None
            try:
                status = process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                pass
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            out.seek(0)
            err.seek(0)
            return Outcome(status, out.read(), err.read())

    def run_test_utils(self, *, with_seams: bool) -> Outcome:
        """The outcome of test-utils, which is linked with upstream's utils.c: as it is, or as this build has it."""
        target = self.built / ("test-utils-with-seams" if with_seams else "test-utils")
        program = self.source / "tests" / "test-utils.c"
        if with_seams:
            ours = [path for path in sorted(CSRC.glob("*.c")) if path.name not in {"helper.c", "native.c"}]
            objects = [target.with_name(f"{path.stem}.o") for path in self.upstream_files()]
            for path, compiled in zip(self.upstream_files(), objects, strict=True):
                file = f"-DPYBWRAP_FILE_{path.stem.replace('-', '_')}"
                seams = ("-c", "-DPYBWRAP_UPSTREAM", file, "-include", str(CSRC / "seams.h"))
                compile_c([path], compiled, self.source, seams)
            compile_c([program, *ours, *objects], target, self.source)
        else:
            compile_c([program, self.source / "utils.c"], target, self.source)
        done = subprocess.run([target], capture_output=True, text=True, check=False, timeout=TIMEOUT)
        return Outcome(done.returncode, done.stdout, done.stderr)


def compile_c(sources: Iterable[Path], target: Path, source: Path, options: Iterable[str] = ()) -> None:
    """Compile with what stands in for libcap and for the header of upstream's build system."""
    command: list[str | Path] = [
        *(os.environ.get("CC", "cc"), "-O1", "-std=gnu11", "-D_GNU_SOURCE"),
        f'-DPYBWRAP_BUBBLEWRAP_VERSION="{PIN.version}"',
        *(f"-I{folder}" for folder in (CSRC / "compat", CSRC, source)),
        *options,
        *("-o", target),
        *sources,
    ]
    subprocess.run(command, check=True)


@pytest.fixture(scope="session")
def suite() -> Iterator[Suite]:
    # Not below /tmp, which the suite's sandboxes hide, and not tmp_path: every user and namespace must get in.
    directory = Path(tempfile.mkdtemp(prefix="pybwrap-upstream-", dir="/var/tmp"))
    try:
        directory.chmod(0o755)
        prepared = Suite(directory)
        try:
            prepared.prepare()
        except SourceError as error:
            pytest.skip(str(error))
        yield prepared
    finally:
        shutil.rmtree(directory)


def cannot(reason: str) -> None:
    """Skip, or fail where everything is expected to be there."""
    if os.environ.get("PYBWRAP_REQUIRE_SANDBOX") == "1":
        pytest.fail(f"{reason} (and PYBWRAP_REQUIRE_SANDBOX=1)", pytrace=False)
    pytest.skip(reason)
