"""Plain bubblewrap, without any policy of this package, for programs that bring their own arguments.

`main` turns this process into bubblewrap; `fork_main` does so in a child. Both run `run_bwrap_main` of the shared
object, which is bubblewrap's own main program: it reads the command line, builds the sandbox, and stays as its monitor.

Hazards, which `pybwrap.run` and `pybwrap.Popen` do not have:

- bubblewrap keeps its state in global variables: it runs at most once in a process.
- The process that becomes bubblewrap closes every descriptor above 2, and gains no privileges any more.
- A forked child is a copy of this process, and so is the init of its sandbox: whatever this program holds in memory
  can be read there, through /proc/1/mem, by a command that runs as the same user.
- A fork takes time in proportion to this program's memory.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from pybwrap._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pybwrap._native import CData

__all__ = ["fork_main", "main"]


def main(argv: Sequence[str | bytes]) -> int:
    """Becomes bubblewrap with the command line *argv*, whose first element is the program's name.

    Returns the exit status of the sandbox: the command's, or 128+N if signal N ended it. Where bubblewrap gives up, it
    writes its line to stderr and this process ends with status 1; nothing of Python runs then.

    >>> import subprocess, sys
    >>> program = '''
    ... import sys
    ... from pybwrap import bwrap
    ... sys.exit(bwrap.main(["bwrap", "--ro-bind", "/", "/", "sh", "-c", "exit 3"]))
    ... '''
    >>> subprocess.run([sys.executable, "-c", program]).returncode
    3
    """
    # Python ignores the first two, which the command would inherit, and turns the third into an exception.
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    words, array = _array(argv)
    return lib.run_bwrap_main(len(words), array)


def fork_main(argv: Sequence[str | bytes], *, stderr: int | None = None) -> int:
    """Runs `main` in a forked child with default signals, and returns its pid, which the caller must wait for.

    *stderr* is a descriptor for what bubblewrap and the command write there; None keeps this process's. No Python
    runs in the child. Raises `OSError` when no process can be made.

    >>> import os
    >>> from pybwrap import bwrap
    >>> pid = bwrap.fork_main(["bwrap", "--ro-bind", "/", "/", "sh", "-c", "exit 3"])
    >>> os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    3
    """
    words, array = _array(argv)
    pid = lib.fork_bwrap_main(len(words), array, -1 if stderr is None else stderr)
    if pid < 0:
        raise OSError(-pid, os.strerror(-pid))
    return pid


def _array(argv: Sequence[str | bytes]) -> tuple[list[CData], CData]:
    """The words as C strings, and the array that points to them; the former keep the latter valid."""
    encoded = [os.fsencode(word) for word in argv]
    if any(b"\0" in word for word in encoded):
        raise ValueError("embedded null byte")
    words = [ffi.new("char[]", word) for word in encoded]
    return words, ffi.new("char *[]", [*words, ffi.NULL])
