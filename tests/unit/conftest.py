"""What the unit tests share."""

from __future__ import annotations

import os
import traceback
import warnings
from typing import TYPE_CHECKING

import pytest

from pybwrap.plan.filesystem import plan_filesystem
from pybwrap.policy.profile import Access, FilesystemEntry, PermissionProfile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pybwrap.plan.filesystem import FilesystemPlan

NOBODY = 65534


def run_unprivileged(function: Callable[[], None]) -> None:
    """Calls *function* in a forked child that is not root, and fails as it fails."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # A test runner may have threads; the child below takes no lock that one of them could hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        failure = b""
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            function()
        except BaseException:  # noqa: BLE001 - whatever it is, the parent reports it
            failure = traceback.format_exc().encode()
        os.write(writing, failure)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        failure = pipe.read()
    os.waitpid(pid, 0)
    if failure:
        pytest.fail(failure.decode(), pytrace=False)


def plan_for(
    rules: Mapping[str | Path, str],
    cwd: str | Path = "/",
    *,
    tmpdir: str | Path | None = None,
    protected: tuple[str, ...] = (),
    hidden: tuple[str, ...] = (),
) -> FilesystemPlan:
    """The plan for *rules*, which must exist unless they are implied; without protected names unless given."""
    entries = [FilesystemEntry(str(location), Access(access)) for location, access in rules.items()]
    environment = {} if tmpdir is None else {"TMPDIR": str(tmpdir)}
    return plan_filesystem(
        PermissionProfile(entries, protected_names=protected),
        str(cwd),
        environment,
        hidden_paths=hidden,
    )


def steps(plan: FilesystemPlan, base: Path) -> list[str]:
    """The operations at or below *base*, in order, as bubblewrap's words with *base* left out.

    What is bound on itself, or on nothing but its own place, is named once: `--bind /src` for `--bind X/src X/src`.
    """
    found = []
    for operation in plan.operations:
        if operation.destination != str(base) and not operation.destination.startswith(f"{base}/"):
            continue
        words = operation.arguments()
        if operation.source == operation.destination:
            del words[-2]
        found.append(" ".join(words).replace(str(base), "") if words[-1] != str(base) else f"{' '.join(words[:-1])} .")
    return found
