"""What a program that was written for `subprocess` relies on, beyond what test_run.py and test_popen.py say."""

from __future__ import annotations

import array
import contextlib
import copy
import errno
import gc
import io
import locale
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import pybwrap
from pybwrap import DEVNULL, PIPE, STDOUT, SandboxPolicy, TimeoutExpired
from tests.conftest import clean_environment, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

READ_ONLY = SandboxPolicy.read_only()
MEBIBYTE = 1024 * 1024


def popen(*words: Any, **parameters: Any) -> pybwrap.Popen:  # noqa: ANN401 - as Popen has it
    return pybwrap.Popen(words, policy=READ_ONLY, **parameters)


def run(*words: Any, **parameters: Any) -> pybwrap.CompletedProcess[Any]:  # noqa: ANN401 - as run has it
    return pybwrap.run(words, policy=READ_ONLY, **parameters)


def output(*words: Any, **parameters: Any) -> Any:  # noqa: ANN401 - bytes or str
    return run(*words, stdout=PIPE, **parameters).stdout


def own_children() -> set[int]:
    return {int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}


@pytest.fixture
def leaves_nothing() -> Iterator[None]:
    """No descriptor and no child of this process is more than before."""
    run("true")
    gc.collect()
    descriptors, children = sorted(os.listdir("/proc/self/fd")), own_children()
    yield
    gc.collect()
    assert sorted(os.listdir("/proc/self/fd")) == descriptors
    assert own_children() <= children


# --- Standard streams ---------------------------------------------------------------------------------------------


def test_each_stream_can_be_a_file_object_a_descriptor_or_one_that_goes_both_ways(workspace: Path) -> None:
    (workspace / "in").write_bytes(b"given")
    with (workspace / "in").open("rb") as source, (workspace / "err").open("w") as errors:
        assert output("sh", "-c", "cat; echo problem >&2", stdin=source, stderr=errors) == b"given"
    assert (workspace / "err").read_text() == "problem\n"
    with (workspace / "both").open("w+b") as both:
        both.write(b"a line\n")
        both.seek(0)
        run("sh", "-c", "read x; echo got $x", stdin=both, stdout=both.fileno(), stderr=both)
    assert (workspace / "both").read_bytes() == b"a line\ngot a line\n"


def test_what_the_caller_gave_stays_open(workspace: Path) -> None:
    with (workspace / "out").open("wb") as file:
        for word in ("one", "two"):
            run("echo", word, stdout=file, stderr=file)
        file.write(b"three\n")
    assert (workspace / "out").read_bytes() == b"one\ntwo\nthree\n"


def test_a_pipe_of_one_command_is_the_input_of_another() -> None:
    with popen("echo", "word", stdout=PIPE) as first:
        assert output("tr", "a-z", "A-Z", stdin=first.stdout) == b"WORD\n"


def test_devnull_is_empty_to_read_and_takes_what_is_written() -> None:
    assert output("cat", stdin=DEVNULL) == b""
    done = run("sh", "-c", "echo out; echo err >&2", stdout=DEVNULL, stderr=DEVNULL)
    assert (done.returncode, done.stdout, done.stderr) == (0, None, None)


def test_streams_that_are_not_given_are_the_callers() -> None:
    code = (
        "import pybwrap; policy = pybwrap.SandboxPolicy.read_only();"
        "p = pybwrap.Popen(['sh', '-c', 'cat; echo err >&2'], policy=policy);"
        "assert (p.stdin, p.stdout, p.stderr) == (None, None, None); assert p.communicate() == (None, None)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=b"in", capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"in", b"err\n")


def test_stderr_goes_where_an_inherited_stdout_goes() -> None:
    code = (
        "import pybwrap; pybwrap.run(['sh', '-c', 'echo a; echo b >&2'], stderr=pybwrap.STDOUT,"
        "policy=pybwrap.SandboxPolicy.read_only())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"a\nb\n", b"")


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
def test_standard_descriptors_can_be_exchanged(workspace: Path, order: tuple[int, int, int]) -> None:
    names = ("in", "out", "err")
    code = (
        "import os, pybwrap\n"
        f"stdin, stdout, stderr = {order}\n"
        "script = 'read x; echo $x; echo out; echo err >&2'\n"
        "pybwrap.run(['sh', '-c', script], stdin=stdin, stdout=stdout, stderr=stderr,"
        "policy=pybwrap.SandboxPolicy.read_only())"
    )
    for name in names:
        (workspace / name).write_text(f"{name}\n")
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context((workspace / name).open("r+b")) for name in names]
        subprocess.run([sys.executable, "-c", code], stdin=files[0], stdout=files[1], stderr=files[2], check=True)
    source, out, err = (names[number] for number in order)
    expected = {source: f"{source}\n", out: f"{source}\nout\n", err: "err\n"}
    overwritten = {name: (workspace / name).read_text()[: len(text)] for name, text in expected.items()}
    assert overwritten == expected


@pytest.mark.parametrize("closed", ["0", "1", "2", "01", "12", "02", "012"])
def test_an_owner_without_some_standard_streams_gets_all_output(closed: str) -> None:
    code = (
        f"import os, sys, pybwrap\nkept = os.dup(2)\n[os.close(int(fd)) for fd in {closed!r}]\n"
        "done = pybwrap.run(['sh', '-c', 'cat; echo out; echo err >&2'], input=b'in ', capture_output=True,"
        "policy=pybwrap.SandboxPolicy.read_only())\n"
        "os.write(kept, done.stdout + done.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], stderr=PIPE, check=True)
    assert done.stderr == b"in out\nerr\n"


@pytest.mark.parametrize(
    ("stream", "error"),
    [(io.BytesIO(), io.UnsupportedOperation), (object(), AttributeError), ("text", AttributeError), (9999, OSError)],
)
@pytest.mark.usefixtures("leaves_nothing")
def test_what_is_no_stream_is_refused_and_nothing_stays_open(stream: Any, error: type[Exception]) -> None:  # noqa: ANN401
    with pytest.raises(error):
        popen("true", stdin=PIPE, stdout=stream, stderr=PIPE)
    with pytest.raises(error):
        popen("true", stdin=stream, stdout=PIPE, stderr=STDOUT)


def test_a_closed_file_is_a_value_error(workspace: Path) -> None:
    with (workspace / "file").open("wb") as file:
        pass
    with pytest.raises(ValueError, match="closed file"):
        run("true", stdout=file)


def test_stdout_cannot_go_where_stdout_goes() -> None:
    with pytest.raises((ValueError, OSError)):
        run("true", stdout=STDOUT)


# --- Buffering ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bufsize", [-1, None, 4096])
def test_pipes_are_buffered_unless_asked_otherwise(bufsize: int | None) -> None:
    with popen("cat", stdin=PIPE, stdout=PIPE, bufsize=bufsize) as process:
        assert isinstance(process.stdin, io.BufferedWriter)
        assert isinstance(process.stdout, io.BufferedReader)


def test_with_bufsize_0_pipes_are_raw_and_what_is_written_goes_at_once() -> None:
    with popen("sh", "-c", "read x; echo got $x; read y", stdin=PIPE, stdout=PIPE, bufsize=0) as process:
        assert isinstance(process.stdin, io.RawIOBase)
        assert isinstance(process.stdout, io.RawIOBase)
        process.stdin.write(b"x\n")
        assert process.stdout.read(100) == b"got x\n"


def test_unbuffered_text_is_written_at_once() -> None:
    with popen("sh", "-c", "read x; echo got $x; read y", stdin=PIPE, stdout=PIPE, bufsize=0, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("x\n")
        assert process.stdout.readline() == "got x\n"


@pytest.mark.usefixtures("leaves_nothing")
def test_a_bufsize_that_is_no_number_is_a_type_error_and_nothing_runs() -> None:
    with pytest.raises(TypeError, match="bufsize must be an integer"):
        popen("sleep", "99", stdin=PIPE, stdout=PIPE, bufsize="many")


# --- Text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["text", "universal_newlines"])
@pytest.mark.parametrize("streams", [{"stdout": PIPE}, {"stdout": PIPE, "stderr": PIPE}], ids=["one", "both"])
def test_every_kind_of_line_end_becomes_a_newline(name: str, streams: dict[str, int]) -> None:
    parameters: dict[str, Any] = {name: True, **streams}
    assert run("printf", r"a\r\nb\rc\n\r\r\n\n\r", **parameters).stdout == "a\nb\nc\n\n\n\n\n"


def test_a_line_end_that_comes_in_two_pieces_is_one() -> None:
    script = r"printf 'a\r'; sleep 0.1; printf '\nb'"
    assert run("sh", "-c", script, capture_output=True, text=True).stdout == "a\nb"


def test_a_character_that_comes_in_two_pieces_is_one() -> None:
    script = r"printf '\303'; sleep 0.1; printf '\251'"
    assert run("sh", "-c", script, capture_output=True, encoding="utf-8").stdout == "é"
    with popen("sh", "-c", script, stdout=PIPE, encoding="utf-8") as process:
        assert process.stdout is not None
        assert process.stdout.read() == "é"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32-be", "utf-8-sig", "latin-1", "cp500"])
def test_text_goes_through_in_any_encoding(encoding: str) -> None:
    text = "line one\nzwölf\n"
    assert output("cat", input=text, encoding=encoding) == text
    assert run("cat", input=text, encoding=encoding, capture_output=True).stdout == text
    assert output("cat", input=text.encode(encoding)) == text.encode(encoding)


def test_what_cannot_be_decoded_is_an_error_or_what_errors_says() -> None:
    words = ("printf", r"a\377")
    for streams in ({"stdout": PIPE}, {"capture_output": True}):
        with pytest.raises(UnicodeDecodeError):
            run(*words, encoding="utf-8", **streams)
        assert run(*words, encoding="utf-8", errors="replace", **streams).stdout == "a\ufffd"
        assert run(*words, encoding="utf-8", errors="surrogateescape", **streams).stdout == "a\udcff"
        assert run(*words, encoding="ascii", errors="ignore", **streams).stdout == "a"
    assert output("cat", input="a\udcff", encoding="utf-8", errors="surrogateescape") == "a\udcff"


@pytest.mark.usefixtures("leaves_nothing")
def test_input_that_cannot_be_encoded_is_an_error_and_nothing_is_left() -> None:
    with pytest.raises(UnicodeEncodeError):
        run("cat", input="é", stdout=PIPE, encoding="ascii")


@pytest.mark.usefixtures("leaves_nothing")
@pytest.mark.parametrize("parameters", [{"encoding": "no-such-encoding"}, {"text": True, "errors": 5}])
def test_an_encoding_that_does_not_exist_is_an_error_and_nothing_runs(
    workspace: Path, parameters: dict[str, Any]
) -> None:
    policy = SandboxPolicy.workspace_write()
    with pytest.raises((LookupError, TypeError)):
        pybwrap.Popen(["touch", "ran"], policy=policy, cwd=workspace, stdin=PIPE, stdout=PIPE, **parameters)
    assert not (workspace / "ran").exists()


def test_without_an_encoding_the_locales_is_taken_by_communicate_as_by_the_streams() -> None:
    code = """
import io, pybwrap, sys
asked = io.TextIOWrapper(io.BytesIO()).encoding
policy = pybwrap.SandboxPolicy.read_only()
options = dict(policy=policy, text=True, stdin=pybwrap.PIPE, stdout=pybwrap.PIPE)
with pybwrap.Popen(["printf", r"\\351"], errors="surrogateescape", **options) as process:
    read = process.stdout.read()
with pybwrap.Popen(["printf", r"\\351"], errors="surrogateescape", **options) as process:
    print(process.communicate()[0] == read == b"\\351".decode(asked, "surrogateescape"))
"""
    names = ["C.UTF-8", "C", *(name for name in ("de_DE.ISO-8859-1", "en_US.ISO-8859-1") if has_locale(name))]
    for name in names:
        environment = clean_environment(LC_ALL=name, PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
        assert done.stdout == b"True\n", name


def has_locale(name: str) -> bool:
    before = locale.setlocale(locale.LC_ALL)
    try:
        locale.setlocale(locale.LC_ALL, name)
    except locale.Error:
        return False
    locale.setlocale(locale.LC_ALL, before)
    return True


def test_errors_alone_or_an_encoding_alone_is_text_mode() -> None:
    assert output("echo", "x", errors="strict") == "x\n"
    assert output("echo", "x", encoding="utf-8", text=False) == "x\n"
    assert output("echo", "x", text=False) == b"x\n"


# --- Input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [b"", b"bytes", bytearray(b"bytearray"), memoryview(b"memory"), memoryview(array.array("I", [1, 2, 3]))],
    ids=lambda data: type(data).__name__ + str(len(data)),
)
def test_input_is_any_object_with_bytes(data: Any) -> None:  # noqa: ANN401
    assert output("cat", input=data) == bytes(data)
    assert run("cat", input=data, capture_output=True).stdout == bytes(data)


@pytest.mark.parametrize("data", ["text", 5, [1, 2]])
@pytest.mark.usefixtures("leaves_nothing")
def test_input_that_has_no_bytes_is_a_type_error_and_nothing_is_left(data: Any) -> None:  # noqa: ANN401
    with pytest.raises(TypeError):
        run("cat", input=data, stdout=PIPE)


def test_none_as_input_is_no_input_to_check_output_and_the_callers_stdin_to_run() -> None:
    code = """
import pybwrap, sys
policy = pybwrap.SandboxPolicy.read_only()
print(pybwrap.check_output(["cat"], policy=policy, input=None))
print(repr(pybwrap.check_output(["cat"], policy=policy, input=None, text=True)))
print(pybwrap.run(["cat"], policy=policy, input=None, stdout=pybwrap.PIPE).stdout)
"""
    done = subprocess.run([sys.executable, "-c", code], input=b"callers", capture_output=True, check=True)
    assert done.stdout.splitlines() == [b"b''", b"''", b"b'callers'"]


def test_check_output_takes_input_and_refuses_what_it_sets_itself() -> None:
    assert pybwrap.check_output(["cat"], policy=READ_ONLY, input=b"pear") == b"pear"
    for parameters in ({"stdout": PIPE}, {"check": False}, {"stdin": PIPE, "input": b""}):
        with pytest.raises(ValueError, match=r"stdout|stdin"):
            pybwrap.check_output(["true"], policy=READ_ONLY, **parameters)
    with pytest.raises(TimeoutExpired) as caught:
        pybwrap.check_output(["sh", "-c", "echo out; sleep 99"], policy=READ_ONLY, timeout=0.5)
    assert caught.value.output == b"out\n"
    with pytest.raises(pybwrap.CalledProcessError) as failed:
        pybwrap.check_output(["sh", "-c", "echo out; exit 3"], policy=READ_ONLY)
    assert (failed.value.returncode, failed.value.output) == (3, b"out\n")


# --- communicate --------------------------------------------------------------------------------------------------


def test_large_outputs_on_both_streams_and_large_input_go_at_once() -> None:
    script = "tee /dev/stderr | cat; head -c 2000000 /dev/zero >&2; head -c 2000000 /dev/zero"
    data = os.urandom(MEBIBYTE)
    with popen("sh", "-c", script, stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
        out, err = process.communicate(data, timeout=60)
    assert (out, err) == (data + bytes(2_000_000), data + bytes(2_000_000))


def test_communicate_returns_none_for_what_is_no_pipe() -> None:
    assert popen("true").communicate() == (None, None)
    assert popen("cat", stdin=PIPE, stdout=DEVNULL).communicate(b"x") == (None, None)
    assert popen("sh", "-c", "echo err >&2", stderr=PIPE).communicate() == (None, b"err\n")
    assert popen("sh", "-c", "echo out", stdout=PIPE, stderr=DEVNULL).communicate() == (b"out\n", None)


def test_what_was_written_before_communicate_goes_first() -> None:
    with popen("cat", stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(b"banana ")
        assert process.communicate(b"split") == (b"banana split", None)
    with popen("cat", stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdin is not None
        process.stdin.write("banana")
        assert process.communicate() == ("banana", None)


@pytest.mark.parametrize("text", [False, True])
def test_communicate_returns_what_was_read_ahead_of_a_line(text: bool) -> None:  # noqa: FBT001
    for stream, script in (("stdout", "echo a; echo b"), ("stderr", "{ echo a; echo b; } >&2")):
        with popen("sh", "-c", script, text=text, **{stream: PIPE}) as process:
            file = getattr(process, stream)
            assert file.readline() == ("a\n" if text else b"a\n")
            rest = process.communicate()
        assert [each for each in rest if each is not None] == ["b\n" if text else b"b\n"]


def test_communicate_can_be_repeated_after_the_end() -> None:
    for streams in ({"stdout": PIPE}, {"stdout": PIPE, "stderr": PIPE}):
        with popen("echo", "x", **streams) as process:
            first = process.communicate()
            assert first[0] == b"x\n"
            assert process.communicate() == process.communicate(timeout=5) == first


def test_input_after_communication_has_started_is_a_value_error() -> None:
    with popen("sh", "-c", "sleep 0.3; cat", stdin=PIPE, stdout=PIPE) as process:
        with pytest.raises(TimeoutExpired):
            process.communicate(b"first", timeout=0.05)
        with pytest.raises(ValueError, match="after starting communication"):
            process.communicate(b"second")
        assert process.communicate() == (b"first", None)


def test_communicate_closes_its_pipes() -> None:
    process = popen("cat", stdin=PIPE, stdout=PIPE, stderr=PIPE)
    process.communicate(b"x")
    assert [stream.closed for stream in (process.stdin, process.stdout, process.stderr) if stream] == [True] * 3
    process = popen("echo", stdout=PIPE)
    process.communicate()
    assert process.stdout is not None
    assert process.stdout.closed


def test_a_stream_that_the_caller_has_closed_is_empty_to_communicate() -> None:
    with popen("sh", "-c", "read x; echo err >&2", stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.communicate(b"\n") == (b"", b"err\n")


def test_output_before_the_command_closes_its_streams_is_all_there_is() -> None:
    with popen("sh", "-c", "echo x; exec >&- 2>&-; sleep 0.2; exit 4", stdout=PIPE, stderr=PIPE) as process:
        assert process.communicate() == (b"x\n", b"")
        assert process.returncode == 4


def test_a_command_that_ends_before_it_has_read_is_no_error_to_communicate() -> None:
    for streams in ({}, {"stdout": PIPE}, {"stdout": PIPE, "stderr": PIPE}):
        with popen("true", stdin=PIPE, **streams) as process:
            process.communicate(b"x" * MEBIBYTE)
        assert process.returncode == 0


def test_signals_that_are_handled_do_not_disturb_communicate() -> None:
    code = """
import pybwrap, signal
handled = []
signal.signal(signal.SIGALRM, lambda *_: handled.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
policy = pybwrap.SandboxPolicy.read_only()
for streams in ({"stdout": -1}, {"stdout": -1, "stderr": -1}):
    with pybwrap.Popen(["sh", "-c", "sleep 0.2; echo x"], policy=policy, **streams) as process:
        print(process.communicate()[0])
signal.setitimer(signal.ITIMER_REAL, 0)
print(len(handled) > 10)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.splitlines() == [b"b'x\\n'", b"b'x\\n'", b"True"]


@pytest.mark.parametrize("timeout", [0, -1])
def test_a_timeout_that_is_over_still_lets_the_end_be_seen(timeout: float) -> None:
    with popen("sh", "-c", "read x; exit 3", stdin=PIPE) as process:
        with pytest.raises(TimeoutExpired) as caught:
            process.wait(timeout=timeout)
        assert caught.value.timeout == timeout
        with pytest.raises(TimeoutExpired):
            process.communicate(timeout=timeout)
    assert process.wait(timeout=timeout) == 3
    assert process.communicate(timeout=timeout) == (None, None)


def test_timeout_expired_of_run_has_bytes_and_none_where_nothing_came() -> None:
    with pytest.raises(TimeoutExpired) as caught:
        run("sh", "-c", "printf 'a\r\n'; sleep 99", capture_output=True, text=True, timeout=0.5)
    assert (caught.value.output, caught.value.stderr) == (b"a\r\n", None)
    assert caught.value.timeout == 0.5


# --- What is run, and where ---------------------------------------------------------------------------------------


def test_words_can_be_bytes_paths_and_any_sequence() -> None:
    assert output(b"/bin/echo", Path("path"), "text", b"\xff") == b"path text \xff\n"
    assert pybwrap.run(iter(["echo", "x"]), policy=READ_ONLY, stdout=PIPE).stdout == b"x\n"  # type: ignore[arg-type]
    for whole in ("/bin/true", b"/bin/true", Path("/bin/true"), "true"):
        assert pybwrap.run(whole, policy=READ_ONLY).returncode == 0
    with pytest.raises(FileNotFoundError):
        pybwrap.run("echo two words", policy=READ_ONLY)


@pytest.mark.parametrize("args", [5, None, ["true", 5], ["true", None], [["true"]]])
def test_words_that_are_none_are_a_type_error(args: Any) -> None:  # noqa: ANN401
    with pytest.raises(TypeError):
        pybwrap.run(args, policy=READ_ONLY)


def test_words_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="null byte"):
        run("true", "a\0b")
    with pytest.raises(UnicodeEncodeError):
        run("true", "\ud800")
    with pytest.raises(ValueError, match=r"NUL|null"):
        run("true", executable="a\0b")
    with pytest.raises((ValueError, IndexError)):
        pybwrap.run([], policy=READ_ONLY)
    with pytest.raises((FileNotFoundError, PermissionError)):
        run("")


@pytest.mark.usefixtures("leaves_nothing")
def test_the_kernels_reason_for_not_executing_is_the_errno(workspace: Path) -> None:
    for name, content in (("no-interpreter", "#!/no/such\n"), ("no-format", "echo x\n")):
        (workspace / name).write_text(content)
        (workspace / name).chmod(0o755)
    for word, number in (
        (str(workspace / "no-interpreter"), errno.ENOENT),
        (str(workspace / "no-format"), errno.ENOEXEC),
        (str(workspace), errno.EACCES),
        ("x" * 300, errno.ENAMETOOLONG),
    ):
        with pytest.raises(OSError, match=r".") as caught:
            popen(word, stdin=PIPE, stdout=PIPE)
        assert (caught.value.errno, caught.value.filename) == (number, word)
    with pytest.raises(OSError, match="too long") as caught:
        run("true", "x" * 200_000)
    assert caught.value.errno == errno.E2BIG


def test_a_megabyte_of_words_goes_in() -> None:
    assert output("sh", "-c", "echo $#", "sh", *["x" * 100_000] * 10) == b"10\n"


def test_shell_takes_a_text_with_parameters_and_the_executable_replaces_it() -> None:
    def shell(args: Any, **parameters: Any) -> Any:  # noqa: ANN401
        parameters["shell"] = True
        return pybwrap.run(args, policy=READ_ONLY, stdout=PIPE, **parameters).stdout

    assert shell(b"echo bytes") == b"bytes\n"
    assert shell(["echo $0 $1", "zero", "one"]) == b"zero one\n"
    assert shell("echo $0", executable="/bin/bash") == b"/bin/bash\n"
    assert shell("echo $0", executable=b"/bin/bash") == b"/bin/bash\n"
    assert shell("echo $0", executable=Path("/bin/bash")) == b"/bin/bash\n"
    with pytest.raises(TypeError, match="path-like args is not allowed"):
        shell(Path("true"))


@pytest.mark.parametrize("kind", [str, os.fsencode, Path])
def test_directory_and_executable_can_be_text_bytes_or_path(workspace: Path, kind: Any) -> None:  # noqa: ANN401
    assert output("pwd", cwd=kind(str(workspace))) == os.fsencode(workspace) + b"\n"
    assert output("zero", "-c", "echo $0", executable=kind("/bin/sh")) == b"zero\n"


def test_a_relative_program_is_looked_for_in_the_new_directory(workspace: Path) -> None:
    (workspace / "prog").write_text("#!/bin/sh\necho here\n")
    (workspace / "prog").chmod(0o755)
    assert output("./prog", cwd=workspace) == b"here\n"
    assert output("anything", executable="./prog", cwd=workspace) == b"here\n"
    with pytest.raises(FileNotFoundError):
        run("./prog", cwd="/")


def test_a_program_is_looked_for_in_the_path_of_the_given_environment(workspace: Path) -> None:
    (workspace / "prog").write_text("#!/bin/sh\necho here\n")
    (workspace / "prog").chmod(0o755)
    assert output("prog", env={"PATH": str(workspace)}) == b"here\n"
    assert output("prog", env={b"PATH": b"/nowhere:" + os.fsencode(workspace)}) == b"here\n"
    with pytest.raises(FileNotFoundError):
        run("prog", env={"PATH": "/nowhere"})
    assert output("echo", "x", env={}) == b"x\n"


@pytest.mark.usefixtures("leaves_nothing")
def test_a_directory_that_is_none_raises_as_chdir_does(workspace: Path) -> None:
    (workspace / "loop").symlink_to("loop")
    (workspace / "dangling").symlink_to("nowhere")
    (workspace / "file").touch()
    for directory, number in (
        ("", errno.ENOENT),
        (str(workspace / "dangling"), errno.ENOENT),
        (str(workspace / "loop"), errno.ELOOP),
        (str(workspace / "file"), errno.ENOTDIR),
        (str(workspace / "file/below"), errno.ENOTDIR),
        ("x" * 300, errno.ENAMETOOLONG),
    ):
        with pytest.raises(OSError, match=r".") as caught:
            popen("true", cwd=directory, stdin=PIPE)
        assert (caught.value.errno, caught.value.filename) == (number, directory)
    with pytest.raises(TypeError):
        run("true", cwd=5)


@pytest.mark.unprivileged
def test_a_directory_that_may_not_be_entered_is_a_permission_error(workspace: Path) -> None:
    (workspace / "locked").mkdir(mode=0)
    for directory in (workspace / "locked", workspace / "locked/below"):
        with pytest.raises(PermissionError) as caught:
            run("true", cwd=directory)
        assert caught.value.filename == str(directory)


def test_names_and_values_of_the_environment_can_be_any_bytes() -> None:
    environment = {b"BYTES": b"\xff\xfe", "TEXT": "a=b\udcff", "EMPTY": "", "PATH": "/usr/bin:/bin"}
    lines = output("env", env=environment).splitlines()
    assert {b"BYTES=\xff\xfe", b"TEXT=a=b\xff", b"EMPTY="} <= set(lines)
    for wrong in ({"A": 1}, {"A": None}, {1: "x"}):
        with pytest.raises(TypeError):
            run("true", env=wrong)


# --- Descriptors --------------------------------------------------------------------------------------------------


def test_a_descriptor_that_is_passed_stays_as_it_is_here() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as source, os.fdopen(writing, "wb") as target:
        assert not os.get_inheritable(target.fileno())
        run("bash", "-c", f"echo x >&{target.fileno()}", pass_fds=(target.fileno(), 0, 1))
        assert not os.get_inheritable(target.fileno())
        target.close()
        assert source.read() == b"x\n"


def test_pass_fds_can_be_any_iterable_and_repeat_themselves() -> None:
    code = "import os; print(sorted(map(int, os.listdir('/proc/self/fd')))[3:-1])"
    with Path(os.devnull).open("rb") as file:
        fd = file.fileno()
        for passed in ([fd, fd], {fd}, iter([fd])):
            # Its own listing may have the number after it.
            found = output("/usr/bin/python3", "-c", code, pass_fds=passed)
            assert found in {f"[{fd}]\n".encode(), b"[3]\n"}, found


@pytest.mark.usefixtures("leaves_nothing")
def test_descriptors_that_cannot_be_passed_are_refused() -> None:
    with pytest.raises(ValueError, match=r"fds|descriptor"):
        popen("true", pass_fds=[-1], stdout=PIPE)
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        popen("true", pass_fds=[9999], stdout=PIPE)
    assert caught.value.errno == errno.EBADF
    with pytest.raises((TypeError, ValueError)):
        popen("true", pass_fds=["x"], stdout=PIPE)


def test_a_pipe_of_one_sandbox_is_not_held_by_another() -> None:
    with popen("cat", stdin=PIPE, stdout=PIPE) as first, popen("cat", stdin=PIPE, stdout=PIPE) as second:
        assert first.stdin is not None
        first.stdin.close()
        assert first.wait(timeout=10) == 0
        assert second.poll() is None


@pytest.mark.usefixtures("leaves_nothing")
def test_a_failed_start_closes_its_pipes_once_while_other_threads_open_files() -> None:
    stop = threading.Event()
    failures: list[BaseException] = []

    def open_and_close() -> None:
        while not stop.is_set():
            try:
                with Path(os.devnull).open("rb") as file:
                    time.sleep(0)
                    os.fstat(file.fileno())
            except OSError as error:
                failures.append(error)

    threads = [threading.Thread(target=open_and_close) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            with pytest.raises(FileNotFoundError):
                popen("/nonexistent", stdin=PIPE, stdout=PIPE, stderr=PIPE)
            with pytest.raises(LookupError):
                popen("true", stdin=PIPE, stdout=PIPE, stderr=PIPE, encoding="none")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []


# --- The end ------------------------------------------------------------------------------------------------------


def test_signals_after_the_end_are_of_no_consequence() -> None:
    process = popen("true")
    with contextlib.suppress(TimeoutExpired):
        process.wait(timeout=30)
    for action in (process.terminate, process.kill, lambda: process.send_signal(signal.SIGINT)):
        action()
    assert (process.returncode, process.poll(), process.outcome) == (0, 0, pybwrap.Outcome.EXITED)


def test_a_signal_to_a_command_that_has_ended_unseen_is_of_no_consequence() -> None:
    for action in (pybwrap.Popen.terminate, pybwrap.Popen.kill):
        process = popen("sh", "-c", "exit 3", stdout=PIPE)
        assert process.stdout is not None
        process.stdout.read()  # its end
        time.sleep(0.1)
        action(process)
        assert process.wait() == 3
        process.stdout.close()


def test_a_signal_number_that_does_not_exist_is_an_error() -> None:
    with popen("cat", stdin=PIPE) as process:
        process.send_signal(0)
        for number in (999, -1):
            with pytest.raises((OSError, ValueError)):
                process.send_signal(number)


def test_a_stopped_command_has_not_ended() -> None:
    with popen("cat", stdin=PIPE) as process:
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.1)
        assert process.poll() is None
        with pytest.raises(TimeoutExpired):
            process.wait(0.05)
        process.send_signal(signal.SIGCONT)
    assert process.returncode == 0


def test_signals_polls_and_waits_of_many_threads_at_the_end_are_no_error() -> None:
    failures: list[BaseException] = []

    def repeat(action: Any, process: pybwrap.Popen) -> None:  # noqa: ANN401
        try:
            while process.returncode is None:
                action(process)
        except BaseException as error:  # noqa: BLE001 - it is compared below
            failures.append(error)

    actions = (
        lambda process: process.send_signal(0),
        lambda process: process.wait(),
        lambda process: process.poll(),
        lambda process: process.send_signal(signal.SIGCONT),
    )
    for _ in range(25):
        process = popen("sleep", "0.01")
        threads = [threading.Thread(target=repeat, args=(action, process)) for action in actions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert process.returncode == 0
    assert failures == []


def test_several_threads_can_wait_with_a_timeout() -> None:
    process = popen("sh", "-c", "sleep 0.3; exit 2")
    results: list[object] = []

    def wait(timeout: float | None) -> None:
        try:
            results.append(process.wait(timeout))
        except TimeoutExpired:
            results.append("expired")

    threads = [threading.Thread(target=wait, args=(timeout,)) for timeout in (None, 0.05, 30, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results, key=str) == [2, 2, "expired", "expired"]


def test_what_was_dropped_while_it_ran_leaves_no_zombie_and_no_descriptor_after_later_launches() -> None:
    run("true")
    gc.collect()
    before = sorted(os.listdir("/proc/self/fd"))
    process = popen("sleep", "0.1")
    pid = process.pid
    with pytest.warns(ResourceWarning, match="still running"):  # noqa: PT031 - whichever collects it
        del process
        gc.collect()

    def is_reaped() -> bool:
        run("true")
        return pid not in own_children() and sorted(os.listdir("/proc/self/fd")) == before

    assert wait_until(is_reaped)


# --- The context manager ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("leaves_nothing")
def test_an_exception_in_the_block_closes_the_pipes_and_waits() -> None:
    with pytest.raises(KeyError), popen("cat", stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
        raise KeyError
    assert process.returncode == 0
    assert [stream.closed for stream in (process.stdin, process.stdout, process.stderr) if stream] == [True] * 3


@pytest.mark.usefixtures("leaves_nothing")
def test_a_broken_pipe_at_the_end_of_the_block_is_told_after_the_wait() -> None:
    process = popen("true", stdin=PIPE, bufsize=2 * MEBIBYTE)
    assert process.stdin is not None
    process.stdin.write(b"x" * MEBIBYTE)
    with pytest.raises(BrokenPipeError), process:
        pass
    assert process.returncode == 0
    assert process.stdin.closed


@pytest.mark.usefixtures("leaves_nothing")
def test_an_interrupt_of_run_ends_the_command() -> None:
    code = """
import os, pybwrap, signal, threading, time
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
start = time.monotonic()
try:
    pybwrap.run(["sleep", "60"], policy=pybwrap.SandboxPolicy.read_only(), stdout=pybwrap.PIPE)
except KeyboardInterrupt:
    print(time.monotonic() - start < 20)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"True\n"


# --- Results ------------------------------------------------------------------------------------------------------


def test_a_result_can_be_pickled_and_copied() -> None:
    done = run("sh", "-c", "echo x; exit 3", capture_output=True)
    for again in (pickle.loads(pickle.dumps(done)), copy.copy(done), copy.deepcopy(done)):  # noqa: S301
        assert type(again) is pybwrap.CompletedProcess
        assert vars(again) == vars(done)


def test_exceptions_that_tell_of_an_end_can_be_pickled() -> None:
    with pytest.raises(pybwrap.CalledProcessError) as failed:
        run("sh", "-c", "echo x; exit 3", capture_output=True, check=True)
    with pytest.raises(TimeoutExpired) as expired:
        run("sh", "-c", "echo x; sleep 9", capture_output=True, timeout=0.3)
    for error in (failed.value, expired.value):
        again = pickle.loads(pickle.dumps(error))  # noqa: S301 - made on this line
        assert (type(again), vars(again), str(again)) == (type(error), vars(error), str(error))


def test_results_compare_by_identity_and_say_what_they_hold() -> None:
    done = run("echo", "x", stdout=PIPE)
    assert done == done  # noqa: PLR0124 - it is what is tested
    assert done != copy.copy(done)
    for part in ("args=('echo', 'x')", "returncode=0", r"stdout=b'x\n'"):
        assert part in repr(done)
    assert "stderr" not in repr(done)


def test_called_process_error_names_the_signal() -> None:
    with pytest.raises(pybwrap.CalledProcessError, match=r"died with <Signals.SIGABRT: 6>"):
        run("sh", "-c", "kill -ABRT $$", check=True)


def test_repr_of_a_process_is_short_however_long_its_words_are() -> None:
    with popen("true", "x" * 500) as process:
        assert len(repr(process)) == 80
        assert repr(process).startswith("<Popen: returncode: None args: ('true', 'xxx")
        assert repr(process).endswith("...>")
