"""csrc/capability_names.c against the kernel's own header."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
PROGRAM = """
#include <errno.h>
#include <stdio.h>
#include <sys/capability.h>
int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        cap_value_t value = -1;
        int result = cap_from_name(argv[i], &value);
        printf("%d\\n", result == 0 ? value : -errno);
    }
}
"""
EINVAL = 22


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("capabilities") / "program"
    command: list[str | Path] = ["cc", "-I", CSRC / "compat", "-o", target, CSRC / "capability_names.c", "-x", "c", "-"]
    subprocess.run(command, input=PROGRAM, text=True, check=True)
    return target


def numbers(program: Path, *names: str) -> list[int]:
    done = subprocess.run([program, *names], check=True, capture_output=True, text=True)
    return [int(line) for line in done.stdout.splitlines()]


def test_every_name_of_the_kernel_header(program: Path) -> None:
    header = Path("/usr/include/linux/capability.h").read_text()
    known = {name: int(number) for name, number in re.findall(r"#define (CAP_[A-Z_]+)\s+(\d+)$", header, re.MULTILINE)}
    assert len(known) >= 41
    assert numbers(program, *known) == list(known.values())
    assert numbers(program, *map(str.lower, known)) == list(known.values())


@pytest.mark.parametrize(("name", "number"), [("0", 0), ("21", 21), ("0x15", 21), ("63", 63)])
def test_number(program: Path, name: str, number: int) -> None:
    assert numbers(program, name) == [number]


@pytest.mark.parametrize("name", ["", "cap_", "chown", "cap_chown ", "cap_chownx", "64", "-1", "1x", "all"])
def test_anything_else_is_refused(program: Path, name: str) -> None:
    assert numbers(program, name) == [-EINVAL]
