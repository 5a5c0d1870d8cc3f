"""The program that runs a function for `pybwrap.call`, inside the sandbox.

It is given to the interpreter as text and imports nothing of this package, which the policy may not show. What it
sends back is in a format of its own, for the reader must not have to trust it: pickle would run code there.

Each value is a tag, and behind it the length of the rest (8 bytes, big endian) and the rest: UTF-8 text (`s`, and `i`
`f` `c` for numbers), bytes (`b`), or the values in a list (`l`), tuple (`t`), set (`e`), frozenset (`z`) or dict (`d`:
key, value, key, value). `N` `T` `F` are the tag alone.
"""

from __future__ import annotations

import mmap
import os
import pickle
import runpy
import sys
import traceback
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

MAXIMUM_DEPTH = 100
"""How deep values may be nested."""

VALUE_COST = 64
"""What one value counts for beside its bytes: about what an object takes in memory."""

MESSAGE_LIMIT, TRACEBACK_LIMIT = 16 * 1024, 256 * 1024
"""Of an exception, in characters."""

_CONSTANTS: dict[object, bytes] = {None: b"N", True: b"T", False: b"F"}
_SCALARS: dict[type, tuple[bytes, Callable[[Any], bytes]]] = {
    bytes: (b"b", bytes),
    str: (b"s", lambda text: text.encode("utf-8", "surrogatepass")),
    int: (b"i", lambda number: b"%x" % number),
    float: (b"f", lambda number: number.hex().encode()),
    complex: (b"c", lambda number: f"{number.real.hex()} {number.imag.hex()}".encode()),
}
_CONTAINERS: dict[type, bytes] = {list: b"l", tuple: b"t", set: b"e", frozenset: b"z", dict: b"d"}


class TooLargeError(Exception):
    """Raised when a value costs more than the limit."""


class Encoder:
    """Encodes values, as long as they cost no more than *limit* bytes."""

    def __init__(self, limit: int) -> None:
        self.left: int = limit

    def encode(self, value: Any, depth: int = 0) -> bytes:  # noqa: ANN401 - whatever the function returned
        """Raises `TypeError` for what is not plain data, `TooLargeError` beyond the limit."""
        self.left -= VALUE_COST
        if depth > MAXIMUM_DEPTH:
            raise TypeError(f"result is nested more than {MAXIMUM_DEPTH} deep, or contains itself: it cannot come back")
        kind: type = type(value)
        if value is None or kind is bool:
            return _CONSTANTS[value]
        if kind in _SCALARS:
            tag, to_bytes = _SCALARS[kind]
            content = to_bytes(value)
            self.left -= len(content)
        elif kind in _CONTAINERS:
            tag = _CONTAINERS[kind]
            values = (each for pair in value.items() for each in pair) if kind is dict else value
            content = b"".join(self.encode(each, depth + 1) for each in values)
        else:
            raise TypeError(
                f"result of type {kind.__module__}.{kind.__qualname__} cannot come back: only plain data can"
            )
        if self.left < 0:
            raise TooLargeError
        return tag + len(content).to_bytes(8, "big") + content


def describe(error: BaseException, limit: int) -> bytes:
    """The answer for an exception: its type, what makes one of Python's own again (or None), text and traceback."""
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - an exception can have any __str__
        message = "<exception str() failed>"
    # The first entry is about this program.
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__ and error.__traceback__.tb_next))
    texts = (message[:MESSAGE_LIMIT], text[-TRACEBACK_LIMIT:])
    kind = type(error)
    args: object = None
    if kind.__module__ == "builtins":
        try:
            # Not error.args, which for an OSError lacks the file name.
            args = error.__reduce__()[1]
            Encoder(limit).encode(args)
        except (TypeError, TooLargeError):
            args = None
    return Encoder(sys.maxsize).encode(("error", kind.__module__, kind.__qualname__, args, *texts))


def import_main(name: str | None, path: str | None) -> None:
    """Makes the caller's main module this one's, under the name that keeps its `if __name__ == "__main__"` from it."""
    content = (
        runpy.run_module(name, run_name="__mp_main__", alter_sys=True)
        if name is not None
        else runpy.run_path(str(path), run_name="__mp_main__")
    )
    module = type(sys)("__mp_main__")
    module.__dict__.update(content)
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module


def answer(payload_fd: int) -> bytes:
    """Calls the function; returns what to send back."""
    with open(payload_fd, "rb") as payload:
        setup = pickle.load(payload)  # noqa: S301 - from outside the sandbox, which trusts it
        try:
            sys.path[:] = setup["path"]
            sys.argv[:] = setup["argv"]
            if setup["main"] is not None:
                import_main(*setup["main"])
            function, arguments, named = pickle.load(payload)  # noqa: S301
            result = function(*arguments, **named)
            return Encoder(setup["limit"] + 2 * VALUE_COST).encode(("result", result))
        except TooLargeError:
            return Encoder(sys.maxsize).encode(("too large",))
        except BaseException as error:  # noqa: BLE001 - whatever it is, the caller gets it
            return describe(error, setup["limit"])


def main() -> None:
    """Runs the function in the memfd that the first argument names; the answer goes to the second."""
    payload_fd, result_fd = (int(number) for number in sys.argv[1:3])
    for fd in (payload_fd, result_fd):
        os.set_inheritable(fd, False)  # noqa: FBT003 - the function has no name for it
    message = answer(payload_fd)
    # Not write(2), which RLIMIT_FSIZE bounds. The length comes last: until then there is no answer.
    with mmap.mmap(result_fd, 8 + len(message)) as memory:
        memory[8:] = message
        memory[:8] = len(message).to_bytes(8, "big")


if __name__ == "__main__":
    main()
