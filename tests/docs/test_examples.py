"""Every example of the documentation does what it shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import clean_environment

CHECKOUT = Path(__file__).parents[2]
DOCUMENTS = (CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md")))
NOT_RUN = {"json", "sh", "text"}
"""What a block holds that shows a form or a moment, and not something to repeat."""

FENCE = re.compile(r"^```(?P<language>.*)\n(?P<content>(?:.*\n)*?)^```$", re.MULTILINE)
PRINTED = re.compile(r"^ *print\(.*\)  # (.*)$", re.MULTILINE)

# The words that a reader types are those of an installation that is active.
SHELL = f"""
python() {{ {sys.executable!r} "$@"; }}
pybwrap() {{ {sys.executable!r} -m pybwrap "$@"; }}
"""


class Block(NamedTuple):
    """A fenced block; *place* is `FILE:LINE`."""

    place: str
    language: str
    content: str


def blocks_of(document: Path) -> list[Block]:
    text = document.read_text()
    return [
        Block(f"{document.name}:{text.count(chr(10), 0, found.start()) + 1}", found["language"], found["content"])
        for found in FENCE.finditer(text)
    ]


BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document)]


def blocks_in(language: str) -> pytest.MarkDecorator:
    found = [pytest.param(block, id=block.place) for block in BLOCKS if block.language == language]
    return pytest.mark.parametrize("block", found)


def run(command: list[str], workspace: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=workspace,
        env=clean_environment(LC_ALL="C"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
        check=False,
    )


def transcript(block: Block) -> list[tuple[str, str]]:
    """The commands of a console block, each with what it is said to print."""
    assert block.content.startswith("$ ")
    steps = (step.partition("\n") for step in re.split(r"^\$ ", block.content, flags=re.MULTILINE)[1:])
    return [(command, output) for command, _, output in steps]


def test_examples_are_found() -> None:
    assert {"python", "console"} <= {block.language for block in BLOCKS}


def test_every_block_is_run_or_meant_not_to_be() -> None:
    assert [block.place for block in BLOCKS if block.language not in {"python", "console", *NOT_RUN}] == []


@pytest.mark.parametrize("document", [pytest.param(document, id=document.name) for document in DOCUMENTS])
def test_every_fence_belongs_to_a_block(document: Path) -> None:
    assert document.read_text().count("```") == 2 * len(blocks_of(document))


@blocks_in("python")
def test_a_program_runs_and_prints_what_its_comments_say(block: Block, workspace: Path) -> None:
    """A line `print(...)  # text` prints that text; without such lines, what is printed is not looked at."""
    program = workspace / "example.py"
    program.write_text(block.content)

    done = run([sys.executable, "-W", "error", str(program)], workspace)

    assert done.returncode == 0, done.stdout
    assert "Traceback" not in done.stdout  # a warning that became an error where nothing can be raised
    if promised := PRINTED.findall(block.content):
        assert done.stdout.splitlines() == promised


@blocks_in("console")
def test_a_session_prints_what_it_shows(block: Block, workspace: Path) -> None:
    for command, expected in transcript(block):
        assert run(["bash", "-c", SHELL + command], workspace).stdout == expected, command


def links_of(document: Path) -> list[str]:
    return re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text())


@pytest.mark.parametrize("document", [pytest.param(document, id=document.name) for document in DOCUMENTS])
def test_what_a_document_links_to_is_there(document: Path) -> None:
    assert [link for link in links_of(document) if not (document.parent / link).exists()] == []
