"""Plain bubblewrap in this process, without any policy of this package."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from pybwrap._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str | bytes]) -> int:
    """Becomes bubblewrap with the command line *argv* (its first element is the program's name).

    Returns the exit status of the sandbox. Where bubblewrap gives up, it writes its line to stderr and this process
    ends with status 1; nothing of Python runs then. This process is the sandbox's monitor meanwhile: every other
    file descriptor is closed, no_new_privs is set, and both stay so. Call it in a process that has nothing else to do.
    """
    # Python ignores the first two, which the command would inherit, and turns the third into an exception.
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    words = [ffi.new("char[]", os.fsencode(word)) for word in argv]
    return lib.run_bwrap_main(len(words), ffi.new("char *[]", [*words, ffi.NULL]))
