"""The build: obtains bubblewrap, compiles it and csrc/ once, and links that into ``_native`` and into ``_helper``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist
from setuptools.errors import CompileError, LinkError
from setuptools.modified import newer_group

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "bwrap_src")]  # a build backend does not run this file from its own folder

from build_ext import COMPAT, CSRC, LINK_FLAGS, OUR_FLAGS, UPSTREAM_FLAGS  # noqa: E402 - found through the line above
from obtain import PIN, SourceError, obtain, tarball  # noqa: E402 - likewise

# What a build needs beside Python: (what, Debian package, header that it brings, how to link against it)
NEEDS: tuple[tuple[str, str, str, list[str]], ...] = (
    ("a C compiler and the C library's headers", "gcc libc6-dev", "stdio.h", []),
    ("the static C library", "libc6-dev", "stdio.h", ["-static"]),
    ("libseccomp's header", "libseccomp-dev", "seccomp.h", ["-lseccomp"]),
    ("Python's headers", "python3-dev", "Python.h", []),
)


class BuildExt(build_ext):
    """Builds the extension modules and, beside them, the helper executable."""

    compiler: Any  # setuptools has no public name for its type

    def build_extensions(self) -> None:
        """Compile everything; a missing tool or library ends the build with the name of its Debian package."""
        try:
            ours = {path.stem: path for path in sorted(CSRC.glob("*.c"))}
            native, helper = ours.pop("native"), ours.pop("helper")
            upstream = [name for name in PIN.digests if name.endswith(".c")]
            shared = [
                *self.compile((SOURCE / name for name in upstream), UPSTREAM_FLAGS),
                *self.compile(ours.values(), OUR_FLAGS),
            ]
            for extension in self.extensions:
                if extension.name == "pybwrap._native":
                    extension.extra_objects = [*shared, *self.compile([native], OUR_FLAGS)]
                    extension.depends = extension.extra_objects
            super().build_extensions()
            self.link_helper([*shared, *self.compile([helper], OUR_FLAGS)])
        except (CompileError, LinkError) as error:
            self.explain_missing()
            raise SystemExit(f"pybwrap: the C code does not compile: {error}") from error

    def compile(self, sources: Iterable[Path], flags: Sequence[str]) -> list[str]:
        """Compile what is older than its source or than any header or flag; return the objects."""
        headers = [str(path) for folder in (CSRC, SOURCE) for path in folder.rglob("*.h")]
        depends = [*headers, "build_ext.py", "setup.py", "bwrap_src/upstream.toml"]
        objects = []
        for source in map(str, sources):
            (target,) = self.compiler.object_filenames([source], output_dir=self.build_temp)
            if self.force or newer_group([source, *depends], target):
                self.compiler.compile(
                    [source],
                    output_dir=self.build_temp,
                    macros=[
                        ("PYBWRAP_BUBBLEWRAP_VERSION", f'"{PIN.version}"'),
                        ("PYBWRAP_FILE_" + Path(source).stem.replace("-", "_"), "1"),
                    ],
                    include_dirs=[str(COMPAT), str(CSRC), str(SOURCE)],
                    extra_postargs=list(flags),
                )
            objects.append(target)
        return objects

    def link_helper(self, objects: list[str]) -> None:
        """Link the helper, position-independent where this toolchain has what a static one needs for that."""
        target = Path(self.build_lib, "pybwrap", "_helper")
        if not self.force and not newer_group(objects, str(target)):
            return
        for static in ("-static-pie", "-static"):
            try:
                self.compiler.link_executable(objects, str(target), extra_postargs=[static, *LINK_FLAGS])
            except LinkError:
                if static == "-static":
                    raise
            else:
                break
        target.chmod(0o755)  # whatever the umask: the wheel carries the mode

    def copy_extensions_to_source(self) -> None:
        """Put the helper in the package too, for in-place and editable builds."""
        super().copy_extensions_to_source()
        target = HERE / "pybwrap" / "_helper"
        target.unlink(missing_ok=True)  # one that runs cannot be written to
        shutil.copy2(Path(self.build_lib, "pybwrap", "_helper"), target)

    def explain_missing(self) -> None:
        """End the build with one line if something that it needs is not installed."""
        for what, package, header, link in NEEDS:
            command = [
                *self.compiler.compiler,
                *("-x", "c", "-", "-o", str(Path(self.build_temp, "probe"))),
                *(f"-I{folder}" for folder in self.compiler.include_dirs),
                *link,
            ]
            program = f"#include <{header}>\nint main(void) {{ return 0; }}\n"
            try:
                subprocess.run(command, input=program, text=True, check=True, stderr=subprocess.DEVNULL)
            except (OSError, subprocess.CalledProcessError):
                raise SystemExit(f"pybwrap: building needs {what}: apt-get install {package}") from None


class BdistWheel(bdist_wheel):
    """Adds the bill of materials to the wheel (PEP 770)."""

    def write_wheelfile(self, wheelfile_base: str, *args: str, **kwargs: str) -> None:
        """Write it beside WHEEL, which every kind of build writes through this method."""
        super().write_wheelfile(wheelfile_base, *args, **kwargs)
        folder = Path(wheelfile_base, "sboms")
        folder.mkdir(exist_ok=True)
        (folder / "pybwrap.cdx.json").write_text(json.dumps(self.bill_of_materials(), indent=2) + "\n")

    def bill_of_materials(self) -> dict[str, Any]:
        """Return what is compiled into the wheel, in CycloneDX 1.6."""
        bubblewrap = {
            "type": "application",
            "bom-ref": "bubblewrap",
            "name": "bubblewrap",
            "version": PIN.version,
            "licenses": [{"expression": PIN.licence}],
            "purl": f"pkg:github/containers/bubblewrap@v{PIN.version}",
            "hashes": [{"alg": "SHA-256", "content": PIN.sha256}],
            "externalReferences": [{"type": "source-distribution", "url": PIN.url}],
        }
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "libc unknown").partition(" ")
        libc = {"type": "library", "bom-ref": "libc", "name": name, "version": version, "scope": "required"}
        return {
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "metadata": {
                "component": {
                    "type": "library",
                    "bom-ref": "pybwrap",
                    "name": "pybwrap",
                    "version": self.distribution.get_version(),
                    "purl": f"pkg:pypi/pybwrap@{self.distribution.get_version()}",
                },
            },
            "components": [bubblewrap, libc],
            "dependencies": [{"ref": "pybwrap", "dependsOn": ["bubblewrap", "libc"]}],
        }


class Sdist(sdist):
    """Carries bubblewrap's tarball, so that building from an sdist does not fetch it."""

    def run(self) -> None:
        """Put the tarball where MANIFEST.in takes it from."""
        found = tarball()
        if found.parent != HERE / "bwrap_src":
            shutil.copyfile(found, HERE / "bwrap_src" / PIN.tarball)
        super().run()


try:
    SOURCE = obtain().relative_to(HERE)
except SourceError as error:
    sys.exit(f"pybwrap: {error}")
# Here and not in a command: even the metadata that pip asks for first names this file.
shutil.copyfile(SOURCE / "COPYING", HERE / "bwrap_src" / "COPYING")

# The wheel's timestamps: fixed, so that the same source gives the same wheel.
os.environ.setdefault("SOURCE_DATE_EPOCH", str(int(PIN.released.timestamp())))

setup(
    cmdclass={"build_ext": BuildExt, "bdist_wheel": BdistWheel, "sdist": Sdist},
    cffi_modules=["build_ext.py:native", "build_ext.py:seccomp"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
