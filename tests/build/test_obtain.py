from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import obtain
from obtain import PIN, SourceError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in the place of bwrap_src/, no network, and nothing said by the environment."""
    monkeypatch.delenv("PYBWRAP_BUBBLEWRAP_SOURCE", raising=False)
    monkeypatch.setenv("PYBWRAP_BUBBLEWRAP_OFFLINE", "1")
    folder = tmp_path / "bwrap_src"
    folder.mkdir()
    monkeypatch.setattr(obtain, "HERE", folder)
    return folder


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "unpacked"


@pytest.fixture
def unpacked(pinned_tarball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with monkeypatch.context() as patch:
        patch.setenv("PYBWRAP_BUBBLEWRAP_SOURCE", str(pinned_tarball))
        return obtain.obtain(tmp_path / "good")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class TestGivenSource:
    def test_tarball(self, into: Path, pinned_tarball: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYBWRAP_BUBBLEWRAP_SOURCE", str(pinned_tarball))
        assert names(obtain.obtain(into)) == set(PIN.digests)

    def test_folder(self, into: Path, unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (unpacked / "config.h").write_text("#error not pinned")
        monkeypatch.setenv("PYBWRAP_BUBBLEWRAP_SOURCE", str(unpacked))
        assert names(obtain.obtain(into)) == set(PIN.digests)

    def test_wrong_tarball_is_refused_whatever_else_there_is(
        self, own_folder: Path, unpacked: Path, pinned_tarball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.copy(pinned_tarball, own_folder / PIN.tarball)
        wrong = tmp_path / "wrong.tar.xz"
        wrong.write_bytes(pinned_tarball.read_bytes() + b"\0")
        monkeypatch.setenv("PYBWRAP_BUBBLEWRAP_SOURCE", str(wrong))
        with pytest.raises(SourceError, match=r"wrong\.tar\.xz is not bubblewrap .* as pinned"):
            obtain.obtain(unpacked)

    def test_changed_file_in_a_folder_is_refused(
        self, into: Path, unpacked: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with (unpacked / "utils.c").open("a") as file:
            file.write("\n")
        monkeypatch.setenv("PYBWRAP_BUBBLEWRAP_SOURCE", str(unpacked))
        with pytest.raises(SourceError, match=r"utils\.c is not bubblewrap"):
            obtain.obtain(into)
        assert not into.exists()

    def test_missing(self, into: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYBWRAP_BUBBLEWRAP_SOURCE", str(tmp_path / "nowhere"))
        with pytest.raises(SourceError, match=r"cannot read .*nowhere: No such file"):
            obtain.obtain(into)

    def test_folder_has_no_tarball_for_an_sdist(self, unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYBWRAP_BUBBLEWRAP_SOURCE", str(unpacked))
        with pytest.raises(SourceError, match="is a folder"):
            obtain.tarball()


class TestCopy:
    def test_is_used(self, into: Path, own_folder: Path, pinned_tarball: Path) -> None:
        shutil.copy(pinned_tarball, own_folder / PIN.tarball)
        assert names(obtain.obtain(into)) == set(PIN.digests)

    def test_wrong_one_is_not_passed_over(self, into: Path, own_folder: Path) -> None:
        (own_folder / PIN.tarball).write_bytes(b"half a download")
        with pytest.raises(SourceError, match="as pinned"):
            obtain.obtain(into)


class TestUnpacked:
    def test_is_reused_without_any_source(self, unpacked: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in unpacked.iterdir()}
        assert obtain.obtain(unpacked) == unpacked
        assert {path: path.stat().st_mtime_ns for path in unpacked.iterdir()} == before

    def test_changed_file_is_restored(self, unpacked: Path, own_folder: Path, pinned_tarball: Path) -> None:
        shutil.copy(pinned_tarball, own_folder / PIN.tarball)
        (unpacked / "utils.c").write_text("int changed;")
        obtain.obtain(unpacked)
        assert b"int changed;" not in (unpacked / "utils.c").read_bytes()


@pytest.fixture
def fake_apt(tmp_path: Path, pinned_tarball: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An apt whose index lists a newer release than the pinned one; returns the log of its commands."""
    folder = tmp_path / "bin"
    folder.mkdir()
    log = tmp_path / "apt.log"
    script = f"""#!/bin/sh
echo "$*" >> {log}
case "$*" in
*indextargets*)
    echo 'contrib bookworm http://mirror.invalid/debian/'
    echo 'main bookworm http://mirror.invalid/debian/'
    echo 'main bookworm-security http://mirror.invalid/security/' ;;
*--print-uris*)
    echo "'http://mirror.invalid/pool/b/bubblewrap/bubblewrap_9-1.dsc' bubblewrap_9-1.dsc 2 SHA256:0"
    echo "'http://mirror.invalid/pool/b/bubblewrap/bubblewrap_9.orig.tar.xz' bubblewrap_9.orig.tar.xz 2 SHA256:0" ;;
*download-file*)
    for argument; do previous=$target; target=$last; last=$argument; done
    cp "${{FAKE_APT_SERVES:-{pinned_tarball}}}" "$target" ;;
esac
"""
    for name in ("apt-get", "apt-helper"):
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(obtain, "APT_HELPER", str(folder / "apt-helper"))
    monkeypatch.delenv("PYBWRAP_BUBBLEWRAP_OFFLINE")
    # No test reaches upstream: what it would give is a file of the test's own.
    monkeypatch.setattr(obtain, "PIN", dataclasses.replace(PIN, url=(tmp_path / "upstream").as_uri()))
    return log


class TestNetwork:
    def test_debian_pool_has_the_pinned_release_when_the_index_has_moved_on(
        self, into: Path, own_folder: Path, fake_apt: Path
    ) -> None:
        assert names(obtain.obtain(into)) == set(PIN.digests)
        assert names(own_folder) == {PIN.tarball}, "the next build has its copy"
        _, update, source, download = fake_apt.read_text().splitlines()
        assert f"http://mirror.invalid/pool/b/bubblewrap/{PIN.tarball}" in download
        assert f"SHA256:{PIN.sha256}" in download
        for command in (update, source, download):
            assert "-oDir::Etc::sourceparts=/dev/null" in command
            assert "-oDir::State=" in command
            assert "-oDir::Cache=" in command

    def test_upstream_is_asked_when_debian_fails(
        self, into: Path, fake_apt: Path, pinned_tarball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FAKE_APT_SERVES", "/nonexistent")
        shutil.copy(pinned_tarball, tmp_path / "upstream")
        assert names(obtain.obtain(into)) == set(PIN.digests)
        assert fake_apt.read_text().count("download-file") == len(("trixie-security", "trixie", "sid"))

    def test_wrong_bytes_from_every_place_are_refused(
        self, into: Path, own_folder: Path, fake_apt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wrong = tmp_path / "upstream"
        wrong.write_bytes(b"another release")
        monkeypatch.setenv("FAKE_APT_SERVES", str(wrong))
        with pytest.raises(SourceError) as caught:
            obtain.obtain(into)
        assert str(caught.value).count("as pinned") == 2
        assert names(own_folder) == set()
        assert not into.exists()
        assert fake_apt.exists()

    def test_nothing_found_says_what_was_tried_and_what_to_do(
        self, into: Path, own_folder: Path, fake_apt: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FAKE_APT_SERVES", "/nonexistent")
        with pytest.raises(SourceError) as caught:
            obtain.obtain(into)
        first, given, copy, debian, upstream, remedy = str(caught.value).splitlines()
        assert first == f"cannot obtain bubblewrap {PIN.version}. Tried:"
        assert "PYBWRAP_BUBBLEWRAP_SOURCE: not set" in given
        assert str(own_folder / PIN.tarball) in copy
        for suite in ("trixie-security", "trixie", "sid"):
            assert f"{suite}: " in debian
        assert "upstream" in upstream
        assert PIN.sha256 in remedy
        assert fake_apt.exists()

    def test_offline_reaches_nothing(self, into: Path, fake_apt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYBWRAP_BUBBLEWRAP_OFFLINE", "1")
        with pytest.raises(SourceError, match="forbidden by PYBWRAP_BUBBLEWRAP_OFFLINE=1"):
            obtain.obtain(into)
        assert not fake_apt.exists()

    def test_machine_without_apt(self, into: Path, fake_apt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        with pytest.raises(SourceError, match="apt-get is not on this machine"):
            obtain.obtain(into)
        assert not fake_apt.exists()

    def test_the_real_debian_archive(self) -> None:
        try:
            content = obtain._from_debian()
        except SourceError as error:
            pytest.skip(f"no Debian archive to be reached from here: {error}")
        assert obtain._verified(content, PIN.sha256, "Debian") == content


def test_program(into: Path, pinned_tarball: Path) -> None:
    command: list[str | Path] = [sys.executable, ROOT / "bwrap_src" / "obtain.py", "--into", into]
    environment = os.environ | {"PYBWRAP_BUBBLEWRAP_SOURCE": str(pinned_tarball)}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout == f"{into}\n"

    environment["PYBWRAP_BUBBLEWRAP_SOURCE"] = "/nonexistent"
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "pybwrap: cannot read /nonexistent: No such file or directory\n")


def test_every_pinned_file_states_the_licence_it_is_pinned_with(unpacked: Path) -> None:
    for licence, files in PIN.files.items():
        version = licence.split("-")[1].removesuffix(".0")
        for name in files:
            text = " ".join((unpacked / name).read_text().replace("*", " ").split())
            assert f"version {version} of the License, or" in text, name
