"""The launch specification as bytes: what csrc/spec.h describes, packed."""

from __future__ import annotations

import os
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from pybwrap.errors import PolicyError
from pybwrap.plan.sandbox import Engine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pybwrap.plan.sandbox import SandboxPlan

__all__ = ["Claim", "Command", "pack_spec"]

_MAGIC = 0x31574250
_BUBBLEWRAP, _REFUSE_CAPABILITIES, _NO_NEW_PRIVS, _PROCESS_GROUP = 1, 2, 4, 8
_TERMINAL, _DROP_CAPABILITIES = 16, 32

_HEADER = Struct("=IIIiiiQQQ")
_SECTION = Struct("=III")
_LANDLOCK_RULE = Struct("=QII")
_RESOURCE_LIMIT = Struct("=IIQQ")
_INHERITED_FD = Struct("=i")
_PLACEHOLDER = Struct("=iIII")
_FILTER_INSTRUCTION_SIZE = 8
_SECTION_COUNT = 11


class Command(NamedTuple):
    """What is executed, and what it is given.

    *executable* is searched along the PATH of *environment*. *inherited_fds* keep their numbers. *resource_limits*
    are (RLIMIT number, soft, hard) triples. The sandbox is ended when it has run for *wall_time* seconds. *terminal*
    makes the standard input, which must be one, the controlling terminal.
    """

    executable: str
    argv: tuple[str, ...]
    cwd: str
    environment: Mapping[str, str]
    inherited_fds: tuple[int, ...] = ()
    resource_limits: tuple[tuple[int, int, int], ...] = ()
    wall_time: float | None = None
    terminal: bool = False


class Claim(NamedTuple):
    """A launch's share in a placeholder: the lock that it holds on the registry's record."""

    path: str
    is_symlink: bool
    lock_fd: int
    registry_path: str


def _encoded(text: str) -> bytes:
    """The bytes of a string and the NUL that ends it. Raises `PolicyError` for one that would end earlier."""
    encoded = os.fsencode(text)
    if b"\0" in encoded:
        raise PolicyError(f"{text!r}: contains a NUL byte, which no argument, variable or path can hold")
    return encoded + b"\0"


class _Strings:
    """NUL-terminated strings that structures refer to by offset."""

    def __init__(self) -> None:
        self.content = bytearray()

    def add(self, text: str) -> int:
        offset = len(self.content)
        self.content += _encoded(text)
        return offset


def _joined(texts: Sequence[str]) -> tuple[bytes, int]:
    return b"".join(map(_encoded, texts)), len(texts)


def pack_spec(
    plan: SandboxPlan,
    command: Command,
    *,
    seccomp_filter: bytes = b"",
    setup_socket: int = -1,
    exit_socket: int = -1,
    owner_pidfd: int = -1,
    claims: Sequence[Claim] = (),
    process_group: bool = True,
    refuse_capabilities: bool = False,
) -> bytes:
    """Packs everything that the C side needs.

    *process_group* makes the command lead one of its own. *refuse_capabilities* fails the launch when the stage
    finds a capability, as is always done under bubblewrap, where none can be left.

    Raises `PolicyError` for a string with a NUL byte.
    """
    uses_bubblewrap = plan.engine is Engine.BUBBLEWRAP
    arguments: list[str] = []
    if uses_bubblewrap:
        # The stage takes the command from the specification: what bubblewrap sees of it counts against its limit.
        arguments = plan.command_line((command.argv[0],), command.cwd)

    flags = _PROCESS_GROUP if process_group else 0
    if uses_bubblewrap:
        flags |= _BUBBLEWRAP
    if plan.is_restricted:
        flags |= _NO_NEW_PRIVS
    if uses_bubblewrap or refuse_capabilities:
        flags |= _REFUSE_CAPABILITIES
    elif plan.is_restricted:
        flags |= _DROP_CAPABILITIES
    if command.terminal:
        flags |= _TERMINAL

    strings = _Strings()
    landlock = plan.landlock
    landlock_rules = [
        _LANDLOCK_RULE.pack(rule.access, strings.add(rule.path), 0) for rule in (landlock.rules if landlock else ())
    ]
    placeholders = [
        _PLACEHOLDER.pack(
            claim.lock_fd,
            int(claim.is_symlink),
            strings.add(claim.path),
            strings.add(claim.registry_path),
        )
        for claim in claims
    ]
    environment = [f"{name}={value}" for name, value in command.environment.items()]
    sections: list[tuple[bytes, int]] = [
        _joined(arguments),
        _joined((command.executable, *command.argv)),
        _joined(environment),
        (b"", 0) if uses_bubblewrap else _joined((command.cwd,)),
        (seccomp_filter, len(seccomp_filter) // _FILTER_INSTRUCTION_SIZE),
        (b"".join(landlock_rules), len(landlock_rules)),
        (
            b"".join(_RESOURCE_LIMIT.pack(number, 0, soft, hard) for number, soft, hard in command.resource_limits),
            len(command.resource_limits),
        ),
        (b"".join(_INHERITED_FD.pack(fd) for fd in command.inherited_fds), len(command.inherited_fds)),
        _joined(plan.pinned_symlinks),
        (b"".join(placeholders), len(placeholders)),
        (bytes(strings.content), 0),
    ]
    header_size = _HEADER.size + _SECTION_COUNT * _SECTION.size
    header_size += -header_size % 8
    body = bytearray()
    directory = b""
    for content, count in sections:
        body += bytes(-len(body) % 8)
        directory += _SECTION.pack(header_size + len(body), len(content), count)
        body += content
    header = _HEADER.pack(
        _MAGIC,
        header_size + len(body),
        flags,
        setup_socket,
        exit_socket,
        owner_pidfd,
        0 if command.wall_time is None else max(1, round(command.wall_time * 1000)),
        landlock.filesystem if landlock else 0,
        landlock.scoped if landlock else 0,
    )
    return (header + directory).ljust(header_size, b"\0") + body
