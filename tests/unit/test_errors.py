"""What went wrong, said in a way that a person and a program can use."""

from __future__ import annotations

import copy
import errno
import pickle
from typing import TYPE_CHECKING

import pytest

from pybwrap.errors import PolicyError, PybwrapError, SetupError, UnsupportedHostError

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    "error",
    [
        SetupError("mount", errno.EPERM, "cannot bind /x", "run as somebody else"),
        SetupError("stage", 0, "no answer"),
    ],
)
@pytest.mark.parametrize("copied", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])  # noqa: S301
def test_a_setup_error_survives_pickling_with_everything_it_says(
    error: SetupError, copied: Callable[[SetupError], SetupError]
) -> None:
    twin = copied(error)
    assert type(twin) is SetupError
    assert (twin.step, twin.errno, twin.what, twin.remedy) == (error.step, error.errno, error.what, error.remedy)
    assert str(twin) == str(error)


def test_a_setup_error_names_the_step_the_object_the_reason_and_the_remedy() -> None:
    error = SetupError("mount", errno.EPERM, "cannot bind /x", "allow user namespaces")
    expected = "cannot set up the sandbox (mount): cannot bind /x: Operation not permitted; allow user namespaces"
    assert str(error) == expected


def test_a_setup_error_without_an_errno_gives_no_reason_of_the_kernel() -> None:
    assert str(SetupError("stage", 0, "no answer")) == "cannot set up the sandbox (stage): no answer"


def test_a_setup_error_is_an_oserror_with_the_kernels_errno() -> None:
    error = SetupError("mount", errno.ENOSPC, "cannot bind /x")
    assert isinstance(error, OSError)
    assert error.errno == errno.ENOSPC


def test_a_policy_error_is_a_value_error() -> None:
    assert issubclass(PolicyError, ValueError)


@pytest.mark.parametrize("kind", [PolicyError, SetupError, UnsupportedHostError])
def test_every_error_is_caught_as_the_packages_own(kind: type[Exception]) -> None:
    assert issubclass(kind, PybwrapError)
