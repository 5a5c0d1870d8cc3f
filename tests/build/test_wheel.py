"""The built wheel: what is in it, what is not, and that it is the same from everywhere."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import zipfile
from email import message_from_bytes
from typing import TYPE_CHECKING

import pytest

from obtain import PIN

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]

OFFLINE = os.environ | {"PYBWRAP_BUBBLEWRAP_OFFLINE": "1"}
OFFLINE.pop("PYBWRAP_BUBBLEWRAP_SOURCE", None)


def build_wheel(source: Path, into: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", into, source], check=True, env=OFFLINE)
    (wheel,) = into.iterdir()
    return wheel


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(checkout, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def content(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("content")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def dist_info(content: Path) -> Path:
    (folder,) = content.glob("*.dist-info")
    return folder


def output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_one_wheel_for_every_python(wheel: Path) -> None:
    assert wheel.name.split("-", 2)[2] == f"cp311-abi3-linux_{os.uname().machine}.whl"


def test_helper_is_a_static_executable(wheel: Path, content: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        mode = archive.getinfo("pybwrap/_helper").external_attr >> 16
    assert stat.filemode(mode) == "-rwxr-xr-x"
    assert "INTERP" not in output("readelf", "--wide", "--program-headers", content / "pybwrap" / "_helper")


def test_only_the_init_function_is_exported(content: Path) -> None:
    for name in ("_native", "_seccomp"):
        symbols = output("nm", "--dynamic", "--defined-only", content / "pybwrap" / f"{name}.abi3.so")
        assert [line.split()[-1] for line in symbols.splitlines()] == [f"PyInit_{name}"]


def test_only_the_package_is_in_it(content: Path, dist_info: Path) -> None:
    assert {path.name for path in content.iterdir()} == {"pybwrap", dist_info.name}
    suffixes = {path.suffix for path in (content / "pybwrap").rglob("*") if path.is_file()}
    assert suffixes <= {"", ".py", ".pyi", ".so", ".typed"}


def test_licences_travel_with_it(dist_info: Path) -> None:
    metadata = message_from_bytes((dist_info / "METADATA").read_bytes())
    assert metadata["License-Expression"] == f"MIT AND {PIN.licence}"
    files = metadata.get_all("License-File", [])
    assert sorted(files) == ["LICENSE", "bwrap_src/COPYING"]
    assert "MIT License" in (dist_info / "licenses" / "LICENSE").read_text()
    assert "GNU LESSER GENERAL PUBLIC LICENSE" in (dist_info / "licenses" / "bwrap_src" / "COPYING").read_text()


def test_bill_of_materials_names_what_is_compiled_in(dist_info: Path) -> None:
    bill = json.loads((dist_info / "sboms" / "pybwrap.cdx.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    bubblewrap, libc = bill["components"]
    assert (bubblewrap["name"], bubblewrap["version"]) == ("bubblewrap", PIN.version)
    assert bubblewrap["hashes"] == [{"alg": "SHA-256", "content": PIN.sha256}]
    assert bubblewrap["licenses"] == [{"expression": PIN.licence}]
    assert bubblewrap["purl"].startswith("pkg:")
    assert libc["name"]


def test_sdist_builds_the_very_same_wheel_without_a_network(
    checkout: Path, wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("another-folder-of-another-length")
    build: list[str | Path] = [sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", folder]
    subprocess.run(build, cwd=checkout, check=True, env=OFFLINE, capture_output=True)
    (sdist,) = folder.iterdir()
    subprocess.run(["tar", "--extract", "--file", sdist, "--directory", folder], check=True)
    source = folder / sdist.name.removesuffix(".tar.gz")
    assert (source / "bwrap_src" / PIN.tarball).is_file()
    assert not list(source.rglob("*.so"))
    assert build_wheel(source, folder / "wheel").read_bytes() == wheel.read_bytes()


@pytest.mark.parametrize(
    ("fails_on", "package"),
    [("*", "gcc libc6-dev"), ("*-static*", "libc6-dev"), ("*seccomp*", "libseccomp-dev")],
)
def test_what_is_missing_is_named(checkout: Path, tmp_path: Path, fails_on: str, package: str) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text(f'#!/bin/sh\ncase "$*" in {fails_on}) exit 1 ;; esac\nexec cc "$@"\n')
    compiler.chmod(0o755)
    folders: list[str | Path] = ["--build-temp", tmp_path, "--build-lib", tmp_path]
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", *folders],
        cwd=checkout,
        env=OFFLINE | {"CC": str(compiler)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("pybwrap: building needs ")
    assert done.stderr.endswith(f": apt-get install {package}\n")
