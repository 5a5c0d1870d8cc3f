"""The commands. `pybwrap` and `python -m pybwrap` are the same program."""

from __future__ import annotations

import os
import sys

from pybwrap.errors import PybwrapError

__all__ = ["main"]

USAGE_ERROR = 2
SETUP_FAILED = 125
CANNOT_EXECUTE = 126
NOT_FOUND = 127

_USAGE = """\
usage: pybwrap run [OPTION...] [--] COMMAND [ARG...]
       pybwrap bwrap [BUBBLEWRAP OPTION...] [--] COMMAND [ARG...]
       pybwrap --sandbox-policy-cwd DIR --sandbox-policy JSON [OPTION...] [--] COMMAND [ARG...]

Runs a command in a sandbox made by the bubblewrap that this package brings along.

  run      read-only, without a network, unless an option opens something; pybwrap run --help
  bwrap    plain bubblewrap, with every option it has; pybwrap bwrap --help
  --...    the options of codex-linux-sandbox; pybwrap --help-helper
  --version
"""


def main(arguments: list[str] | None = None) -> None:
    """Runs the program with *arguments* (default: the command line's) and exits with its status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _forget_coerced_locale()
    try:
        status = _dispatch(arguments)
    except PybwrapError as error:
        from pybwrap.errors import PolicyError

        status = report(str(error), USAGE_ERROR if isinstance(error, PolicyError) else SETUP_FAILED)
    except KeyboardInterrupt:
        status = 130
    except ImportError as error:
        status = report(f"this installation is not complete ({error}); install pybwrap again", SETUP_FAILED)
    except MemoryError:
        status = report("out of memory", SETUP_FAILED)
    except OSError as error:
        status = report(str(error), SETUP_FAILED)
    leave(status)


def _forget_coerced_locale() -> None:
    """Removes the LC_CTYPE that Python sets for itself in the C locale (PEP 538): the command is not Python."""
    if os.environ.get("LC_CTYPE") in {"C.UTF-8", "C.utf8", "UTF-8"}:
        try:
            with open("/proc/self/environ", "rb") as file:
                given = file.read()
        except OSError:
            return
        if not any(entry.startswith(b"LC_CTYPE=") for entry in given.split(b"\0")):
            del os.environ["LC_CTYPE"]


def leave(status: int) -> None:
    """Ends the program now. Nothing of it outlives the command, so there is nothing to tear down first."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        pass
    os._exit(status)


def report(message: str, status: int) -> int:
    """Writes one line to stderr, whatever *message* contains, and returns *status*."""
    line = "pybwrap: " + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message) + "\n"
    try:
        os.write(2, line.encode(errors="backslashreplace"))
    except OSError:
        pass
    return status


def _dispatch(arguments: list[str]) -> int:
    command = arguments[0] if arguments else ""
    if command == "run":
        from pybwrap.cli.run import main as run

        return run(arguments[1:])
    if command == "bwrap":
        from pybwrap.bwrap import main as bwrap

        return bwrap(["bwrap", *arguments[1:]])
    if command in {"--help", "-h", "--version", "-V"}:
        from pybwrap import __version__

        sys.stdout.write(_USAGE if "h" in command else f"pybwrap {__version__}\n")
        return 0
    if command.startswith("-"):
        from pybwrap.cli.drop_in import main as drop_in

        return drop_in(arguments)
    if not command:
        sys.stderr.write(_USAGE)
        return USAGE_ERROR
    return report(f"unknown command {command!r}; pybwrap --help lists them", USAGE_ERROR)
