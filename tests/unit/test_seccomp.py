"""The seccomp policy, judged by the programs compiled from it: first in an interpreter, then in the real kernel."""

from __future__ import annotations

import errno
import importlib
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import termios
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybwrap import _seccomp
from pybwrap.errors import UnsupportedHostError
from pybwrap.launch.seccomp_filter import compile_filter
from pybwrap.plan.seccomp import NUMBERS, RULES, Action, Operator, SeccompMode, filter_rules
from tests import bpf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pybwrap.plan.seccomp import Condition

RESTRICTED, PROXY_ONLY, VSOCK_ONLY = SeccompMode
ARCHITECTURES = {"x86_64": bpf.AUDIT_ARCH_X86_64, "aarch64": bpf.AUDIT_ARCH_AARCH64}
ALLOWED = bpf.ALLOW
EPERM = bpf.refusal(errno.EPERM)
ENOSYS = bpf.refusal(errno.ENOSYS)
STRAY_BIT = 1 << 32
"""In the upper half of an argument, which the kernel ignores where it takes an int."""
X32_BIT = 0x4000_0000
NESTABLE = ("mount", "umount2", "pivot_root", "open_tree", "open_tree_attr", "move_mount", "fsopen", "setns", "clone3")

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "seccomp.md"


def number_of(syscall: str, architecture: str) -> int:
    """Number of a system call, negative where the architecture does not have it."""
    lib = _seccomp.lib
    token = {"x86_64": lib.SCMP_ARCH_X86_64, "aarch64": lib.SCMP_ARCH_AARCH64}[architecture]
    number = lib.seccomp_syscall_resolve_name_arch(token, syscall.encode())
    return NUMBERS.get(syscall, number) if number == -1 else number


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def verdict(mode: SeccompMode, architecture: str, syscall: str, *arguments: int, nested: bool = False) -> int:
    program = compile_filter(mode, architecture=architecture, allow_nested_sandboxes=nested)
    return bpf.evaluate(program, ARCHITECTURES[architecture], number_of(syscall, architecture), *arguments)


def expected(mode: SeccompMode, syscall: str, *arguments: int) -> int:
    """Verdict by the table itself, without libseccomp."""
    for rule in filter_rules(mode):
        if syscall in rule.syscalls and (rule.condition is None or any(holds(rule.condition, arguments))):
            return {Action.EPERM: EPERM, Action.ENOSYS: ENOSYS}[rule.action]
    return ALLOWED


def holds(condition: Condition, arguments: tuple[int, ...]) -> Iterator[bool]:
    argument = arguments[condition.argument]
    for operator, value, mask in condition.any_of:
        match operator:
            case Operator.NE:
                yield argument != value
            case Operator.GE:
                yield argument >= value
            case Operator.MASKED_EQ:
                yield argument & mask == value


# --- the programs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", SeccompMode)
def test_a_program_fits_into_the_kernel(mode: SeccompMode, architecture: str) -> None:
    program = compile_filter(mode, architecture=architecture)
    assert len(program) % 8 == 0
    assert 0 < len(program) // 8 < 4096 // 8


@pytest.mark.parametrize("mode", SeccompMode)
def test_the_program_agrees_with_the_table_for_every_system_call_number(mode: SeccompMode, architecture: str) -> None:
    program = compile_filter(mode, architecture=architecture)
    names = {number_of(name, architecture): name for rule in RULES for name in rule.syscalls}
    for number in range(1024):
        result = bpf.evaluate(program, ARCHITECTURES[architecture], number)
        assert result == expected(mode, names.get(number, ""), *[0] * 6), names.get(number, number)


INTERESTING = st.one_of(
    st.integers(0, 80),
    st.sampled_from([0x5401, 0x5412, 0x541C, 0x5423, 0x80801, 0x80805, 0x80802, 0x10000000, 0x20011, 0x3D0F00]),
    st.integers(0, 31).map(lambda bit: 1 << bit),
    st.integers(0, (1 << 64) - 1),
).flatmap(lambda value: st.sampled_from([value, value | STRAY_BIT, value | 1 << 63]))


@given(
    mode=st.sampled_from(SeccompMode),
    architecture=st.sampled_from(list(ARCHITECTURES)),
    syscall=st.sampled_from(sorted({name for rule in RULES if rule.condition for name in rule.syscalls})),
    arguments=st.tuples(*[INTERESTING] * 6),
)
def test_the_program_agrees_with_the_table_for_any_arguments(
    mode: SeccompMode, architecture: str, syscall: str, arguments: tuple[int, ...]
) -> None:
    assert verdict(mode, architecture, syscall, *arguments) == expected(mode, syscall, *arguments)


@pytest.mark.parametrize("mode", SeccompMode)
@pytest.mark.parametrize("nested", [False, True])
def test_calls_of_a_foreign_architecture_are_killed(mode: SeccompMode, architecture: str, *, nested: bool) -> None:
    program = compile_filter(mode, architecture=architecture, allow_nested_sandboxes=nested)
    foreign = {bpf.AUDIT_ARCH_I386, bpf.AUDIT_ARCH_ARM, *ARCHITECTURES.values()} - {ARCHITECTURES[architecture]}
    for arch in foreign:
        for number in (0, 1, 41, 102, 359, 425):
            assert bpf.evaluate(program, arch, number) == bpf.KILL_PROCESS


@pytest.mark.parametrize("mode", SeccompMode)
def test_a_system_call_known_by_number_is_refused_to_a_foreign_architecture_too(mode: SeccompMode) -> None:
    program = compile_filter(mode, architecture="x86_64")
    for number in NUMBERS.values():
        assert bpf.evaluate(program, bpf.AUDIT_ARCH_I386, number) in {EPERM, bpf.KILL_PROCESS}


@pytest.mark.parametrize("mode", SeccompMode)
def test_x32_calls_are_killed(mode: SeccompMode) -> None:
    program = compile_filter(mode, architecture="x86_64")
    for number in (0, 41, 56, 101, 425, 467, 512, 547):
        assert bpf.evaluate(program, bpf.AUDIT_ARCH_X86_64, number | X32_BIT) == bpf.KILL_PROCESS


def test_the_default_architecture_is_this_machines() -> None:
    assert compile_filter(RESTRICTED) is compile_filter(RESTRICTED, architecture=os.uname().machine)


def test_another_architecture_is_an_error_that_names_it() -> None:
    with pytest.raises(UnsupportedHostError, match="riscv64"):
        compile_filter(RESTRICTED, architecture="riscv64")


# --- every mode -------------------------------------------------------------------------------------------------------

HARDENED = (
    *("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp"),
    *("io_uring_setup", "io_uring_enter", "io_uring_register", "bpf", "perf_event_open", "userfaultfd"),
    *("keyctl", "add_key", "request_key", "syslog", "quotactl", "quotactl_fd", "open_by_handle_at"),
)
NAMESPACE_FLAGS = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
THREAD_FLAGS = 0x3D0F00
"""What glibc's pthread_create() passes to clone()."""


@pytest.mark.parametrize("mode", SeccompMode)
@pytest.mark.parametrize("syscall", HARDENED)
def test_hardening_holds_in_every_mode_even_for_nested_sandboxes(
    mode: SeccompMode, architecture: str, syscall: str
) -> None:
    assert verdict(mode, architecture, syscall) == EPERM
    assert verdict(mode, architecture, syscall, nested=True) == EPERM


@pytest.mark.parametrize("mode", SeccompMode)
@pytest.mark.parametrize("syscall", NESTABLE)
def test_mounts_and_namespaces_are_refused_unless_sandboxes_may_nest(
    mode: SeccompMode, architecture: str, syscall: str
) -> None:
    assert verdict(mode, architecture, syscall) == (ENOSYS if syscall == "clone3" else EPERM)
    assert verdict(mode, architecture, syscall, nested=True) == ALLOWED


@pytest.mark.parametrize("flag", NAMESPACE_FLAGS)
@pytest.mark.parametrize("syscall", ["clone", "unshare"])
def test_a_new_namespace_is_refused_whatever_flags_stand_beside_it(architecture: str, syscall: str, flag: int) -> None:
    for beside in (0, 17, 0x100, STRAY_BIT, (1 << 64) - 1):
        assert verdict(VSOCK_ONLY, architecture, syscall, flag | beside) == EPERM
    assert verdict(VSOCK_ONLY, architecture, syscall, flag, nested=True) == ALLOWED


def test_processes_and_threads_can_be_started(architecture: str) -> None:
    for flags in (17, 0x1200011, 0x4111, THREAD_FLAGS, 0x80 | 0x100):
        assert verdict(RESTRICTED, architecture, "clone", flags) == ALLOWED
    assert verdict(RESTRICTED, architecture, "unshare", 0x400 | 0x200) == ALLOWED


def test_a_new_time_namespace_is_refused_to_unshare(architecture: str) -> None:
    assert verdict(VSOCK_ONLY, architecture, "unshare", 0x80) == EPERM


@pytest.mark.parametrize("mode", SeccompMode)
@pytest.mark.parametrize("request_code", [termios.TIOCSTI, 0x541C, termios.TIOCSETD])
@pytest.mark.parametrize("stray", [0, STRAY_BIT, 0xFFFF_FFFF << 32])
def test_terminal_injection_is_refused_with_any_upper_half(
    mode: SeccompMode, architecture: str, request_code: int, stray: int
) -> None:
    assert verdict(mode, architecture, "ioctl", 0, request_code | stray) == EPERM
    assert verdict(mode, architecture, "ioctl", 0, request_code | stray, nested=True) == EPERM


@pytest.mark.parametrize("request_code", [termios.TCGETS, termios.TIOCGWINSZ, termios.FIONBIO, termios.FIOCLEX])
def test_ordinary_ioctls_are_allowed(architecture: str, request_code: int) -> None:
    assert verdict(RESTRICTED, architecture, "ioctl", 0, request_code) == ALLOWED


def test_the_one_refused_call_that_an_architecture_lacks_is_modify_ldt_on_aarch64() -> None:
    absent = {
        (architecture, name)
        for architecture in ARCHITECTURES
        for rule in RULES
        for name in rule.syscalls
        if number_of(name, architecture) < 0
    }
    assert absent == {("aarch64", "modify_ldt")}
    assert verdict(RESTRICTED, "x86_64", "modify_ldt") == EPERM


@pytest.mark.parametrize(
    ("syscall", "x86_64", "aarch64"),
    [
        *[("connect", 42, 203), ("ptrace", 101, 117), ("mount", 165, 40), ("bpf", 321, 280)],
        *[("io_uring_setup", 425, 425), ("mount_setattr", 442, 442), ("open_tree_attr", 467, 467)],
    ],
)
def test_refusals_hold_by_the_kernels_own_numbers(syscall: str, x86_64: int, aarch64: int) -> None:
    for architecture, number in (("x86_64", x86_64), ("aarch64", aarch64)):
        program = compile_filter(RESTRICTED, architecture=architecture)
        assert bpf.evaluate(program, ARCHITECTURES[architecture], number) == EPERM, syscall


# --- restricted -------------------------------------------------------------------------------------------------------

NETWORK_CALLS = ("connect", "accept", "accept4", "bind", "listen", "sendmmsg", "recvmmsg")


@pytest.mark.parametrize("syscall", NETWORK_CALLS)
def test_only_restricted_refuses_network_calls(architecture: str, syscall: str) -> None:
    assert verdict(RESTRICTED, architecture, syscall) == EPERM
    assert verdict(PROXY_ONLY, architecture, syscall) == ALLOWED
    assert verdict(VSOCK_ONLY, architecture, syscall) == ALLOWED


@pytest.mark.parametrize(
    "syscall",
    ["sendmsg", "recvmsg", "recvfrom", "read", "write", "getsockopt", "getsockname", "getpeername", "shutdown"],
)
def test_restricted_allows_what_socketpairs_need(architecture: str, syscall: str) -> None:
    assert verdict(RESTRICTED, architecture, syscall) == ALLOWED


@pytest.mark.parametrize("syscall", ["socket", "socketpair"])
@pytest.mark.parametrize("flags", [0, socket.SOCK_CLOEXEC, socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC])
def test_restricted_allows_local_streams_and_refuses_local_datagrams(
    architecture: str, syscall: str, flags: int
) -> None:
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        assert verdict(RESTRICTED, architecture, syscall, socket.AF_UNIX, kind | flags) == ALLOWED
    for other in set(range(16)) - {socket.SOCK_STREAM, socket.SOCK_SEQPACKET}:
        assert verdict(RESTRICTED, architecture, syscall, socket.AF_UNIX, other | flags) == EPERM
        assert verdict(RESTRICTED, architecture, syscall, socket.AF_UNIX, other | flags | STRAY_BIT) == EPERM


@given(
    architecture=st.sampled_from(list(ARCHITECTURES)),
    syscall=st.sampled_from(["socket", "socketpair"]),
    domain=INTERESTING,
    kind=INTERESTING,
    protocol=INTERESTING,
)
def test_a_socket_that_restricted_allows_is_a_local_stream_as_the_kernel_reads_it(
    architecture: str, syscall: str, domain: int, kind: int, protocol: int
) -> None:
    if verdict(RESTRICTED, architecture, syscall, domain, kind, protocol) == ALLOWED:
        assert domain & 0xFFFF_FFFF == socket.AF_UNIX
        assert kind & 0xF in {socket.SOCK_STREAM, socket.SOCK_SEQPACKET}


@pytest.mark.parametrize("domain", [0, *range(2, 64), 0xFFFF_FFFF, STRAY_BIT | 2, (1 << 64) - 1])
def test_restricted_refuses_every_other_family(architecture: str, domain: int) -> None:
    assert verdict(RESTRICTED, architecture, "socket", domain, socket.SOCK_STREAM) == EPERM


@pytest.mark.parametrize("address", [1, 0x7FFF_0000_1000, STRAY_BIT, 1 << 63])
def test_restricted_allows_sendto_only_without_an_address(architecture: str, address: int) -> None:
    assert verdict(RESTRICTED, architecture, "sendto", 3, 0x1000, 8, 0, 0, 0) == ALLOWED
    assert verdict(RESTRICTED, architecture, "sendto", 3, 0x1000, 8, 0, address, 110) == EPERM


def test_restricted_allows_only_harmless_socket_options(architecture: str) -> None:
    harmless = {
        *(socket.SO_SNDBUF, socket.SO_RCVBUF, socket.SO_PASSCRED, socket.SO_RCVTIMEO, socket.SO_SNDTIMEO),
        *(66, 67),  # SO_RCVTIMEO_NEW, SO_SNDTIMEO_NEW
    }
    for option in (*range(300), 0xFFFF_FFFF):
        result = verdict(RESTRICTED, architecture, "setsockopt", 3, socket.SOL_SOCKET, option, 0x1000, 4)
        assert result == (ALLOWED if option in harmless else EPERM), option
    for level in (0, 6, 41, 0xFFFF, STRAY_BIT | 6):
        assert verdict(RESTRICTED, architecture, "setsockopt", 3, level, socket.SO_SNDBUF, 0x1000, 4) == EPERM


# --- proxy-only and vsock-only ----------------------------------------------------------------------------------------


def test_proxy_only_allows_internet_sockets_and_no_other(architecture: str) -> None:
    for domain in (*range(64), 0xFFFF_FFFF, STRAY_BIT | socket.AF_UNIX):
        result = verdict(PROXY_ONLY, architecture, "socket", domain, socket.SOCK_DGRAM)
        assert result == (ALLOWED if domain in {socket.AF_INET, socket.AF_INET6} else EPERM), domain


def test_proxy_only_allows_pairs_of_local_streams(architecture: str) -> None:
    assert verdict(PROXY_ONLY, architecture, "socketpair", socket.AF_UNIX, socket.SOCK_STREAM) == ALLOWED
    assert verdict(PROXY_ONLY, architecture, "socketpair", socket.AF_UNIX, socket.SOCK_DGRAM) == EPERM
    assert verdict(PROXY_ONLY, architecture, "socketpair", socket.AF_INET, socket.SOCK_STREAM) == EPERM


@pytest.mark.parametrize("syscall", ["sendto", "setsockopt", "shutdown", "getsockopt"])
def test_proxy_only_leaves_the_rest_of_networking_alone(architecture: str, syscall: str) -> None:
    assert verdict(PROXY_ONLY, architecture, syscall, *[0x1000] * 6) == ALLOWED


@pytest.mark.parametrize("stray", [0, STRAY_BIT, 0xFFFF_FFFF << 32])
def test_vsock_only_refuses_vsock_and_kernel_cryptography_with_any_upper_half(architecture: str, stray: int) -> None:
    for domain in range(64):
        result = verdict(VSOCK_ONLY, architecture, "socket", domain | stray, socket.SOCK_STREAM)
        assert result == (EPERM if domain in {socket.AF_VSOCK, socket.AF_ALG} else ALLOWED), domain


# --- the table --------------------------------------------------------------------------------------------------------


def test_every_rule_has_a_reason_and_a_mode() -> None:
    for rule in RULES:
        assert len(rule.reason) > 20
        assert rule.modes
        assert rule.syscalls


def test_an_unconditional_rule_is_the_only_one_for_its_system_calls() -> None:
    for mode in SeccompMode:
        rules = filter_rules(mode)
        for rule in rules:
            for syscall in rule.syscalls:
                if rule.condition is None:
                    assert [other for other in rules if syscall in other.syscalls] == [rule]


def test_rules_known_by_number_are_unconditional() -> None:
    for rule in RULES:
        assert rule.condition is None or not NUMBERS.keys() & set(rule.syscalls)


def test_numbers_are_what_libseccomp_says_where_it_knows_the_name() -> None:
    for architecture in ARCHITECTURES:
        for syscall, number in NUMBERS.items():
            assert number_of(syscall, architecture) == number


def test_constants_are_the_systems_own() -> None:
    known = vars(socket) | vars(termios)
    for rule in RULES:
        if rule.condition:
            for name in re.findall(r"(?:AF|SOCK)_\w+|TIOC\w+", rule.condition.text):
                if name not in {"TIOCLINUX", "AF_ALG"}:
                    values = {comparison.value for comparison in rule.condition.any_of}
                    accepted = any(holds(rule.condition, (known[name],) * 6))
                    assert accepted == (known[name] in values and " is not " not in rule.condition.text), name


# --- errors -----------------------------------------------------------------------------------------------------------


class Libseccomp:
    """The real libseccomp, but for some functions."""

    def __init__(self, **replaced: Callable[..., int]) -> None:
        self.replaced = replaced

    def __getattr__(self, name: str) -> object:
        return self.replaced.get(name) or getattr(_seccomp.lib, name)


class Unloadable:
    def __getattr__(self, name: str) -> object:
        raise ImportError("libseccomp.so.2: cannot open shared object file: No such file or directory")


def compile_with(monkeypatch: pytest.MonkeyPatch, module: object, **options: str) -> bytes:
    """Compile with another pybwrap._seccomp, in a fresh compiler that has nothing cached."""
    monkeypatch.setitem(sys.modules, "pybwrap._seccomp", module)
    monkeypatch.delitem(sys.modules, "pybwrap.launch.seccomp_filter")
    return bytes(importlib.import_module("pybwrap.launch.seccomp_filter").compile_filter(RESTRICTED, **options))


def knowing_all_but(*names: str) -> SimpleNamespace:
    def resolve(token: int, name: bytes) -> int:
        return -1 if name.decode() in names else _seccomp.lib.seccomp_syscall_resolve_name_arch(token, name)

    return SimpleNamespace(lib=Libseccomp(seccomp_syscall_resolve_name_arch=resolve))


def test_a_missing_libseccomp_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedHostError, match=r"^libseccomp cannot be loaded .*apt-get install libseccomp2$"):
        compile_with(monkeypatch, Unloadable())


def test_a_broken_installation_is_not_blamed_on_libseccomp(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModuleNotFoundError):
        compile_with(monkeypatch, None)


def test_an_error_of_libseccomp_says_what_the_errno_means_there(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = SimpleNamespace(lib=Libseccomp(seccomp_export_bpf=lambda _context, _fd: -errno.ECANCELED))
    with pytest.raises(UnsupportedHostError, match=r"2\.\d+\.\d+: seccomp_export_bpf: ECANCELED \(the system failed"):
        compile_with(monkeypatch, failing)


def test_newer_calls_are_refused_by_a_libseccomp_that_does_not_know_their_names(
    monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    program = compile_with(monkeypatch, knowing_all_but(*NUMBERS), architecture=architecture)
    for number in range(1024):
        usual = bpf.evaluate(compile_filter(RESTRICTED, architecture=architecture), ARCHITECTURES[architecture], number)
        assert bpf.evaluate(program, ARCHITECTURES[architecture], number) == usual


def test_a_libseccomp_that_does_not_know_an_older_call_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedHostError, match="does not know clone3"):
        compile_with(monkeypatch, knowing_all_but("clone3"))


# --- the real kernel --------------------------------------------------------------------------------------------------

LOAD_AND_EXEC = """
import ctypes, os, struct, sys
program = bytes.fromhex(sys.argv[1])
buffer = ctypes.create_string_buffer(program, len(program))
libc = ctypes.CDLL(None, use_errno=True)
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
fprog = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, fprog, 0, 0):
    sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
os.execvp(sys.argv[2], sys.argv[2:])
"""


def run_filtered(mode: SeccompMode, *command: str) -> str:
    """Run a command under the filter, which it inherits through exec, and return its output."""
    argv = [sys.executable, "-I", "-c", LOAD_AND_EXEC, compile_filter(mode).hex(), *command]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def run_python(mode: SeccompMode, code: str, *arguments: str) -> str:
    return run_filtered(mode, sys.executable, "-I", "-c", code, *arguments)


def test_a_host_datagram_socket_cannot_be_reached_in_restricted(tmp_path: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as host:
        host.bind(str(tmp_path / "log"))
        host.setblocking(False)
        output = run_python(
            RESTRICTED,
            """
import socket, sys
for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW):
    for make in (socket.socket, socket.socketpair):
        try:
            made = make(socket.AF_UNIX, kind)
            made = made if make is socket.socket else made[0]
            made.sendmsg([b"leak"], [], 0, sys.argv[1])
            print("sent")
        except PermissionError:
            print("EPERM")
""",
            str(tmp_path / "log"),
        )
        assert output.split() == ["EPERM"] * 4
        with pytest.raises(BlockingIOError):
            host.recv(16)


@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_SEQPACKET"])
def test_an_allowed_socket_does_not_reach_a_host_socket_by_address(tmp_path: pathlib.Path, kind: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as host:
        host.bind(str(tmp_path / "log"))
        host.setblocking(False)
        output = run_python(
            RESTRICTED,
            """
import errno, socket, sys
kind = getattr(socket, sys.argv[2])
for sock in (socket.socket(socket.AF_UNIX, kind), *socket.socketpair(socket.AF_UNIX, kind)):
    try:
        sock.sendmsg([b"leak"], [], 0, sys.argv[1])
        print("not-refused")
    except OSError as error:
        print(errno.errorcode[error.errno])
""",
            str(tmp_path / "log"),
            kind,
        )
        stream = ["ENOTSUP", "EISCONN", "EISCONN"]
        seqpacket = ["ENOTCONN", "not-refused", "not-refused"]  # delivered to the peer of the pair
        assert output.split() == (stream if kind == "SOCK_STREAM" else seqpacket)
        with pytest.raises(BlockingIOError):
            host.recv(16)


def test_socketpairs_work_in_restricted() -> None:
    output = run_python(
        RESTRICTED,
        """
import array, os, socket
for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
    left, right = socket.socketpair(socket.AF_UNIX, kind)
    left.send(b"send "); print(right.recv(64).decode(), end="")
    left.sendall(b"sendall "); print(right.recvfrom(64)[0].decode(), end="")
    left.sendmsg([b"sendmsg"]); print(right.recvmsg(64)[0].decode())
    left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    left.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), left.getpeername(), left.getsockname()
    socket.send_fds(left, [b"fd"], [0]); os.close(socket.recv_fds(right, 8, 1)[1][0])
    left.shutdown(socket.SHUT_RDWR)
""",
    )
    assert output == "send sendall sendmsg\n" * 2


def test_asyncio_wakes_up_across_threads_in_restricted() -> None:
    output = run_python(
        RESTRICTED,
        """
import asyncio, threading
async def main():
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    threading.Timer(0.05, loop.call_soon_threadsafe, [done.set]).start()
    await asyncio.wait_for(done.wait(), 10)
    child = await asyncio.create_subprocess_exec("echo", "woken", stdout=asyncio.subprocess.PIPE)
    print((await child.communicate())[0].decode(), end="")
asyncio.run(main())
""",
    )
    assert output == "woken\n"


@pytest.mark.parametrize("mode", SeccompMode)
def test_the_kernel_refuses_terminal_injection_with_any_upper_half(mode: SeccompMode) -> None:
    # On a pipe, where the kernel itself would answer ENOTTY.
    output = run_python(
        mode,
        """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
ioctl = {"x86_64": 16, "aarch64": 29}[os.uname().machine]
for request in (0x5412, 0x541C, 1 << 32 | 0x5412, 0x5401):
    result = libc.syscall(ctypes.c_long(ioctl), ctypes.c_long(1), ctypes.c_ulong(request), ctypes.c_char_p(b"x"))
    print(result, errno.errorcode[ctypes.get_errno()])
""",
    )
    assert output.splitlines() == ["-1 EPERM", "-1 EPERM", "-1 EPERM", "-1 ENOTTY"]


@pytest.mark.parametrize("mode", SeccompMode)
def test_threads_and_processes_start_in_every_mode(mode: SeccompMode) -> None:
    output = run_python(
        mode,
        """
import os, subprocess, threading
thread = threading.Thread(target=print, args=["thread"], kwargs={"flush": True}); thread.start(); thread.join()
subprocess.run(["echo", "child"], check=True)
os.waitpid(os.posix_spawn("/bin/echo", ["echo", "spawned"], {}), 0)
""",
    )
    assert output.split() == ["thread", "child", "spawned"]


def test_new_namespaces_are_refused_by_the_kernel() -> None:
    output = run_python(
        VSOCK_ONLY,
        """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
print(libc.unshare(0x10000000), errno.errorcode[ctypes.get_errno()])
""",
    )
    assert output == "-1 EPERM\n"


def test_internet_sockets_work_only_outside_restricted() -> None:
    code = """
import socket
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK):
    try:
        socket.socket(family, socket.SOCK_RAW if family == socket.AF_NETLINK else socket.SOCK_STREAM).close()
        print("allowed")
    except PermissionError:
        print("EPERM")
    except OSError:
        print("other")
"""
    assert run_python(RESTRICTED, code).split() == ["EPERM", "EPERM", "allowed", "EPERM"]
    assert run_python(PROXY_ONLY, code).split()[2:] == ["EPERM", "EPERM"]
    assert "EPERM" not in run_python(VSOCK_ONLY, code).split()


@pytest.mark.skipif(not shutil.which("node"), reason="node is not installed")
def test_node_starts_children_in_restricted() -> None:
    script = """
const { spawnSync, execFileSync } = require("child_process");
const result = spawnSync("echo", ["spawned"]);
if (result.error) throw result.error;
process.stdout.write(result.stdout);
process.stdout.write(execFileSync("cat", { input: "through cat\\n" }));
require("fs").promises.readFile("/etc/passwd").then(() => console.log("read"));
"""
    assert run_filtered(RESTRICTED, "node", "-e", script) == "spawned\nthrough cat\nread\n"


# --- the documentation ------------------------------------------------------------------------------------------------


def rendered_table() -> str:
    lines = ["| system calls | when | answer | modes | why |", "|---|---|---|---|---|"]
    for rule in RULES:
        calls = " ".join(f"`{name}`" for name in rule.syscalls)
        when = rule.condition.text if rule.condition else "always"
        modes = "all" if len(rule.modes) == len(SeccompMode) else ", ".join(mode.value for mode in rule.modes)
        nesting = ", unless sandboxes may nest" if rule.needed_to_nest else ""
        lines.append(f"| {calls} | {when} | {rule.action.value} | {modes}{nesting} | {rule.reason} |")
    return "\n".join(lines) + "\n"


def documentation(table: str) -> str:
    text = DOCS.read_text()
    pattern = r"(?<=<!-- table -->\n).*(?=<!-- end of table -->)"
    return re.sub(pattern, lambda _: f"\n{table}\n", text, flags=re.DOTALL)


def test_the_documentation_shows_the_table() -> None:
    assert DOCS.read_text() == documentation(rendered_table()), "run: python -m tests.unit.test_seccomp"


if __name__ == "__main__":
    DOCS.write_text(documentation(rendered_table()))
