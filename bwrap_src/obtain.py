#!/usr/bin/env python3
"""Obtain bubblewrap's source, verify it against the pin in ``upstream.toml``, and leave it in a folder.

    python bwrap_src/obtain.py [--into DIR]

The places are tried in this order, and whatever they give is verified before a byte of it is used:

1. ``PYBWRAP_BUBBLEWRAP_SOURCE``: a folder or a tarball. It is the only place tried when it is set.
2. The pinned tarball beside this file; an sdist carries it there.
3. Debian's source package, from the mirrors that this machine's apt already uses.
4. Upstream's own release tarball.

Places 3 and 4 leave the tarball beside this file, so that they are asked once. ``PYBWRAP_BUBBLEWRAP_OFFLINE=1`` forbids
both.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

HERE = Path(__file__).resolve().parent
DEBIAN_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
APT_HELPER = "/usr/lib/apt/apt-helper"
FETCH_TIMEOUT = 300  # seconds for one command or transfer: an apt index of a slow mirror is the longest of them
SIZE_LIMIT = 16 << 20  # bytes: a hundred times the tarball, so that a wrong answer cannot fill the disk


class SourceError(Exception):
    """The pinned source could not be had; the message says where that failed and what to do."""


@dataclass(frozen=True)
class Pin:
    """What ``upstream.toml`` says."""

    version: str
    released: datetime
    tarball: str
    sha256: str
    url: str
    files: dict[str, dict[str, str]]
    """Licence (SPDX) -> file name -> SHA-256."""
    licence_text: dict[str, str]

    @classmethod
    def read(cls, path: Path = HERE / "upstream.toml") -> Pin:
        """Read the pin; any key missing or unknown is a ``TypeError``."""
        return cls(**tomllib.loads(path.read_text()))

    @property
    def digests(self) -> dict[str, str]:
        """File name -> SHA-256, of everything that is taken from the release."""
        return {name: digest for group in (*self.files.values(), self.licence_text) for name, digest in group.items()}

    @property
    def licence(self) -> str:
        """The licences of what is compiled in, as an SPDX expression."""
        return " AND ".join(sorted(self.files))


PIN = Pin.read()
DEFAULT_FOLDER = HERE.parent / "build" / f"bubblewrap-{PIN.version}"


def obtain(into: Path = DEFAULT_FOLDER) -> Path:
    """Leave the verified files in ``into`` and return it; a folder that already verifies is used as it is.

    Raises SourceError.
    """
    given = os.environ.get("PYBWRAP_BUBBLEWRAP_SOURCE")
    if not given and _is_intact(into):
        return into
    source = Path(given) if given else tarball()
    files = _read_folder(source) if source.is_dir() else _read_tarball(source)
    into.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        target = into / name
        if not target.is_file() or target.read_bytes() != content:  # keeps the mtime that rebuilds go by
            target.write_bytes(content)
    return into


def tarball() -> Path:
    """Return the verified tarball: the one given, or the one beside this file, fetched if it is not there yet.

    Raises SourceError.
    """
    given = os.environ.get("PYBWRAP_BUBBLEWRAP_SOURCE")
    copy = Path(given) if given else HERE / PIN.tarball
    if copy.is_dir():
        raise SourceError(f"PYBWRAP_BUBBLEWRAP_SOURCE={copy} is a folder: give {PIN.tarball}, an sdist carries that")
    if given or copy.exists():
        _verify(copy)
    else:
        _fetch(copy)
    return copy


def _is_intact(folder: Path) -> bool:
    """Whether every pinned file is in ``folder`` with its pinned content."""
    try:
        _read_folder(folder)
    except SourceError:
        return False
    return True


def _read_folder(folder: Path) -> dict[str, bytes]:
    """Return the pinned files of ``folder``, each verified."""
    return {name: _verified(_read(folder / name), digest, folder / name) for name, digest in PIN.digests.items()}


def _read_tarball(path: Path) -> dict[str, bytes]:
    """Return the pinned files of the tarball, each verified.

    Nothing is extracted: the names come from the pin, so no member can choose where it is written.
    """
    _verify(path)
    files: dict[str, bytes] = {}
    with tarfile.open(path) as archive:
        for name, digest in PIN.digests.items():
            member = archive.extractfile(f"bubblewrap-{PIN.version}/{name}")
            files[name] = _verified(member.read() if member else b"", digest, path / name)
    return files


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error


def _verify(path: Path) -> None:
    _verified(_read(path), PIN.sha256, path)


def _verified(content: bytes, digest: str, origin: Path | str) -> bytes:
    """Return ``content`` if it has the pinned SHA-256; otherwise raise SourceError."""
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise SourceError(
            f"{origin} is not bubblewrap {PIN.version} as pinned in bwrap_src/upstream.toml: "
            f"its SHA-256 is {found}, not {digest}. Remove it or replace it by the pinned release."
        )
    return content


def _fetch(target: Path) -> None:
    """Put the verified tarball at ``target`` from the first place that has it."""
    if os.environ.get("PYBWRAP_BUBBLEWRAP_OFFLINE") == "1":
        failures = ["the network: forbidden by PYBWRAP_BUBBLEWRAP_OFFLINE=1"]
    else:
        failures = []
        for place, fetch in (("Debian's source package", _from_debian), ("upstream's release", _from_upstream)):
            print(f"pybwrap: obtaining bubblewrap {PIN.version} from {place}", file=sys.stderr, flush=True)
            try:
                content = _verified(fetch(), PIN.sha256, f"what {place} gave")
            except SourceError as error:
                failures.append(f"{place}: {error}")
            else:
                # Whole or not at all: a build that is killed or runs beside this one never sees half a tarball.
                with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as partial:
                    partial.write(content)
                Path(partial.name).chmod(0o644)
                Path(partial.name).replace(target)
                return
    tried = "\n".join(
        f"  - {failure}" for failure in ("PYBWRAP_BUBBLEWRAP_SOURCE: not set", f"{target}: not there", *failures)
    )
    raise SourceError(
        f"cannot obtain bubblewrap {PIN.version}. Tried:\n{tried}\n"
        f"Put {PIN.tarball} (SHA-256 {PIN.sha256}) there, or set PYBWRAP_BUBBLEWRAP_SOURCE to it."
    )


def _from_upstream() -> bytes:
    try:
        with urllib.request.urlopen(PIN.url, timeout=60) as response:  # noqa: S310 - the URL is the pin's own
            content: bytes = response.read(SIZE_LIMIT)
    except OSError as error:
        raise SourceError(f"{PIN.url}: {error}") from error
    return content


def _from_debian() -> bytes:
    """Fetch the tarball from the folder of the archive in which Debian keeps this package's sources."""
    if shutil.which("apt-get") is None:
        raise SourceError("apt-get is not on this machine")
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="pybwrap-apt-") as scratch:
        for mirror, suite in _debian_suites():
            try:
                return _from_mirror(mirror, suite, Path(scratch))
            except SourceError as error:
                failures.append(f"{suite}: {error}")
    raise SourceError("; ".join(failures) or "apt has no Debian mirror configured")


def _debian_suites() -> Iterator[tuple[str, str]]:
    """Yield (mirror, suite) pairs that may have the package, the likeliest first.

    apt itself is asked for its mirrors, as only apt reads every form that its sources can have.
    """
    listing = _run("apt-get", "indextargets", "--no-release-info", "--format", "$(COMPONENT) $(RELEASE) $(REPO_URI)")
    targets = dict.fromkeys(tuple(line.split()) for line in listing.splitlines() if line.startswith("main "))
    security = dict.fromkeys(uri for _, release, uri in targets if release.endswith("-security"))
    others = dict.fromkeys(uri for _, release, uri in targets if "-" not in release)
    yield from ((uri, "trixie-security") for uri in security)
    # One pool serves every suite of a mirror, so `sid` also finds what it has itself moved on from.
    yield from ((uri, suite) for uri in others for suite in ("trixie", "sid"))


def _from_mirror(mirror: str, suite: str, scratch: Path) -> bytes:
    """Ask the mirror's source index where the package lies, then fetch the pinned tarball from there.

    The index only gives the folder: it may list a newer release than the pinned one, whose tarball stays in the pool
    for as long as any suite has it.
    """
    folder = Path(tempfile.mkdtemp(dir=scratch))
    sources = folder / "sources.list"
    sources.write_text(f"deb-src [signed-by={DEBIAN_KEYRING}] {mirror} {suite} main\n")
    # Everything that apt would keep is kept here, so that the machine's own lists and cache stay as they are.
    options = [
        f"-oDir::Etc::sourcelist={sources}",
        "-oDir::Etc::sourceparts=/dev/null",
        f"-oDir::State={folder}/state",
        f"-oDir::Cache={folder}/cache",
        "-oAPT::Sandbox::User=root",  # the user that apt drops to could not write here; it matters to root alone
        "-oAcquire::Retries=1",
    ]
    for empty in ("state/lists/partial", "cache/archives/partial"):
        (folder / empty).mkdir(parents=True)
    _run("apt-get", "-qq", *options, "update")
    uris = _run("apt-get", "-qq", *options, "source", "--print-uris", "bubblewrap")
    pool = uris.partition("'")[2].partition("'")[0].rpartition("/")[0]
    target = folder / PIN.tarball
    _run(APT_HELPER, *options, "download-file", f"{pool}/{PIN.tarball}", str(target), f"SHA256:{PIN.sha256}")
    return _read(target)


def _run(*command: str) -> str:
    """Run an apt command and return what it printed; SourceError with its last error line if it fails."""
    try:
        done = subprocess.run(
            command,
            check=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=FETCH_TIMEOUT,
            env=os.environ | {"LC_ALL": "C"},
        )
    except subprocess.CalledProcessError as error:
        output: str = error.stderr or error.stdout
        raise SourceError(f"{command[0]}: {' '.join(output.split()) or error}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SourceError(f"{command[0]}: {error}") from error
    return done.stdout


def main() -> None:
    """Run as a program."""
    parser = argparse.ArgumentParser(description=f"Obtain and verify the source of bubblewrap {PIN.version}.")
    parser.add_argument("--into", type=Path, default=DEFAULT_FOLDER, metavar="DIR", help="default: %(default)s")
    try:
        print(obtain(parser.parse_args().into))
    except SourceError as error:
        sys.exit(f"pybwrap: {error}")


if __name__ == "__main__":
    main()
