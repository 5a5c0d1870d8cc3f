"""Bubblewrap's own tests: what passes with a plain build of the same source must pass with everything made of it."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.upstream.conftest import COMMAND, EXECUTABLE, NEEDED_TOOLS, PLAIN, SYSTEM_PATH, cannot

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.upstream.conftest import Suite

SCRIPTS = (
    "test-run.sh",
    "test-sandbox.py",
    "test-seccomp.py",  # needs python3-seccomp, and says so when it is skipped
    "test-specifying-pidns.sh",
    "test-specifying-userns.sh",
)


@pytest.mark.parametrize("target", [COMMAND, EXECUTABLE])
@pytest.mark.parametrize("script", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in SCRIPTS])
@pytest.mark.timeout(600)
def test_passes_what_plain_bubblewrap_passes(
    suite: Suite, script: str, target: str, record_property: Callable[[str, object], None]
) -> None:
    for tool, package in NEEDED_TOOLS.items():
        if shutil.which(tool, path=SYSTEM_PATH) is None:
            cannot(f"bubblewrap's test suite needs {tool}: apt-get install {package}")
    expected = suite.run(script, PLAIN)
    if not expected.passed:
        cannot(f"{script} passes nothing with plain bubblewrap: {expected.skipped or expected.describe()}")

    outcome = suite.run(script, target)

    record_property("subtests", len(expected.passed))
    # The shell scripts end at the first failure: what is named first is what failed, the rest was not reached.
    missing = [name for name in expected.passed if name not in outcome.passed]
    assert not missing, f"{script} with {target}: did not pass {missing}\n{outcome.describe()}"


@pytest.mark.xdist_group("test-utils")
def test_utility_functions_behave_the_same_with_the_seams(suite: Suite) -> None:
    expected = suite.run_test_utils(with_seams=False)
    outcome = suite.run_test_utils(with_seams=True)

    assert expected.passed, expected.describe()
    assert outcome.passed == expected.passed, outcome.describe()
    assert outcome.status == expected.status == 0
