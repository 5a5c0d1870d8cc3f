"""`pybwrap.call`: a function in a sandbox, and what may come back from it."""

from __future__ import annotations

import functools
import importlib
import math
import os
import pickle
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

import pybwrap
from pybwrap import Outcome, RemoteError, SandboxPolicy
from pybwrap.launch import call_worker
from pybwrap.launch.callable import _decoded
from tests.conftest import clean_environment, names_in

if TYPE_CHECKING:
    from collections.abc import Iterator

READ_ONLY = SandboxPolicy.read_only()
MEBIBYTE = 1 << 20

FUNCTIONS = """
import os, sys, threading, time

def echo(*args, **kwargs):
    return args, kwargs

def run(source, **names):
    exec(source, names)
    return names.get("result")

class Unknown(Exception):
    pass

class Hidden(int):
    pass

def raise_unknown():
    raise Unknown("mine", object())

def return_hidden():
    return Hidden(3)

def forge(answer):
    # What untrusted code does that knows the worker: it looks for the memory and writes what it likes.
    fd = next(fd for fd in range(3, 100) if os.path.exists(f"/proc/self/fd/{fd}")
              and "pybwrap-result" in os.readlink(f"/proc/self/fd/{fd}"))
    os.pwrite(fd, len(answer).to_bytes(8, "big") + answer, 0)
    os._exit(0)

def claim_length(length):
    fd = next(fd for fd in range(3, 100) if os.path.exists(f"/proc/self/fd/{fd}")
              and "pybwrap-result" in os.readlink(f"/proc/self/fd/{fd}"))
    os.pwrite(fd, length.to_bytes(8, "big"), 0)
    os._exit(0)
"""


@pytest.fixture
def functions(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module that can be imported inside as well."""
    name = f"functions_of_{workspace.name.replace('-', '_')}"
    (workspace / f"{name}.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(workspace)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield importlib.import_module(name)
    del sys.modules[name]


# --- There and back -----------------------------------------------------------------------------------------------

PLAIN: list[object] = [
    None,
    True,
    False,
    0,
    -1,
    1 << 4000,
    -(1 << 4000),
    0.1,
    -0.0,
    math.inf,
    5e-324,
    1 - 2j,
    "",
    "text\0é\N{PILE OF POO}\udcff",
    b"\0\xff",
    [],
    (),
    set(),
    frozenset(),
    {},
    [1, [2, (3, {4, "5"}, frozenset({(6,)}))]],
    {"a": 1, 2: [3], (4, 5): None, None: {}},
]


def test_plain_data_goes_in_and_comes_back_as_it_is(functions: ModuleType) -> None:
    args, kwargs = pybwrap.call(functions.echo, *PLAIN, policy=READ_ONLY, key=PLAIN)
    assert (list(args), kwargs) == (PLAIN, {"key": PLAIN})
    assert [type(value) for value in args] == [type(value) for value in PLAIN]
    assert repr(args[8]) == "-0.0"


def test_every_plain_value_survives_the_encoding() -> None:
    for value in PLAIN:
        assert _decoded(call_worker.Encoder(1 << 20).encode((value,)), 1 << 20) == (value,)
    assert math.isnan(_decoded(call_worker.Encoder(1 << 20).encode((math.nan,)), 1 << 20)[0])  # type: ignore[index]


def test_a_function_of_the_standard_library_can_be_called() -> None:
    assert pybwrap.call(math.sqrt, 2, policy=READ_ONLY) == math.sqrt(2)


def test_names_of_this_function_can_be_given_to_another(functions: ModuleType) -> None:
    function = functools.partial(functions.echo, timeout=1)
    assert pybwrap.call(function, policy=READ_ONLY) == ((), {"timeout": 1})


def test_the_function_is_in_a_sandbox(functions: ModuleType, workspace: Path) -> None:
    with pytest.raises(OSError, match="Read-only file system") as caught:
        pybwrap.call(functions.run, f"open('{workspace}/made', 'w')", policy=READ_ONLY)
    assert caught.value.filename == f"{workspace}/made"
    with pytest.raises(PermissionError):
        pybwrap.call(functions.run, "import socket; socket.socket(socket.AF_INET)", policy=READ_ONLY)


def test_nothing_of_this_process_is_in_there(functions: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "secret")
    monkeypatch.setattr(functions, "state", "changed here", raising=False)
    source = "import os, sys; result = (os.environ.get('TOKEN'), getattr(sys.modules[name], 'state', None))"
    assert pybwrap.call(functions.run, source, name=functions.__name__, policy=READ_ONLY) == (None, None)


def test_environment_and_directory_are_what_is_given(functions: ModuleType, workspace: Path) -> None:
    source = "import os; result = (os.environ['NAME'], os.getcwd())"
    result = pybwrap.call(functions.run, source, policy=READ_ONLY, env={"NAME": "value"}, cwd=workspace)
    assert result == ("value", str(workspace))


def test_a_module_in_the_working_directory_does_not_replace_one_that_the_worker_needs(workspace: Path) -> None:
    for name in ("mmap", "runpy", "pickle", "traceback"):
        (workspace / f"{name}.py").write_text("raise SystemExit('hijacked')")
    assert pybwrap.call(abs, -1, policy=READ_ONLY, cwd=workspace) == 1


def test_prints_go_to_the_real_standard_output(functions: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    pybwrap.call(functions.run, "import sys; print('out'); print('err', file=sys.stderr)", policy=READ_ONLY)
    assert capfd.readouterr() == ("out\n", "err\n")


def test_the_standard_input_is_empty(functions: ModuleType) -> None:
    assert pybwrap.call(functions.run, "import sys; result = sys.stdin.read()", policy=READ_ONLY) == ""


def test_programs_that_the_function_starts_do_not_have_the_result(functions: ModuleType) -> None:
    source = "import subprocess; result = subprocess.check_output(['ls', '-l', '/proc/self/fd'], close_fds=False)"
    assert b"memfd" not in pybwrap.call(functions.run, source, policy=READ_ONLY)


def test_a_large_argument_and_a_large_result_pass(functions: ModuleType) -> None:
    data = os.urandom(30 * MEBIBYTE)
    (returned,), _ = pybwrap.call(functions.echo, data, policy=READ_ONLY)
    assert returned == data


def test_a_limit_on_file_sizes_does_not_bound_the_result() -> None:
    assert pybwrap.call(bytes, MEBIBYTE, policy=READ_ONLY, limits=pybwrap.Limits(file_size=0)) == bytes(MEBIBYTE)


# --- The main module ----------------------------------------------------------------------------------------------


def run_script(workspace: Path, source: str, *options: str) -> subprocess.CompletedProcess[str]:
    script = workspace / "script.py"
    script.write_text("import pybwrap, sys\nPOLICY = pybwrap.SandboxPolicy.read_only()\n" + textwrap.dedent(source))
    return subprocess.run(
        [sys.executable, *options, *([] if "-m" in options else [script])],
        env=clean_environment(PYTHONSAFEPATH=None),
        cwd=workspace,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


FUNCTION_OF_MAIN = """
    class Number:
        value = 20

    def double(number):
        return number.value * 2, __name__, sys.argv[1:]

    if __name__ == "__main__":
        print(pybwrap.call(double, Number(), policy=POLICY))
"""


@pytest.mark.parametrize("options", [(), ("-m", "script")])
def test_functions_and_classes_of_the_main_module_are_found(workspace: Path, options: tuple[str, ...]) -> None:
    done = run_script(workspace, FUNCTION_OF_MAIN, *options)
    assert (done.stdout, done.stderr) == ("(40, '__mp_main__', [])\n", "")


def test_the_main_module_is_not_imported_when_it_is_not_needed(workspace: Path) -> None:
    done = run_script(workspace, "print('once', flush=True)\nprint(pybwrap.call(abs, -1, policy=POLICY))")
    assert (done.stdout, done.stderr) == ("once\n1\n", "")


def test_without_a_file_functions_of_the_main_module_are_refused() -> None:
    source = (
        "import pybwrap\ndef f(): pass\n"
        "try: pybwrap.call(f, policy=pybwrap.SandboxPolicy.read_only())\nexcept TypeError as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert "the main module has no file to import it from" in done.stdout, done


# --- What cannot be sent ------------------------------------------------------------------------------------------


@pytest.fixture
def no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        pytest.fail("something was started")

    monkeypatch.setattr("pybwrap.launch.callable.run", fail)


@pytest.mark.usefixtures("no_launch")
def test_what_cannot_be_pickled_is_refused_before_anything_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(TypeError, match=r"cannot send .*<lambda>.*install cloudpickle"):
        pybwrap.call(lambda: 1, policy=READ_ONLY)
    with pytest.raises(TypeError, match="cannot send abs and its arguments"):
        pybwrap.call(abs, sys, policy=READ_ONLY)
    with pytest.raises(TypeError, match="expected a function, got int"):
        pybwrap.call(3, policy=READ_ONLY)  # type: ignore[arg-type]


def test_cloudpickle_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    # A stand-in: what matters is that it is asked, and that what it makes is an ordinary pickle.
    def dumps(value: tuple[object, tuple[object, ...], dict[str, object]]) -> bytes:
        return pickle.dumps((eval, ("6 * 7",), value[2]))

    cloudpickle = ModuleType("cloudpickle")
    cloudpickle.dumps = dumps  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cloudpickle", cloudpickle)
    assert pybwrap.call(lambda: None, policy=READ_ONLY) == 42


# --- Exceptions ---------------------------------------------------------------------------------------------------


def test_exceptions_of_python_are_raised_as_they_are_with_the_traceback_as_a_note(functions: ModuleType) -> None:
    with pytest.raises(KeyError) as caught:
        pybwrap.call(functions.run, "{}['missing']", policy=READ_ONLY)
    assert caught.value.args == ("missing",)
    assert "In the sandbox:\nTraceback" in caught.value.__notes__[0]
    assert "in run" in caught.value.__notes__[0]


def test_other_exceptions_are_remote_errors_with_what_is_known_of_them(functions: ModuleType) -> None:
    with pytest.raises(RemoteError, match=r"Unknown: .*mine") as caught:
        pybwrap.call(functions.raise_unknown, policy=READ_ONLY)
    assert caught.value.type_name == f"{functions.__name__}.Unknown"
    assert "raise_unknown" in caught.value.traceback
    copied = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert (str(copied), copied.traceback) == (str(caught.value), caught.value.traceback)


@pytest.mark.parametrize("name", ["SystemExit", "KeyboardInterrupt", "GeneratorExit", "StopIteration"])
def test_exceptions_that_would_end_this_process_or_a_loop_in_it_are_not_raised(
    functions: ModuleType, name: str
) -> None:
    with pytest.raises(RemoteError, match=f"{name}: 3"):
        pybwrap.call(functions.run, f"raise {name}(3)", policy=READ_ONLY)


def test_an_exception_with_arguments_that_are_not_plain_keeps_its_type_and_text(functions: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"<object object at"):
        pybwrap.call(functions.run, "raise ValueError(object())", policy=READ_ONLY)


def test_an_exception_with_endless_text_is_cut(functions: ModuleType) -> None:
    with pytest.raises(ValueError, match="x") as caught:
        pybwrap.call(functions.run, "raise ValueError('x' * 10_000_000)", policy=READ_ONLY, result_limit=1000)
    assert len(str(caught.value)) < MEBIBYTE


# --- Results that cannot come back --------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["object()", "[{1: (print,)}]", "type('T', (), {})"])
def test_other_results_are_a_type_error(functions: ModuleType, source: str) -> None:
    with pytest.raises(TypeError, match=r"result of type .* cannot come back"):
        pybwrap.call(functions.run, f"result = {source}", policy=READ_ONLY)


def test_a_subclass_of_plain_data_is_not_plain_data(functions: ModuleType) -> None:
    with pytest.raises(TypeError, match=r"result of type .*Hidden cannot come back"):
        pybwrap.call(functions.return_hidden, policy=READ_ONLY)


def test_a_result_that_contains_itself_is_a_type_error(functions: ModuleType) -> None:
    with pytest.raises(TypeError, match="contains itself"):
        pybwrap.call(functions.run, "result = []; result.append(result)", policy=READ_ONLY)


@pytest.mark.parametrize("source", ["bytes(2_000_000)", "[None] * 20_000", "[[]] * 20_000", "1 << 8_000_000"])
def test_a_result_over_the_limit_is_an_error(functions: ModuleType, source: str) -> None:
    with pytest.raises(RemoteError, match="over result_limit") as caught:
        pybwrap.call(functions.run, f"result = {source}", policy=READ_ONLY, result_limit=MEBIBYTE)
    assert caught.value.outcome is Outcome.OUTPUT_LIMIT


# --- Ends ---------------------------------------------------------------------------------------------------------


def test_an_interpreter_that_dies_is_reported_with_its_outcome(functions: ModuleType) -> None:
    with pytest.raises(RemoteError, match="ended by signal 11") as caught:
        pybwrap.call(functions.run, "import os; os.kill(os.getpid(), 11)", policy=READ_ONLY)
    assert caught.value.outcome is Outcome.SIGNALED
    with pytest.raises(RemoteError, match="exited with 7"):
        pybwrap.call(functions.run, "import os; os._exit(7)", policy=READ_ONLY)


def test_a_limit_is_reported_as_the_outcome() -> None:
    with pytest.raises(RemoteError) as caught:
        pybwrap.call(time.sleep, 60, policy=READ_ONLY, limits=pybwrap.Limits(wall_time=0.5))
    assert caught.value.outcome is Outcome.TIMED_OUT


def test_the_sandbox_has_ended_when_the_time_is_up() -> None:
    before = names_in(Path("/proc/self/fd"))
    started = time.monotonic()
    with pytest.raises(pybwrap.TimeoutExpired, match=r"'sleep' timed out after 0\.5 seconds"):
        pybwrap.call(time.sleep, 60, policy=READ_ONLY, timeout=0.5)
    assert time.monotonic() - started < 20
    assert names_in(Path("/proc/self/fd")) == before


# --- Answers that nobody should believe ---------------------------------------------------------------------------


def framed(tag: bytes, content: bytes) -> bytes:
    return tag + len(content).to_bytes(8, "big") + content


def result(value: bytes) -> bytes:
    return framed(b"t", framed(b"s", b"result") + value)


class Bomb:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.path,)


def nested(depth: int) -> bytes:
    value = b"N"
    for _ in range(depth):
        value = framed(b"l", value)
    return value


COLLISIONS = b"".join(framed(b"i", b"%x" % (number * ((1 << 61) - 1))) for number in range(1, 50_000))

FORGED = {
    "not a frame": b"\x80\x04.",
    "nothing": b"\0",
    "no tuple": b"N",
    "a longer frame than there is": b"t" + (1 << 62).to_bytes(8, "big"),
    "a frame in a shorter one": framed(b"t", b"s" + (1000).to_bytes(8, "big")),
    "something behind the end": result(b"N") + b"N",
    "an unknown tag": result(framed(b"x", b"")),
    "a number that is none": result(framed(b"i", b"12 34")),
    "a float that is none": result(framed(b"f", b"0x1p99999")),
    "half a complex": result(framed(b"c", b"")),
    "text that is no UTF-8": result(framed(b"s", b"\xff")),
    "a key without a value": result(framed(b"d", b"N")),
    "a key that has no hash": result(framed(b"d", framed(b"l", b"") + b"N")),
    "a set of lists": result(framed(b"e", framed(b"l", b""))),
    "endless nesting": result(nested(100_000)),
    "keys that all collide": result(framed(b"e", COLLISIONS)),
    "keys that all collide in a dict": result(framed(b"d", COLLISIONS)),
    "more values than the limit": result(framed(b"l", b"N" * 200_000)),
    "an error without its parts": framed(b"t", framed(b"s", b"error")),
    "an unknown kind": framed(b"t", framed(b"s", b"surprise")),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_answer_is_refused_at_once(what: str) -> None:
    started = time.monotonic()
    value = _decoded(FORGED[what], MEBIBYTE)
    assert not isinstance(value, tuple) or value[0] != "result"
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("what", ["not a frame", "an unknown kind", "an error without its parts"])
def test_a_forged_answer_is_a_remote_error(functions: ModuleType, what: str) -> None:
    with pytest.raises(RemoteError, match="not a result"):
        pybwrap.call(functions.forge, FORGED[what], policy=READ_ONLY)


def test_a_pickle_bomb_does_not_go_off(functions: ModuleType, workspace: Path) -> None:
    with pytest.raises(RemoteError, match="not a result"):
        pybwrap.call(functions.forge, pickle.dumps(Bomb(str(workspace / "went off"))), policy=READ_ONLY)
    assert not (workspace / "went off").exists()


def test_only_exceptions_are_made_of_a_forged_exception(functions: ModuleType, workspace: Path) -> None:
    def answer(module: str, name: str, *args: object) -> bytes:
        return call_worker.Encoder(MEBIBYTE).encode(("error", module, name, args, "text", "traceback"))

    target = str(workspace / "made")
    for module, name in (("builtins", "open"), ("os", "mkdir"), ("builtins", "SystemExit"), ("builtins", "eval")):
        with pytest.raises(RemoteError, match="text"):
            pybwrap.call(functions.forge, answer(module, name, target, "w"), policy=READ_ONLY)
    assert not (workspace / "made").exists()


@pytest.mark.parametrize("length", [1, MEBIBYTE, (1 << 64) - 1])
def test_a_forged_length_does_not_take_memory(functions: ModuleType, length: int) -> None:
    with pytest.raises(RemoteError, match="not a result"):
        pybwrap.call(functions.claim_length, length, policy=READ_ONLY, result_limit=MEBIBYTE)
