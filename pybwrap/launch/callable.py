"""`call`: a Python function in a sandbox, and its result or exception back."""

from __future__ import annotations

import builtins
import fcntl
import os
import pickle
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pybwrap.errors import RemoteError
from pybwrap.launch import call_worker
from pybwrap.launch.popen import DEVNULL, TimeoutExpired, run
from pybwrap.launch.result import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pybwrap.launch.limits import Limits
    from pybwrap.launch.popen import Path
    from pybwrap.launch.result import CompletedProcess
    from pybwrap.policy import PermissionProfile, SandboxPolicy

__all__ = ["RESULT_LIMIT", "call"]

RESULT_LIMIT = 64 * 1024 * 1024
"""How much a result may be unless more is asked for, in bytes: 64 for each value in it, and what texts take."""

_ENVELOPE = 2 * 1024 * 1024
"""Room for what is said about an exception, in bytes."""

_ENDS_LOOPS = (StopIteration, StopAsyncIteration)

_SAME_HASHES = 16
"""How many keys of one dict or set may have the same hash: those of numbers can be chosen, those of texts cannot."""

Result = TypeVar("Result")


def call(
    function: Callable[..., Result],
    /,
    *args: Any,  # noqa: ANN401 - the function's
    policy: SandboxPolicy | PermissionProfile,
    timeout: float | None = None,
    limits: Limits | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    result_limit: int = RESULT_LIMIT,
    **kwargs: Any,  # noqa: ANN401 - the function's
) -> Result:
    """Calls *function* in a sandbox, in a fresh interpreter, and returns what it returns.

    Function and arguments are pickled: functions of importable modules by reference, those of the main module too,
    which is then imported there as `__mp_main__` (as `multiprocessing` does when it spawns: keep what is not to run
    there below `if __name__ == "__main__"`); others, lambdas for example, need cloudpickle. *policy* must let this
    interpreter and the modules be read. *timeout* is in seconds; *env* and *cwd* are as for `pybwrap.run`. For
    keyword arguments that have these names, use `functools.partial`. What the function prints goes to this process's
    standard output; its standard input is empty.

    The result must be plain data: None, bool, int, float, complex, str, bytes, and list, tuple, set, frozenset and
    dict of these, of these very types. It is decoded without trusting the sandbox, and *result_limit* bounds, about,
    what it takes of this process's memory (bytes, default 64 MiB). An exception of Python's own types is raised as it
    is; it carries the traceback from the sandbox as a note.

    Raises `TypeError` for what cannot be sent (nothing has been started then) and for a result that cannot come back,
    `RemoteError` for other exceptions of the function, for a result over the limit, and when the interpreter ends
    without one; `TimeoutExpired`; and what `pybwrap.run` raises.

    >>> import json, pybwrap
    >>> pybwrap.call(json.loads, '{"a": [1, 2]}', policy=pybwrap.SandboxPolicy.read_only(), timeout=60)
    {'a': [1, 2]}
    """
    if not callable(function):
        raise TypeError(f"expected a function, got {type(function).__name__}")
    if result_limit < 0:
        raise ValueError(f"result_limit: must not be negative, got {result_limit!r}")
    payload = _payload(function, args, kwargs, result_limit)
    with open(call_worker.__file__, encoding="utf-8") as file:
        program = file.read()
    with _memfd("pybwrap-call") as payload_fd, _memfd("pybwrap-result") as result_fd:
        with open(payload_fd, "wb", closefd=False) as memory:
            memory.write(payload)
        os.lseek(payload_fd, 0, os.SEEK_SET)
        os.ftruncate(result_fd, result_limit + _ENVELOPE)
        fcntl.fcntl(result_fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        try:
            done = run(
                # -P: nothing from the working directory may come before the standard library.
                [sys.executable, *_interpreter_options(), "-P", "-c", program, str(payload_fd), str(result_fd)],
                stdin=DEVNULL,
                pass_fds=(payload_fd, result_fd),
                policy=policy,
                timeout=timeout,
                limits=limits,
                env=env,
                cwd=cwd,
            )
        except TimeoutExpired as error:
            raise TimeoutExpired(_name(function), error.timeout) from None
        message = _message(result_fd)
    return cast("Result", _result(message, done, result_limit))


# --- To the sandbox -----------------------------------------------------------------------------------------------


@contextmanager
def _memfd(name: str) -> Iterator[int]:
    """Memory that has a descriptor; sealable, and not with the number of a standard stream (they are the command's)."""
    low = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        fd = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(low)
    try:
        yield fd
    finally:
        os.close(fd)


def _payload(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], limit: int) -> bytes:
    """What the worker reads: how to set itself up, then what to call. Raises `TypeError`."""
    called, main = _pickled(function, (function, args, kwargs))
    setup = {"path": [entry or os.getcwd() for entry in sys.path], "argv": sys.argv, "limit": limit, "main": main}
    return pickle.dumps(setup) + called


def _pickled(function: Callable[..., Any], value: object) -> tuple[bytes, tuple[str | None, str | None] | None]:
    """*value* as bytes, and the main module if it must be imported for them. Raises `TypeError`."""
    try:
        pickled = pickle.dumps(value)
        # Without need the main module stays out of it: a script may not be made to be imported.
        main = _main_module() if b"__main__" in pickled else None
        if main is not None or b"__main__" not in pickled:
            return pickled, main
        problem = "the main module has no file to import it from"
    except (pickle.PicklingError, AttributeError, TypeError, RecursionError) as error:
        problem = str(error)
    try:
        import cloudpickle  # type: ignore[import-not-found,unused-ignore]

        return cloudpickle.dumps(value), None
    except ImportError:
        remedy = (
            "; put the function into a module, or install cloudpickle for what cannot be imported (lambdas, closures)"
        )
    except (pickle.PicklingError, AttributeError, TypeError, RecursionError) as error:
        problem, remedy = str(error), ""
    raise TypeError(f"cannot send {_name(function)} and its arguments to a sandbox: {problem}{remedy}")


def _main_module() -> tuple[str | None, str | None] | None:
    """The main module's name or path; None when it has neither, as in an interactive session."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return spec.name, None
    path = getattr(main, "__file__", None)
    return None if path is None else (None, os.path.abspath(path))


def _interpreter_options() -> list[str]:
    """The options that this interpreter was started with, `-O` for example."""
    # What multiprocessing starts its processes with; the typeshed does not know it.
    options: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001
    return options


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", None) or type(function).__qualname__


# --- From the sandbox ---------------------------------------------------------------------------------------------


def _message(fd: int) -> bytes:
    """What the worker has written, as far as it says; empty when it has not come to that."""
    length = int.from_bytes(os.pread(fd, 8, 0), "big")
    with open(fd, "rb", closefd=False) as memory:
        memory.seek(8)
        return memory.read(min(length, os.fstat(fd).st_size))


class _MalformedError(Exception):
    """Raised for an answer that the worker does not send."""


def _result(message: bytes, done: CompletedProcess[Any], limit: int) -> Any:  # noqa: ANN401 - the function's
    """The result in *message*; raises what it says otherwise. Everything in it may be forged, and is only data."""
    if not message:
        how = f"was ended by signal {-done.returncode}" if done.returncode < 0 else f"exited with {done.returncode}"
        reason = f"the interpreter in the sandbox {how} before there was a result (outcome: {done.outcome.value})"
        raise RemoteError(reason, outcome=done.outcome)
    match _decoded(message, limit):
        case ("result", result):
            return result
        case ("too large",):
            raise RemoteError(f"the result is over result_limit ({limit} bytes)", outcome=Outcome.OUTPUT_LIMIT)
        case ("error", str(module), str(name), tuple() | None as args, str(text), str(traceback)):
            raise _exception(module, name, args, text, traceback)
    raise RemoteError("the sandbox sent something that is not a result", outcome=done.outcome)


def _exception(module: str, name: str, args: tuple[Any, ...] | None, text: str, traceback: str) -> Exception:
    """What to raise for an exception in the sandbox: one of Python's own types, or a `RemoteError`."""
    error: Exception = RemoteError(text, name if module == "builtins" else f"{module}.{name}", traceback)
    kind = getattr(builtins, name, None) if module == "builtins" else None
    # Not SystemExit and its like, which end this process, nor StopIteration, which ends a loop around the call.
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, _ENDS_LOOPS):
        try:
            error = kind(text) if args is None else kind(*args)
        except Exception:  # noqa: BLE001, S110 - the arguments are not this type's: it stays what it is
            pass
    error.add_note(f"In the sandbox:\n{traceback}")
    return error


def _decoded(message: bytes, limit: int) -> object:
    decoder = _Decoder(message, limit + _ENVELOPE)
    try:
        value, end = decoder.decode(0, len(message), 0)
    except (_MalformedError, ValueError, TypeError, OverflowError, MemoryError):
        return None
    return value if end == len(message) else None


class _Decoder:
    """The inverse of `call_worker.Encoder`, for messages that may be malicious: what they cost is bounded."""

    def __init__(self, message: bytes, limit: int) -> None:
        self.message = message
        self.left = limit

    def decode(self, start: int, end: int, depth: int) -> tuple[Any, int]:
        """The value between two offsets, and where it ends. Raises `_MalformedError`, or what types raise."""
        self.left -= call_worker.VALUE_COST
        if self.left < 0 or start >= end or depth > call_worker.MAXIMUM_DEPTH + 1:
            raise _MalformedError
        tag = self.message[start : start + 1]
        if tag in _CONSTANTS:
            return _CONSTANTS[tag], start + 1
        content = start + 9
        following = content + int.from_bytes(self.message[start + 1 : content], "big")
        if following > end or content > end:
            raise _MalformedError
        if tag in _SCALARS:
            self.left -= following - content
            return _SCALARS[tag](self.message[content:following]), following
        values = []
        while content < following:
            value, content = self.decode(content, following, depth + 1)
            values.append(value)
        return self.container(tag, values), following

    def container(self, tag: bytes, values: list[Any]) -> object:
        if tag == b"l":
            return values
        if tag == b"t":
            return tuple(values)
        keys = values[::2] if tag == b"d" else values
        # Keys with one hash make a dict take quadratic time.
        if max(Counter(map(hash, keys)).values(), default=0) > _SAME_HASHES:
            raise _MalformedError
        if tag == b"d":
            return dict(zip(keys, values[1::2], strict=True))
        if tag == b"e":
            return set(values)
        if tag == b"z":
            return frozenset(values)
        raise _MalformedError


_CONSTANTS = {b"N": None, b"T": True, b"F": False}
_SCALARS: dict[bytes, Callable[[bytes], Any]] = {
    b"b": bytes,
    b"s": lambda content: content.decode("utf-8", "surrogatepass"),
    b"i": lambda content: int(content, 16),  # a power of two as base: linear, whatever the length
    b"f": lambda content: float.fromhex(content.decode("ascii")),
    b"c": lambda content: complex(*map(float.fromhex, content.decode("ascii").split(" "))),
}
