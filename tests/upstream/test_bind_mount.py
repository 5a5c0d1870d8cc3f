"""The fast bind mounts of csrc/bind_mount.c leave the same mount table as upstream's own function."""

from __future__ import annotations

import random
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.upstream.conftest import EXECUTABLE, PLAIN

if TYPE_CHECKING:
    from tests.upstream.conftest import Suite

pytestmark = pytest.mark.xdist_group("upstream")

FLAGS = ("ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime", "relatime")
PROPAGATION = ("shared", "slave", "private", "unbindable")
OPTIONS = ("--bind", "--ro-bind", "--dev-bind")


def layout(chance: random.Random) -> list[str]:
    """Shell lines that mount things on, below and beside each other under /srv."""
    lines = ["mount -t tmpfs layout /srv", "mkdir -p /srv/a/b/c /srv/d/e /srv/target"]
    mounted = ["/srv"]
    for number in range(chance.randint(2, 7)):
        place = f"{chance.choice(mounted)}/m{number}"
        flags = ",".join(chance.sample(FLAGS[1:], chance.randint(0, 3))) or "rw"
        if chance.random() < 0.6 or len(mounted) == 1:
            lines.append(f"mkdir -p {place} && mount -t tmpfs -o {flags} t{number} {place} && mkdir {place}/sub")
        else:
            recursive = chance.choice(("--bind", "--rbind"))
            lines.append(f"mkdir -p {place} && mount {recursive} {chance.choice(mounted)} {place}")
        mounted.append(place)
        if chance.random() < 0.5:
            lines.append(f"mount --make-{chance.choice(PROPAGATION)} {chance.choice(mounted)}")
        if chance.random() < 0.3:
            lines.append(f"mount -o remount,bind,ro {place}")
    return lines


TARGETS = ("/srv/target", "/srv/a/b", "/srv/d/e", "/tmp")  # noqa: S108 - in a namespace of the test's own


def sandbox(chance: random.Random) -> str:
    """bubblewrap's words that bind parts of such a layout, over each other too."""
    words = [f"{chance.choice(OPTIONS)} / /"]
    words += [
        f"{chance.choice(OPTIONS)} {chance.choice(('/srv', '/srv/a', '/srv/d', '/usr'))} {chance.choice(TARGETS)}"
        for _ in range(chance.randint(1, 4))
    ]
    words.append(chance.choice(("", "--remount-ro /tmp", "--tmpfs /tmp --remount-ro /tmp", "--dev /dev --proc /proc")))
    return " ".join(words)


def normalised(table: str) -> list[str]:
    """mountinfo without what cannot be seen, and with numbers of peer groups in their order of appearance.

    A mount that another one on the same point covers keeps its old flags with upstream's function and gets the new
    ones with ours; nobody can reach it.
    """
    rows = [line.split(" ", 5) for line in table.splitlines()]
    covered = {parent for _, parent, _, _, point, _ in rows for row in rows if row[0] == parent and row[4] == point}
    seen: dict[str, int] = {}

    def in_order(match: re.Match[str]) -> str:
        return f"{match[1]}{seen.setdefault(match[2], len(seen))}"

    lines = []
    for number, _, device, root, point, rest in rows:
        if number not in covered:
            rest = re.sub(r"\b(shared:|master:|propagate_from:)(\d+)", in_order, rest)  # noqa: PLW2901
            lines.append(f"{'new' if device.startswith('0:') else device} {root} {point} {rest}")
    return lines


@pytest.mark.parametrize("seed", range(24))
def test_the_mount_table_is_the_same_as_with_upstreams_function(suite: Suite, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - layouts, not secrets
    # What the kernel refuses (a read-only parent, a loop of mounts) is left out of the layout.
    made = "\n".join(f"{{ {line}; }} 2>/dev/null || true" for line in layout(chance))
    words = sandbox(chance)

    def table(target: str) -> tuple[int, list[str], str]:
        script = f"{made}\nexec {suite.executable(target)} --unshare-pid {words} cat /proc/self/mountinfo"
        done = subprocess.run(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return done.returncode, normalised(done.stdout), done.stderr.partition(":")[0]

    plain = table(PLAIN)
    assert plain[1] or plain[0] != 0
    assert table(EXECUTABLE) == plain
