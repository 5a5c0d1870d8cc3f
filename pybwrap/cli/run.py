"""`pybwrap run`: a command in a sandbox, with options for people."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from pybwrap.cli.execution import execute, plan_here
from pybwrap.errors import PolicyError
from pybwrap.policy.profile import Access, FilesystemEntry, Network, PermissionProfile

if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["main"]

_EXAMPLES = """\
examples:
  pybwrap run -- ls /                                 look, touch nothing, reach nobody
  pybwrap run --writable . -- make test               write here (but not to .git), in /tmp and $TMPDIR
  pybwrap run -w build --deny ~/.ssh -- ./configure   write to one directory, hide another

exit status:
  the command's own; 128+N if signal N ended it; 127 not found; 126 not executable;
  125 the sandbox could not be set up; 2 a usage or policy error
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Refuses a command line in one line, as every error of this program is told."""
        raise PolicyError(f"{message}; pybwrap run --help lists the options")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="pybwrap run",
        usage="pybwrap run [OPTION...] [--] COMMAND [ARG...]",
        description="Runs COMMAND where it can read everything, write nothing and reach nobody, "
        "unless an option opens something.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-w", "--writable", metavar="PATH", action="append", default=[], help="let PATH be written, and /tmp with it")
    add("--read-only", metavar="PATH", action="append", default=[], help="keep PATH as it is below a writable one")
    add("--deny", metavar="PATH", action="append", default=[], help="hide what is at PATH")
    add("--no-tmp", action="store_true", help="do not open /tmp and $TMPDIR along with --writable")
    add("--allow-network", action="store_true", help="share the network of this machine")
    add("--allow-nested", action="store_true", help="let the command build sandboxes of its own")
    add("--no-proc", action="store_true", help="do not mount a fresh /proc")
    add("-C", "--cd", metavar="DIR", help="run in DIR; the other paths are relative to it")
    add("command", nargs=argparse.REMAINDER, metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


def main(arguments: list[str]) -> int:
    """Runs the command and returns its exit status. Raises `PybwrapError`."""
    parser = _parser()
    options = parser.parse_args(arguments)
    argv = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not argv:
        parser.error("no command was given; put it after the options: -- COMMAND [ARG...]")
    if options.cd is not None:
        try:
            os.chdir(options.cd)
        except (OSError, ValueError) as error:
            parser.error(f"cannot change to {options.cd!r}: {getattr(error, 'strerror', None) or error}")

    entries = [FilesystemEntry(":root", Access.READ)]
    for access, paths in (
        (Access.WRITE, options.writable),
        (Access.READ, options.read_only),
        (Access.DENY, options.deny),
    ):
        entries += [FilesystemEntry(os.path.abspath(os.path.expanduser(path)), access) for path in paths]
    if options.writable and not options.no_tmp:
        entries.append(FilesystemEntry(":slash_tmp", Access.WRITE, must_exist=False))
        entries.append(FilesystemEntry(":tmpdir", Access.WRITE, must_exist=False))
    network = Network.ENABLED if options.allow_network else Network.RESTRICTED
    plan = plan_here(
        PermissionProfile(entries, network),
        os.curdir,
        fresh_proc=not options.no_proc,
        allow_nested_sandboxes=options.allow_nested,
    )
    return execute(plan, argv)
