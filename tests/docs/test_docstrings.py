"""Every public name has an example in its docstring, and the examples do what they show."""

from __future__ import annotations

import doctest
import inspect
from typing import TYPE_CHECKING

import pytest

import pybwrap
from pybwrap import aio, bwrap

if TYPE_CHECKING:
    from pathlib import Path

MODULES = (pybwrap, aio, bwrap)
PUBLIC = {f"{module.__name__}.{name}": getattr(module, name) for module in MODULES for name in module.__all__}
OWN = {name: value for name, value in PUBLIC.items() if str(getattr(value, "__module__", "")).startswith("pybwrap")}
"""Those with a docstring of this project; the others are constants, and classes of the standard library."""


def examples_in(name: str, value: object) -> list[doctest.DocTest]:
    # Each stands alone: it imports what it uses.
    found = doctest.DocTestFinder(exclude_empty=True, recurse=not inspect.ismodule(value)).find(
        value, name, module=False, globs={}
    )
    return [test for test in found if test.examples]


DOCUMENTED = OWN | {module.__name__: module for module in MODULES}
EXAMPLES = [example for name, value in DOCUMENTED.items() for example in examples_in(name, value)]


@pytest.mark.parametrize("name", OWN)
def test_a_public_name_has_an_example(name: str) -> None:
    assert name in {example.name for example in EXAMPLES}


@pytest.mark.parametrize("name", sorted(PUBLIC.keys() - OWN.keys() - {"pybwrap.__version__"}))
def test_a_name_without_a_docstring_is_in_the_example_of_another(name: str) -> None:
    module, _, last = name.rpartition(".")
    word = f"{module.rpartition('.')[2]}.{last}"
    assert [example.name for example in EXAMPLES if any(word in part.source for part in example.examples)] != []


@pytest.mark.parametrize("example", [pytest.param(example, id=example.name) for example in EXAMPLES])
def test_an_example_does_what_it_shows(
    example: doctest.DocTest, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    monkeypatch.delenv("TMPDIR", raising=False)
    said: list[str] = []

    result = doctest.DocTestRunner(verbose=False).run(example, out=said.append)

    assert result.attempted > 0
    assert result.failed == 0, "".join(said)
