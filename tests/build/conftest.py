from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import obtain

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def pinned_tarball() -> Path:
    """The verified tarball in the checkout; the installation that is under test has left it there."""
    return obtain.tarball()


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory, pinned_tarball: Path) -> Path:
    """A copy of what a build needs, with the tarball and with nothing that a build has made."""
    copy = tmp_path_factory.mktemp("checkout")
    generated = shutil.ignore_patterns("*.so", "_helper", "COPYING", "__pycache__")
    for name in ("bwrap_src", "csrc", "pybwrap"):
        shutil.copytree(ROOT / name, copy / name, ignore=generated)
    for name in ("LICENSE", "MANIFEST.in", "README.md", "build_ext.py", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, copy)
    shutil.copy(pinned_tarball, copy / "bwrap_src" / obtain.PIN.tarball)
    return copy
