"""What is compiled, and how: the two CFFI modules, and the flags of everything in C.

``pybwrap._native`` is what Python sees of csrc/ and of bubblewrap, ``pybwrap._seccomp`` what it sees of libseccomp.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parent
CSRC = Path("csrc")  # relative, as setuptools requires: every command runs in ROOT
COMPAT = CSRC / "compat"

HARDENING = ("-O2", "-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=3")
CONTROL_FLOW = {"x86_64": ("-fcf-protection",), "aarch64": ("-mbranch-protection=standard",)}
COMMON_FLAGS = (
    *HARDENING,
    *CONTROL_FLOW.get(platform.machine(), ()),
    "-fvisibility=hidden",
    f"-ffile-prefix-map={ROOT}=.",  # the same bytes from every folder
)
LINK_FLAGS = ("-Wl,-z,relro,-z,now", "-Wl,-s")

C_FLAGS = (
    *COMMON_FLAGS,
    "-std=gnu11",
    "-D_GNU_SOURCE",
    "-UNDEBUG",  # Python's own flags switch assertions off, and bubblewrap's are part of its checks
    "-Werror=implicit-function-declaration",  # a seam that is not declared must not become a guess
)
OUR_FLAGS = (*C_FLAGS, "-Wall", "-Wextra", *(["-Werror"] if os.environ.get("PYBWRAP_WERROR") == "1" else []))
UPSTREAM_FLAGS = (*C_FLAGS, "-DPYBWRAP_UPSTREAM", "-include", str(CSRC / "seams.h"))


def _module(name: str, preamble: str, *, include_dirs: list[str], libraries: list[str]) -> FFI:
    """Return the builder of the module ``pybwrap._NAME``, whose declarations are in ``csrc/NAME.cdef.h``."""
    ffi = FFI()
    ffi.cdef((ROOT / CSRC / f"{name}.cdef.h").read_text())
    ffi.set_source(
        f"pybwrap._{name}",
        preamble,
        include_dirs=include_dirs,
        libraries=libraries,
        define_macros=[("Py_LIMITED_API", "0x030b0000")],  # the oldest Python of pyproject.toml
        py_limited_api=True,
        extra_compile_args=list(COMMON_FLAGS),
        extra_link_args=list(LINK_FLAGS),
    )
    return ffi


native = _module("native", '#include <stddef.h>\n#include "native.cdef.h"', include_dirs=[str(CSRC)], libraries=[])
seccomp = _module("seccomp", "#include <seccomp.h>", include_dirs=[], libraries=["seccomp"])
